//! Check of strips of fax group 4 (ITU-T T.6), in which a damaged code is often another valid one.
//!
//! The crate `fax` reports codes that do not exist. What follows a damaged code is mostly wrong in
//! other ways, which it repairs without a word, and not as libtiff does: runs that leave the row or
//! go backwards. A strip without any of these is read alike by both, though no check can tell
//! whether it is what was written.

use std::convert::Infallible;

use fax::maps::{Mode, black, mode, white};
use fax::{BitReader, ByteReader};

/// Check that rows of `width` pixels are coded as T.6 demands; an error gives fault and row.
pub(super) fn check(strip: &[u8], width: u16, rows: u32) -> Result<(), String> {
    let bytes = strip.iter().map(|&byte| Ok::<_, Infallible>(byte));
    let Ok(mut codes) = ByteReader::new(bytes);
    let (mut above, mut row) = (Vec::new(), Vec::new());
    for number in 0..rows {
        read_row(&mut codes, &above, &mut row, width)
            .map_err(|what| format!("{what} in row {number}"))?;
        std::mem::swap(&mut above, &mut row);
    }
    Ok(())
}

/// Read the columns where the color changes; the first change is to black.
fn read_row(
    codes: &mut impl BitReader,
    above: &[u16],
    row: &mut Vec<u16>,
    width: u16,
) -> Result<(), &'static str> {
    row.clear();
    // T.6 calls it a0; it starts before the first column.
    let mut done = None;
    let mut is_black = false;
    while done != Some(width) {
        let is_after = |column: u16| done.is_none_or(|done| column > done);
        // T.6 calls it b1: the next change to the other color in the row above.
        let next = above.partition_point(|&column| !is_after(column));
        let next = next + usize::from((next % 2 == 1) != is_black);
        match mode::decode(codes).ok_or("an invalid code")? {
            Mode::Pass => {
                let end = above
                    .get(next + 1)
                    .ok_or("a run that passes the row above")?;
                done = Some(*end);
            }
            Mode::Vertical(delta) => {
                let column = above.get(next).copied().unwrap_or(width);
                let change = column.checked_add_signed(delta.into());
                let change = change.filter(|&it| is_after(it) && it <= width);
                let change = change.ok_or("a change of color outside of its run")?;
                row.extend(Some(change).filter(|&it| it < width));
                (done, is_black) = (Some(change), !is_black);
            }
            Mode::Horizontal => {
                let start = done.unwrap_or(0);
                let first = start.checked_add(run(codes, is_black)?);
                let second = run(codes, !is_black)?;
                let ends = first.and_then(|first| Some((first, first.checked_add(second)?)));
                let (first, end) = ends.ok_or("runs longer than the row")?;
                if end > width || !is_after(first) || (second == 0 && end < width) {
                    return Err("runs that do not fit the row");
                }
                row.extend([first, end].into_iter().filter(|&it| it < width));
                done = Some(end);
            }
            Mode::Extension => return Err("an extension"),
            Mode::EOF => return Err("the end of the strip"),
        }
    }
    Ok(())
}

/// Read the length of a run, in parts of which the last is below 64.
fn run(codes: &mut impl BitReader, is_black: bool) -> Result<u16, &'static str> {
    let mut length = 0_u16;
    loop {
        let part = if is_black {
            black::decode(codes)
        } else {
            white::decode(codes)
        };
        let part = part.ok_or("an invalid length of a run")?;
        length = length
            .checked_add(part)
            .ok_or("a run longer than the row")?;
        if part < 64 {
            return Ok(length);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fax::encoder::Encoder;
    use fax::{Color, VecWriter};

    /// Code rows of pixels that are black where the byte is `#`.
    fn coded(rows: &[&str]) -> Vec<u8> {
        let mut encoder = Encoder::new(VecWriter::new());
        for row in rows {
            let color = |byte| {
                if byte == b'#' {
                    Color::Black
                } else {
                    Color::White
                }
            };
            let width = u16::try_from(row.len()).unwrap();
            encoder.encode_line(row.bytes().map(color), width).unwrap();
        }
        encoder.finish().unwrap().finish()
    }

    #[test]
    fn what_an_encoder_writes_is_valid() {
        let rows = [
            "........", "########", "#.#.#.#.", "..##..##", "#.......", ".......#",
        ];
        let strip = coded(&rows);
        check(&strip, 8, 6).unwrap();
        check(&[], 8, 0).unwrap();
        assert_eq!(
            check(&strip, 8, 7),
            Err("the end of the strip in row 6".to_owned())
        );
        let long = [
            ".".repeat(5000),
            "#".repeat(5000),
            format!("{}#", ".".repeat(4999)),
        ];
        check(&coded(&long.each_ref().map(String::as_str)), 5000, 3).unwrap();
    }

    #[test]
    fn faults_are_named() {
        assert_eq!(check(&[], 8, 1), Err("an invalid code in row 0".to_owned()));
        let strip = |bits: &str| -> Vec<u8> {
            let bits = format!("{}{}", bits.replace('_', ""), "0".repeat(32));
            let bytes = bits.as_bytes().chunks_exact(8);
            bytes
                .map(|byte| byte.iter().fold(0, |sum, bit| sum << 1 | (bit - b'0')))
                .collect()
        };
        for (bits, rows, fault) in [
            // Pass, but nothing is above.
            ("0001", 1, "a run that passes the row above in row 0"),
            // One to the right of the row's end.
            ("011", 1, "a change of color outside of its run in row 0"),
            // White to 2 and black to 3; below, one to the left of the last change, which is at 2.
            ("0010111010110", 1, ""),
            (
                "00101110101_1_010",
                2,
                "a change of color outside of its run in row 1",
            ),
            // Nine white and one black pixels, in a row of eight.
            ("001_10100_010", 1, "runs that do not fit the row in row 0"),
            // No black pixels, though the row goes on; no white ones, though it has begun.
            (
                "001_1000_0000110111",
                1,
                "runs that do not fit the row in row 0",
            ),
            (
                "001_0111_010_001_00110101_010",
                1,
                "runs that do not fit the row in row 0",
            ),
            ("0000001", 1, "an extension in row 0"),
            (
                "000000000001000000000001",
                1,
                "the end of the strip in row 0",
            ),
        ] {
            let found = check(&strip(bits), 8, rows).err().unwrap_or_default();
            assert_eq!(found, fault, "{bits}");
        }
    }
}
