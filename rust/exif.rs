//! EXIF orientation tag. Malformed data is treated as having no orientation; offsets that point
//! outside the data are not followed.

const ORIENTATION: u16 = 0x0112;
const SHORT: u16 = 3;

/// Prefix of EXIF data in JPEG; optional in other formats.
const PREFIX: &[u8] = b"Exif\0\0";

/// Read the orientation, 1 to 8, from a JPEG's APP1 segment, which may contain other data.
pub(crate) fn of_segment(data: &[u8]) -> Option<u8> {
    of_tiff(data.strip_prefix(PREFIX)?)
}

/// Read the orientation from a PNG or WebP chunk; some encoders also write the JPEG prefix there.
pub(crate) fn of_chunk(data: &[u8]) -> Option<u8> {
    of_tiff(data.strip_prefix(PREFIX).unwrap_or(data))
}

/// Read the orientation from the first IFD of a TIFF stream, the format of EXIF data.
pub(crate) fn of_tiff(tiff: &[u8]) -> Option<u8> {
    let is_little = match tiff.get(..4)? {
        b"II*\0" => true,
        b"MM\0*" => false,
        _ => return None,
    };
    let short = |at: usize| -> Option<u16> {
        let bytes = tiff.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if is_little {
            u16::from_le_bytes(bytes)
        } else {
            u16::from_be_bytes(bytes)
        })
    };
    let long = |at: usize| -> Option<u32> {
        let bytes = tiff.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(if is_little {
            u32::from_le_bytes(bytes)
        } else {
            u32::from_be_bytes(bytes)
        })
    };
    let directory = usize::try_from(long(4)?).ok()?;
    let entries = usize::from(short(directory)?);
    (0..entries)
        .map_while(|entry| {
            let at = directory.checked_add(2 + 12 * entry)?;
            Some((at, short(at)?))
        })
        .find(|&(_, tag)| tag == ORIENTATION)
        .and_then(|(at, _)| {
            let (kind, count, value) = (short(at + 2)?, long(at + 4)?, short(at + 8)?);
            let value = u8::try_from(value).ok()?;
            (kind == SHORT && count == 1 && (1..=8).contains(&value)).then_some(value)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exif(is_little: bool, value: u16) -> Vec<u8> {
        let short = |value: u16| {
            if is_little {
                value.to_le_bytes()
            } else {
                value.to_be_bytes()
            }
        };
        let long = |value: u32| {
            if is_little {
                value.to_le_bytes()
            } else {
                value.to_be_bytes()
            }
        };
        let mut data = b"Exif\0\0".to_vec();
        data.extend(if is_little { b"II*\0" } else { b"MM\0*" });
        data.extend(long(8));
        data.extend(short(2));
        // A tag before the orientation: width, 32 bits.
        data.extend([&short(0x0100)[..], &short(4), &long(1), &long(640)].concat());
        data.extend(
            [
                &short(0x0112)[..],
                &short(3),
                &long(1),
                &short(value),
                &short(0),
            ]
            .concat(),
        );
        data
    }

    #[test]
    fn both_byte_orders_are_read() {
        for is_little in [false, true] {
            for value in 1..=8 {
                assert_eq!(
                    of_segment(&exif(is_little, value)),
                    u8::try_from(value).ok()
                );
            }
            for value in [0, 9, 256, 0x0600] {
                assert_eq!(of_segment(&exif(is_little, value)), None);
            }
        }
    }

    #[test]
    fn malformed_data_have_no_orientation() {
        let whole = exif(true, 6);
        for length in 0..whole.len() - 2 {
            assert_eq!(of_segment(&whole[..length]), None, "{length} bytes");
        }
        let mut far = whole.clone();
        far[10..14].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(of_segment(&far), None);
        let mut wrong = whole;
        wrong[6] = b'X';
        assert_eq!(of_segment(&wrong), None);
    }
}
