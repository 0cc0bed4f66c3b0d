//! Marker segments of a JPEG file.
//!
//! As in libjpeg-turbo, endless end markers (FF D9) are read past the end of the file, so that a
//! truncated header is an error in both.

use super::block::NATURAL_ORDER;
use super::errors::{broken, unsupported};
use super::frame::{Component, Frame, Scan, ScanComponent};
use super::huffman::TableSpec;
use crate::{Error, exif};

pub(super) const START_OF_IMAGE: u8 = 0xD8;
pub(super) const END_OF_IMAGE: u8 = 0xD9;
const START_OF_SCAN: u8 = 0xDA;
const QUANTIZATION: u8 = 0xDB;
const HUFFMAN: u8 = 0xC4;
const RESTART_INTERVAL: u8 = 0xDD;
const APP0: u8 = 0xE0;
const APP1: u8 = 0xE1;
const APP14: u8 = 0xEE;

/// Bytes with a read position; an end marker repeats after the last byte.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) position: usize,
}

impl Reader<'_> {
    fn byte(&mut self) -> u8 {
        let value = match self.bytes.get(self.position) {
            Some(&value) => value,
            None if (self.position - self.bytes.len()).is_multiple_of(2) => 0xFF,
            None => END_OF_IMAGE,
        };
        self.position += 1;
        value
    }

    fn word(&mut self) -> usize {
        let high = self.byte();
        usize::from(u16::from_be_bytes([high, self.byte()]))
    }

    /// True if bytes past the end have been read.
    pub(super) fn is_past_end(&self) -> bool {
        self.position > self.bytes.len()
    }

    /// Find the next marker, skipping other bytes.
    pub(super) fn next_marker(&mut self) -> u8 {
        loop {
            while self.byte() != 0xFF {}
            let mut code = self.byte();
            while code == 0xFF {
                code = self.byte();
            }
            if code != 0 {
                return code;
            }
        }
    }
}

/// Color space of the components, determined as in libjpeg-turbo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ColorSpace {
    Gray,
    YCbCr,
    Rgb,
    Cmyk,
    Ycck,
}

/// Contents of the markers read so far.
#[derive(Default)]
pub(super) struct Markers {
    pub(super) frame: Option<Frame>,
    /// In natural order.
    pub(super) quantization: [Option<[u16; 64]>; 4],
    pub(super) dc: [Option<TableSpec>; 4],
    pub(super) ac: [Option<TableSpec>; 4],
    /// In MCUs; zero if there are no restarts.
    pub(super) restart_interval: usize,
    pub(super) orientation: Option<u8>,
    saw_jfif: bool,
    adobe_transform: Option<u8>,
}

/// Why reading markers stopped.
pub(super) enum Stop {
    Scan(Scan),
    End,
}

/// Look up a Huffman or quantization table by number.
pub(super) fn table<'t, T>(
    kind: &str,
    tables: &'t [Option<T>; 4],
    number: usize,
) -> Result<&'t T, Error> {
    let found = tables.get(number).and_then(Option::as_ref);
    found.ok_or_else(|| broken(format!("{kind} table {number} is missing")))
}

impl Markers {
    /// Read markers up to the frame header.
    pub(super) fn read_frame(&mut self, reader: &mut Reader<'_>) -> Result<&Frame, Error> {
        start(reader)?;
        while self.frame.is_none() {
            let marker = reader.next_marker();
            match marker {
                START_OF_SCAN => return Err(broken("scan before the frame header")),
                END_OF_IMAGE => return Err(broken("no frame header")),
                _ => self.segment(marker, reader)?,
            }
        }
        self.frame.as_ref().ok_or_else(|| broken("no frame header"))
    }

    /// Read markers up to the next scan or the end, starting with `marker` if it was already read.
    pub(super) fn read_to_scan(
        &mut self,
        reader: &mut Reader<'_>,
        first: Option<u8>,
    ) -> Result<Stop, Error> {
        let mut marker = first.unwrap_or_else(|| reader.next_marker());
        loop {
            match marker {
                START_OF_SCAN => return self.scan(reader).map(Stop::Scan),
                END_OF_IMAGE => return Ok(Stop::End),
                _ => self.segment(marker, reader)?,
            }
            marker = reader.next_marker();
        }
    }

    fn segment(&mut self, marker: u8, reader: &mut Reader<'_>) -> Result<(), Error> {
        match marker {
            // Restart markers outside a scan and TEM have no payload.
            0x01 | 0xD0..=0xD7 => Ok(()),
            0xC0..=0xC2 => self.frame_header(marker, reader),
            0xC3 | 0xC5..=0xC7 => Err(unsupported(format!(
                "lossless or hierarchical coding (FF {marker:02X})"
            ))),
            0xC9..=0xCB | 0xCD..=0xCF => {
                Err(unsupported(format!("arithmetic coding (FF {marker:02X})")))
            }
            HUFFMAN => self.huffman_tables(reader),
            QUANTIZATION => self.quantization_tables(reader),
            RESTART_INTERVAL => {
                let length = reader.word();
                self.restart_interval = reader.word();
                check_length("DRI", length == 4)
            }
            0xCC => check_conditioning(reader),
            // DNL, APPn and COM.
            0xDC | 0xE0..=0xEF | 0xFE => {
                self.application(marker, reader);
                Ok(())
            }
            START_OF_IMAGE => Err(broken("duplicate start of image")),
            _ => Err(broken(format!("unknown marker FF {marker:02X}"))),
        }
    }

    fn frame_header(&mut self, marker: u8, reader: &mut Reader<'_>) -> Result<(), Error> {
        if self.frame.is_some() {
            return Err(broken("duplicate frame header"));
        }
        let length = reader.word();
        let precision = reader.byte();
        let height = reader.word();
        let width = reader.word();
        let count = usize::from(reader.byte());
        if height == 0 || width == 0 || count == 0 {
            return Err(broken(format!(
                "{height} x {width} pixels and {count} components; expected at least 1 of each"
            )));
        }
        check_length("SOF", length == 8 + 3 * count)?;
        if precision != 8 {
            let reason = format!("{precision} bits per sample; expected 8");
            return Err(unsupported(reason));
        }
        if !matches!(count, 1 | 3 | 4) {
            let reason = format!("{count} components; expected 1, 3 or 4");
            return Err(unsupported(reason));
        }
        let components = (0..count)
            .map(|_| {
                let id = reader.byte();
                let sampling = reader.byte();
                Component::new(id, sampling >> 4, sampling & 15, reader.byte())
            })
            .collect();
        self.frame = Some(Frame::new(height, width, marker == 0xC2, components)?);
        Ok(())
    }

    fn scan(&mut self, reader: &mut Reader<'_>) -> Result<Scan, Error> {
        let frame = self
            .frame
            .as_ref()
            .ok_or_else(|| broken("scan before the frame header"))?;
        let length = reader.word();
        let count = usize::from(reader.byte());
        check_length("SOS", (1..=4).contains(&count) && length == 6 + 2 * count)?;
        let mut components: Vec<ScanComponent> = Vec::with_capacity(count);
        for _ in 0..count {
            let id = reader.byte();
            let tables = reader.byte();
            let index = frame
                .components
                .iter()
                .position(|component| component.id == id)
                .filter(|&index| components.iter().all(|other| other.index != index))
                .ok_or_else(|| {
                    broken(format!(
                        "scan refers to component {id}, which is unknown or repeated"
                    ))
                })?;
            components.push(ScanComponent {
                index,
                dc: usize::from(tables >> 4),
                ac: usize::from(tables & 15),
            });
        }
        let (start, end, approximation) = (reader.byte(), reader.byte(), reader.byte());
        Ok(Scan {
            components,
            start: usize::from(start),
            end: usize::from(end),
            high: u32::from(approximation >> 4),
            low: u32::from(approximation & 15),
        })
    }

    fn huffman_tables(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        let mut left = reader.word().wrapping_sub(2);
        check_length("DHT", left < usize::from(u16::MAX))?;
        while left > 16 {
            let index = reader.byte();
            let mut spec = TableSpec::default();
            for count in &mut spec.counts {
                *count = reader.byte();
            }
            left -= 17;
            let symbols = spec.symbols();
            if symbols > 256 || symbols > left {
                return Err(broken(format!(
                    "Huffman table has too many symbols ({symbols})"
                )));
            }
            for value in spec.values.iter_mut().take(symbols) {
                *value = reader.byte();
            }
            left -= symbols;
            let tables = if index & 0x10 == 0 {
                &mut self.dc
            } else {
                &mut self.ac
            };
            let slot = tables.get_mut(usize::from(index & !0x10)).ok_or_else(|| {
                broken(format!("Huffman table index is {index}; expected 0 to 3"))
            })?;
            *slot = Some(spec);
        }
        check_length("DHT", left == 0)
    }

    fn quantization_tables(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        let mut left = reader.word().wrapping_sub(2);
        check_length("DQT", left < usize::from(u16::MAX))?;
        while left > 0 {
            let index = reader.byte();
            let is_wide = index >> 4 != 0;
            let mut table = [0; 64];
            for &position in NATURAL_ORDER.iter().take(64) {
                let value = if is_wide {
                    reader.word()
                } else {
                    usize::from(reader.byte())
                };
                if let (Some(entry), Ok(value)) =
                    (table.get_mut(usize::from(position)), value.try_into())
                {
                    *entry = value;
                }
            }
            let slot = self
                .quantization
                .get_mut(usize::from(index & 15))
                .ok_or_else(|| {
                    broken(format!(
                        "quantization table index is {}; expected 0 to 3",
                        index & 15
                    ))
                })?;
            *slot = Some(table);
            let length = if is_wide { 129 } else { 65 };
            check_length("DQT", left >= length)?;
            left -= length;
        }
        Ok(())
    }

    /// Parse the relevant application segments; skip the others.
    fn application(&mut self, marker: u8, reader: &mut Reader<'_>) {
        let length = reader.word().saturating_sub(2);
        let start = reader.position.min(reader.bytes.len());
        let end = (reader.position + length).min(reader.bytes.len());
        let data = reader.bytes.get(start..end).unwrap_or_default();
        match marker {
            APP0 if length >= 14 && data.starts_with(b"JFIF\0") => self.saw_jfif = true,
            APP14 if length >= 12 && data.starts_with(b"Adobe") => {
                self.adobe_transform = Some(data.get(11).copied().unwrap_or(0));
            }
            APP1 if self.orientation.is_none() => self.orientation = exif::of_segment(data),
            _ => {}
        }
        reader.position += length;
    }

    pub(super) fn color_space(&self) -> ColorSpace {
        let components = self
            .frame
            .as_ref()
            .map_or(&[][..], |frame| &frame.components);
        match components {
            [_] => ColorSpace::Gray,
            [_, _, _, _] => match self.adobe_transform {
                None | Some(0) => ColorSpace::Cmyk,
                Some(_) => ColorSpace::Ycck,
            },
            [first, second, third] if !self.saw_jfif => match self.adobe_transform {
                Some(0) => ColorSpace::Rgb,
                None if [first.id, second.id, third.id] == *b"RGB" => ColorSpace::Rgb,
                _ => ColorSpace::YCbCr,
            },
            _ => ColorSpace::YCbCr,
        }
    }
}

/// Read the start of image, which must come first.
pub(super) fn start(reader: &mut Reader<'_>) -> Result<(), Error> {
    if reader.byte() == 0xFF && reader.byte() == START_OF_IMAGE {
        Ok(())
    } else {
        Err(broken("file does not begin with a start of image (FF D8)"))
    }
}

/// Check and skip the conditioning of arithmetic coding.
fn check_conditioning(reader: &mut Reader<'_>) -> Result<(), Error> {
    let length = reader.word();
    let pairs = length.saturating_sub(2).div_ceil(2);
    for _ in 0..pairs {
        let (index, value) = (reader.byte(), reader.byte());
        if index >= 32 || (index < 16 && value & 15 > value >> 4) {
            let reason = format!("invalid conditioning {value} for arithmetic table {index}");
            return Err(broken(reason));
        }
    }
    check_length("DAC", length >= 2 && length.is_multiple_of(2))
}

fn check_length(segment: &str, is_right: bool) -> Result<(), Error> {
    if is_right {
        Ok(())
    } else {
        Err(broken(format!("{segment} segment has the wrong length")))
    }
}
