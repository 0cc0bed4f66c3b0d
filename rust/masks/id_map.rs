//! Masks in a PNG: each pixel has the id of its mask.

use std::collections::HashMap;
use std::io::Cursor;
use std::ops::Range;

use crate::decode_limits::DecodeLimits;
use crate::error::{catch_panic, named};
use crate::masks::planes::Planes;
use crate::masks::sample_grid::{SampleGrid, places};
use crate::masks::stored_mask::check_bytes;
use crate::masks::{FIELD, problem};
use crate::{Error, try_alloc};

/// How a pixel stores its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// `id = red + 256 * green + 65536 * blue`, as in COCO's panoptic segmentation.
    Rgb,
    /// The gray value, or the index of a palette.
    Gray,
}

named!(Coding, "coding", [Rgb = "rgb", Gray = "gray"]);

/// The ids of a map, one for each mask.
#[derive(Clone, Debug)]
pub struct MapIds {
    /// Id of each mask.
    pub ids: Vec<u32>,
    /// Ids of pixels without a mask.
    pub void: Vec<u32>,
    /// How pixels store ids.
    pub coding: Coding,
    /// True if a mask may have no pixel, as classes that an image does not show.
    pub may_lack: bool,
}

/// Index of pixels without a mask.
const NONE: u32 = u32::MAX;

type Reader<'a> = png::Reader<Cursor<&'a [u8]>>;

fn broken(error: &png::DecodingError) -> Error {
    Error::decode(format!("id map: PNG: {error}"))
}

fn reader(bytes: &[u8], coding: Coding) -> Result<Reader<'_>, Error> {
    if !bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        return Err(Error::decode("id map: not a PNG; expected a PNG file"));
    }
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_transformations(match coding {
        Coding::Rgb => png::Transformations::EXPAND,
        Coding::Gray => png::Transformations::IDENTITY,
    });
    decoder.read_info().map_err(|error| broken(&error))
}

/// Read the (height, width) of an id map, and check the type of its pixels.
pub(crate) fn probe(bytes: &[u8], coding: Coding) -> Result<(usize, usize), Error> {
    guarded(|| {
        let reader = reader(bytes, coding)?;
        let info = reader.info();
        let (color, depth) = (info.color_type, info.bit_depth);
        let is_gray = match (coding, color) {
            _ if depth == png::BitDepth::Sixteen => {
                let reason = "id map: 16 bits a sample; expected a PNG of 8 bits";
                return Err(Error::unsupported(reason));
            }
            (_, png::ColorType::Indexed) => coding == Coding::Gray,
            (Coding::Gray, png::ColorType::Grayscale) => {
                if depth != png::BitDepth::Eight {
                    let bits = depth as u8;
                    let reason = format!("id map: gray of {bits} bits; expected a PNG of 8 bits");
                    return Err(Error::unsupported(reason));
                }
                true
            }
            (_, png::ColorType::Rgb | png::ColorType::Rgba) => false,
            _ => true,
        };
        if is_gray != (coding == Coding::Gray) {
            let (found, expected) = match coding {
                Coding::Gray => ("color", "gray values or a palette"),
                Coding::Rgb => ("gray values", "red, green and blue"),
            };
            let reason = format!("id map: has {found}; expected {expected}");
            return Err(Error::unsupported(reason));
        }
        Ok((info.height as usize, info.width as usize))
    })
}

/// Run a decoder, which may panic on corrupt bytes.
fn guarded<T>(decode: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_panic(decode, |why| {
        Error::decode(format!("id map: corrupt data; the decoder panicked: {why}"))
    })
}

/// Indices of masks by id.
struct Indices {
    /// Of the ids below 256.
    small: [u32; 256],
    others: HashMap<u32, u32>,
}

/// Marks small ids that are not in the map.
const UNKNOWN: u32 = u32::MAX - 1;

impl Indices {
    fn new(map: &MapIds) -> Result<Self, Error> {
        let mut found = Self {
            small: [UNKNOWN; 256],
            others: HashMap::new(),
        };
        for &id in &map.void {
            found.insert(id, NONE);
        }
        let most = match map.coding {
            Coding::Rgb => 1 << 24,
            Coding::Gray => 256,
        };
        for (index, &id) in (0_u32..).zip(&map.ids) {
            let mask = index as usize;
            if id >= most {
                return Err(problem(
                    mask,
                    format!("has id {id}; expected ids below {most}"),
                ));
            }
            match found.insert(id, index) {
                Some(before) if before != NONE => {
                    return Err(problem(mask, format!("has id {id}, as mask {before}")));
                }
                _ => {}
            }
        }
        Ok(found)
    }

    fn insert(&mut self, id: u32, index: u32) -> Option<u32> {
        match self.small.get_mut(id as usize) {
            Some(place) => Some(std::mem::replace(place, index)).filter(|&old| old != UNKNOWN),
            None => self.others.insert(id, index),
        }
    }

    fn get(&self, id: u32) -> Option<u32> {
        match self.small.get(id as usize) {
            Some(&index) => (index != UNKNOWN).then_some(index),
            None => self.others.get(&id).copied(),
        }
    }
}

/// Takes the rows of a map and samples them.
struct Sampler<'s> {
    map: &'s MapIds,
    grid: &'s SampleGrid,
    indices: Indices,
    planes: Planes,
    /// True for the masks that have a pixel.
    is_seen: Vec<bool>,
    /// Index of the mask of each pixel of a row.
    row: Vec<u32>,
    /// Runs of output pixels with the same mask.
    runs: Vec<(usize, Range<usize>)>,
}

impl Sampler<'_> {
    /// Take the ids of row `y` of the map.
    fn push(&mut self, y: usize, ids: impl Iterator<Item = u32>) -> Result<(), Error> {
        self.row.clear();
        let mut last = None;
        for (x, id) in ids.enumerate() {
            let index = match last {
                Some((same, index)) if same == id => index,
                _ => {
                    let index = self.indices.get(id).ok_or_else(|| {
                        let reason = format!(
                            "the id map has id {id} at row {y}, column {x}, which is the id of no \
                             mask; expected one of {} ids, or {:?}",
                            self.map.ids.len(),
                            self.map.void
                        );
                        Error::field(FIELD, reason)
                    })?;
                    if let Some(seen) = self.is_seen.get_mut(index as usize) {
                        *seen = true;
                    }
                    last = Some((id, index));
                    index
                }
            };
            self.row.push(index);
        }
        self.sample(y);
        Ok(())
    }

    /// Set the output pixels that show the row.
    fn sample(&mut self, y: usize) {
        let shown = places(&self.grid.rows, y..y + 1);
        if shown.is_empty() {
            return;
        }
        self.runs.clear();
        for (place, &column) in self.grid.columns.iter().enumerate() {
            let index = self.row.get(column).copied().unwrap_or(NONE) as usize;
            match self.runs.last_mut() {
                Some((same, run)) if *same == index => run.end = place + 1,
                _ => self.runs.push((index, place..place + 1)),
            }
        }
        self.runs.retain(|(index, _)| *index != NONE as usize);
        for (index, run) in &self.runs {
            if self.grid.transposed {
                for output in run.clone() {
                    self.planes.set(*index, output, shown.clone());
                }
            } else {
                for output in shown.clone() {
                    self.planes.set(*index, output, run.clone());
                }
            }
        }
    }
}

/// Decode the masks of a map, the content of a PNG. Each is a plane of the result, whose size is
/// that of the map.
///
/// # Errors
/// [`Error::Decode`] if it is no PNG of 8 bits a sample, [`Error::Field`] if a mask has no pixel in
/// it, or a pixel no mask. Also if the map or the masks are too large.
pub fn decode(bytes: &[u8], map: &MapIds, limits: &DecodeLimits) -> Result<Planes, Error> {
    let size = probe(bytes, map.coding)?;
    limits.check_size(size.0, size.1)?;
    check_bytes(map.ids.len(), size)?;
    sample(bytes, map, &SampleGrid::whole(size), limits).map(|(planes, _)| planes)
}

/// Sample the masks of a map whose header [`probe`] accepts and whose size is that of the image.
///
/// Returns one plane for each id, and whether each mask has a pixel in the map.
pub(crate) fn sample(
    bytes: &[u8],
    map: &MapIds,
    grid: &SampleGrid,
    limits: &DecodeLimits,
) -> Result<(Planes, Vec<bool>), Error> {
    let mut sampler = Sampler {
        map,
        grid,
        indices: Indices::new(map)?,
        planes: Planes::new(map.ids.len(), grid.padded)?,
        is_seen: vec![false; map.ids.len()],
        row: Vec::new(),
        runs: Vec::new(),
    };
    guarded(|| read_rows(bytes, &mut sampler, limits))?;
    let lacking = sampler.is_seen.iter().position(|seen| !seen);
    match lacking {
        Some(index) if !map.may_lack => {
            let id = map.ids.get(index).copied().unwrap_or_default();
            Err(problem(
                index,
                format!("has id {id}, of which the id map has no pixel"),
            ))
        }
        _ => Ok((sampler.planes, sampler.is_seen)),
    }
}

fn read_rows(bytes: &[u8], sampler: &mut Sampler<'_>, limits: &DecodeLimits) -> Result<(), Error> {
    let mut reader = reader(bytes, sampler.map.coding)?;
    let (height, width) = (reader.info().height as usize, reader.info().width as usize);
    limits.check_size(height, width)?;
    let (color, depth) = reader.output_color_type();
    let (channels, depth) = (color.samples(), depth as usize);
    if !reader.info().interlaced {
        let row_bytes = (width * channels * depth).div_ceil(8);
        limits.check_bytes((height, width), row_bytes.saturating_mul(2))?;
        let mut y = 0;
        while let Some(row) = reader.next_row().map_err(|error| broken(&error))? {
            push_row(sampler, y, row.data(), width, (channels, depth))?;
            y += 1;
        }
        if y != height {
            return Err(Error::decode(format!(
                "id map: PNG: {y} rows; expected {height}"
            )));
        }
        return Ok(());
    }
    let size = reader
        .output_buffer_size()
        .ok_or_else(|| Error::decode("id map: PNG: too many bytes to fit in memory"))?;
    limits.check_bytes((height, width), size)?;
    let mut pixels = try_alloc::filled(0, size, try_alloc::of_image(height, width))?;
    let frame = reader
        .next_frame(&mut pixels)
        .map_err(|error| broken(&error))?;
    for (y, row) in pixels
        .chunks_exact(frame.line_size.max(1))
        .take(height)
        .enumerate()
    {
        push_row(sampler, y, row, width, (channels, depth))?;
    }
    Ok(())
}

fn push_row(
    sampler: &mut Sampler<'_>,
    y: usize,
    row: &[u8],
    width: usize,
    (channels, depth): (usize, usize),
) -> Result<(), Error> {
    let wide = |&byte: &u8| u32::from(byte);
    if channels >= 3 {
        let id = |pixel: &[u8]| match pixel {
            [red, green, blue, ..] => wide(red) | wide(green) << 8 | wide(blue) << 16,
            _ => 0,
        };
        return sampler.push(y, row.chunks_exact(channels).take(width).map(id));
    }
    if depth == 8 {
        return sampler.push(y, row.iter().step_by(channels).take(width).map(wide));
    }
    // Indices of a small palette, several in a byte.
    let each = 8 / depth.max(1);
    let index = |x: usize| {
        let byte = row.get(x / each).map_or(0, wide);
        byte >> (8 - depth * (x % each + 1)) & ((1 << depth) - 1)
    };
    sampler.push(y, (0..width).map(index))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(color: png::ColorType, depth: png::BitDepth, width: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, width, 2);
        encoder.set_color(color);
        encoder.set_depth(depth);
        if color == png::ColorType::Indexed {
            encoder.set_palette([1, 1, 0, 2, 2, 0, 0, 0, 0, 7, 0, 0].as_slice());
        }
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(data).unwrap();
        writer.finish().unwrap();
        bytes
    }

    fn map(ids: &[u32], coding: Coding) -> MapIds {
        MapIds {
            ids: ids.to_vec(),
            void: vec![0],
            coding,
            may_lack: false,
        }
    }

    fn sampled(bytes: &[u8], map: &MapIds) -> Result<Vec<u8>, String> {
        let size = probe(bytes, map.coding).map_err(|error| error.to_string())?;
        let limits = DecodeLimits::default();
        sample(bytes, map, &SampleGrid::whole(size), &limits)
            .map(|(planes, _)| planes.bytes)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn ids_of_every_kind_are_read() {
        use png::{BitDepth, ColorType};
        let rgb = png(
            ColorType::Rgb,
            BitDepth::Eight,
            2,
            &[1, 1, 0, 0, 0, 0, 1, 1, 0, 2, 0, 1],
        );
        let expected = Ok(vec![0x80, 0x80, 0, 0x40]);
        assert_eq!(sampled(&rgb, &map(&[257, 65538], Coding::Rgb)), expected);
        let gray = png(ColorType::Grayscale, BitDepth::Eight, 2, &[9, 0, 9, 4]);
        assert_eq!(sampled(&gray, &map(&[9, 4], Coding::Gray)), expected);
        // Two bits a pixel.
        let small = png(
            ColorType::Indexed,
            BitDepth::Two,
            2,
            &[0b1100_0000, 0b1110_0000],
        );
        assert_eq!(sampled(&small, &map(&[3, 2], Coding::Gray)), expected);
        let mut colors = map(&[7], Coding::Rgb);
        assert_eq!(
            sampled(&small, &colors).unwrap_err(),
            "masks: the id map has id 257 at row 0, column 1, which is the id of no mask; expected \
             one of 1 ids, or [0]"
        );
        colors.void.push(257);
        assert_eq!(sampled(&small, &colors), Ok(vec![0x80, 0x80]));
    }

    #[test]
    fn wrong_maps_are_named() {
        use png::{BitDepth, ColorType};
        let gray = png(ColorType::Grayscale, BitDepth::Eight, 2, &[9, 0, 9, 4]);
        for (ids, expected) in [
            (&[9_u32][..], "has id 4 at row 1, column 1"),
            (
                &[9, 4, 7],
                "mask 2 has id 7, of which the id map has no pixel",
            ),
            (&[9, 4, 9], "mask 2 has id 9, as mask 0"),
            (&[9, 4, 256], "mask 2 has id 256; expected ids below 256"),
        ] {
            let error = sampled(&gray, &map(ids, Coding::Gray)).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        let mut some = map(&[9, 7, 4], Coding::Gray);
        some.may_lack = true;
        let planes = sample(
            &gray,
            &some,
            &SampleGrid::whole((2, 2)),
            &DecodeLimits::default(),
        );
        assert_eq!(planes.unwrap().1, [true, false, true]);
        let deep = png(ColorType::Grayscale, BitDepth::Sixteen, 1, &[0; 4]);
        let nibbles = png(ColorType::Grayscale, BitDepth::Four, 2, &[0; 2]);
        for (bytes, coding, expected) in [
            (&gray[..], Coding::Rgb, "gray values; expected red"),
            (&deep, Coding::Gray, "16 bits"),
            (&deep, Coding::Rgb, "16 bits"),
            (&nibbles, Coding::Gray, "gray of 4 bits"),
            (b"GIF89a", Coding::Gray, "not a PNG"),
            (&gray[..30], Coding::Gray, "PNG: "),
        ] {
            let error = probe(bytes, coding).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let cut = &gray[..gray.len() - 20];
        assert!(sampled(cut, &map(&[9, 4], Coding::Gray)).is_err());
    }
}
