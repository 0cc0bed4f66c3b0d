//! Decoding of a file, from headers and scans to rows.

use super::errors::broken;
use super::huffman::{self, TableSpec};
use super::markers::{Markers, Reader, Stop};
use super::mcu_rows::Target;
use super::multi_scan;
use super::options::{Request, Status};
use super::sequential::SingleScanDecode;
use super::state::{DecoderState, Output};
use crate::Error;

/// An image whose decoding has started.
pub(super) enum StartedDecode<'p> {
    /// A single scan, still to be decoded.
    SingleScan(Box<SingleScanDecode<'p>>),
    /// An image that is already decoded.
    Done(Status),
}

impl DecoderState {
    /// Decode an image, or start it if [`SingleScanDecode`] can decode it.
    pub(super) fn begin<'p>(
        &'p mut self,
        bytes: &'p [u8],
        request: &Request,
        target: Target<'p>,
    ) -> Result<StartedDecode<'p>, Error> {
        let mut reader = Reader { bytes, position: 0 };
        let mut markers = Markers::default();
        let frame = markers.read_frame(&mut reader)?.clone();
        let limits = &request.limits;
        limits.check_size(frame.height, frame.width)?;
        let Stop::Scan(scan) = markers.read_to_scan(&mut reader, None)? else {
            return Err(broken("no scans found"));
        };
        if !frame.is_progressive {
            set_standard_tables(&mut markers);
        }
        self.rows.reset(&frame, 8 / request.scale.divisor());
        let mut output = Output {
            space: markers.color_space(),
            end: request.stop_row.unwrap_or(usize::MAX).min(self.rows.height),
            target,
        };
        if let Target::Image(pixels) = &output.target {
            let expected = output.end * self.rows.width * 3;
            if pixels.len() != expected {
                let reason = format!("{} bytes; expected {expected}", pixels.len());
                return Err(Error::argument("pixels", reason));
            }
        }
        if !frame.is_progressive && scan.components.len() == frame.components.len() {
            let scan = SingleScanDecode::new(self, frame, &scan, markers, reader, output)?;
            Ok(StartedDecode::SingleScan(Box::new(scan)))
        } else {
            let bytes = multi_scan::coefficient_bytes(&frame).saturating_add(request.output_bytes);
            limits.check_bytes((frame.height, frame.width), bytes)?;
            let warnings = multi_scan::decode(self, &frame, scan, markers, reader, &mut output)?;
            Ok(StartedDecode::Done(warnings.status()))
        }
    }
}

/// Set the default tables, which Motion JPEG omits.
fn set_standard_tables(markers: &mut Markers) {
    let dc = [huffman::DC_LUMINANCE, huffman::DC_CHROMINANCE];
    let ac = [huffman::AC_LUMINANCE, huffman::AC_CHROMINANCE];
    for (slots, standard) in [(&mut markers.dc, dc), (&mut markers.ac, ac)] {
        for (slot, table) in slots.iter_mut().zip(standard) {
            slot.get_or_insert_with(|| TableSpec::of(table));
        }
    }
}
