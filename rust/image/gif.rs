//! Decode the first frame of a GIF (crate `gif`) and place it on its canvas as Pillow does.

use gif::{ColorOutput, DecodeOptions, Frame};

use super::samples::Samples;
use crate::Error;
use crate::decode_limits::DecodeLimits;
use crate::image::AlphaUse;
use crate::try_alloc;

type Decoder<'a> = gif::Decoder<&'a [u8]>;

fn decoder(bytes: &[u8]) -> Result<Decoder<'_>, Error> {
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    options.read_info(bytes).map_err(|e| broken(&e))
}

/// Canvas (height, width), enlarged if the first frame exceeds it.
fn canvas(decoder: &mut Decoder<'_>) -> Result<(usize, usize), Error> {
    let (height, width) = (decoder.height(), decoder.width());
    let frame = decoder.next_frame_info().map_err(|e| broken(&e))?;
    let frame = frame.ok_or_else(|| Error::decode("GIF: no frames found"))?;
    let end = |start: u16, length: u16| usize::from(start) + usize::from(length);
    Ok((
        usize::from(height).max(end(frame.top, frame.height)),
        usize::from(width).max(end(frame.left, frame.width)),
    ))
}

pub(crate) fn size(bytes: &[u8]) -> Result<(usize, usize), Error> {
    canvas(&mut decoder(bytes)?)
}

/// Decode the first frame; transparent pixels are blended over the background, if there is one, or
/// get an alpha of 0 if alpha is kept.
pub(crate) fn decode(
    bytes: &[u8],
    limits: &DecodeLimits,
    alpha: AlphaUse,
) -> Result<Samples, Error> {
    let mut decoder = decoder(bytes)?;
    let (height, width) = canvas(&mut decoder)?;
    limits.check_size(height, width)?;
    let transparent = decoder
        .current_frame_info()
        .and_then(|frame| frame.transparent);
    let keeps_alpha = alpha == AlphaUse::Keep && transparent.is_some();
    let channels = if keeps_alpha { 4 } else { 3 };
    // The frame is inside the canvas, whose size was checked.
    let size = decoder.buffer_size();
    limits.check_bytes(
        (height, width),
        size.saturating_add(channels * height * width),
    )?;
    let what = try_alloc::of_image(height, width);
    let mut indices = try_alloc::filled(0, size, what)?;
    decoder
        .read_into_buffer(&mut indices)
        .map_err(|e| broken(&e))?;
    let frame = decoder
        .current_frame_info()
        .ok_or_else(|| Error::decode("GIF: no frames found"))?;
    let palette = frame.palette.as_deref().or(decoder.global_palette());
    let palette = palette.unwrap_or_default();
    let color = |index: u8| -> [u8; 3] {
        let place = 3 * usize::from(index);
        match (palette.get(place..place + 3), alpha) {
            (_, AlphaUse::Over(below)) if transparent == Some(index) => below,
            (Some(&[r, g, b]), _) => [r, g, b],
            // The index is past the end of the palette.
            _ => [0; 3],
        }
    };
    let canvas = Canvas {
        height,
        width,
        ground: transparent.unwrap_or(0),
    };
    let pixels = if keeps_alpha {
        canvas.paint(frame, &indices, |index| {
            let [r, g, b] = color(index);
            let opacity = if transparent == Some(index) {
                0
            } else {
                u8::MAX
            };
            [r, g, b, opacity]
        })?
    } else {
        canvas.paint(frame, &indices, color)?
    };
    Ok(Samples::new(height, width, channels, pixels))
}

/// Canvas of an animation, in pixels, and the palette index of what a frame leaves free.
struct Canvas {
    height: usize,
    width: usize,
    ground: u8,
}

impl Canvas {
    /// Copy a frame onto the canvas.
    fn paint<const N: usize>(
        &self,
        frame: &Frame<'_>,
        indices: &[u8],
        color: impl Fn(u8) -> [u8; N],
    ) -> Result<Vec<u8>, Error> {
        let (height, width) = (self.height, self.width);
        let what = try_alloc::of_image(height, width);
        let mut canvas = try_alloc::filled(color(self.ground), height * width, what)?;
        let (left, columns) = (usize::from(frame.left), usize::from(frame.width));
        if columns > 0 {
            let rows = canvas.chunks_exact_mut(width);
            let rows = rows.skip(usize::from(frame.top));
            for (row, indices) in rows.zip(indices.chunks_exact(columns)) {
                for (pixel, &index) in row.iter_mut().skip(left).zip(indices) {
                    *pixel = color(index);
                }
            }
        }
        Ok(canvas.into_flattened())
    }
}

fn broken(error: &gif::DecodingError) -> Error {
    Error::decode(format!("GIF: {error}"))
}
