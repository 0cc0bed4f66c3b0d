//! Masks that are stored each on their own.

use std::fmt;

use crate::Error;
use crate::decode_limits::{DecodeLimits, MAX_PIXELS};
use crate::masks::planes::{ColumnPlane, Planes};
use crate::masks::polygon::{self, Polygons};
use crate::masks::rle::Rle;
use crate::masks::sample_grid::SampleGrid;
use crate::masks::{FIELD, SharedBits, problem};

/// Maximum total size of the masks of an image after its transform, in bytes.
pub(crate) const MAX_BYTES: usize = 1 << 27;

/// A mask as it is stored.
#[derive(Clone)]
pub enum StoredMask {
    /// COCO's run lengths.
    Rle(Rle),
    /// The union of polygons.
    Polygons(Polygons),
    /// Rows of bits, each padded to whole bytes.
    Packed {
        /// `height * ceil(width / 8)` bytes.
        bits: SharedBits,
        /// (height, width) in pixels.
        size: (usize, usize),
    },
}

impl fmt::Debug for StoredMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rle(rle) => write!(f, "Rle({:?})", rle.size),
            Self::Polygons(polygons) => write!(f, "Polygons({})", polygons.rings.len()),
            Self::Packed { size, .. } => write!(f, "Packed({size:?})"),
        }
    }
}

/// Check the number of masks of `size` = (height, width) after the transform.
pub(crate) fn check_bytes(count: usize, size: (usize, usize)) -> Result<(), Error> {
    let bytes = count.saturating_mul(Planes::bytes_of(size));
    if bytes <= MAX_BYTES {
        return Ok(());
    }
    let (height, width) = size;
    Err(Error::field(
        FIELD,
        format!(
            "{count} masks of {height} x {width} pixels take {bytes} bytes; expected at most \
             {MAX_BYTES}"
        ),
    ))
}

/// Buffers of a thread, reused between images.
#[derive(Default)]
pub struct MaskScratch {
    columns: ColumnPlane,
    crossings: Vec<u64>,
}

impl StoredMask {
    /// Check what can be checked without decoding, for an image of `size` = (height, width) pixels
    /// as stored.
    pub(crate) fn check(&self, size: (usize, usize)) -> Result<(), String> {
        let own = match self {
            Self::Rle(rle) => rle.size,
            Self::Packed { size, .. } => *size,
            Self::Polygons(polygons) => return polygons.check(size),
        };
        if own != size {
            return Err(format!(
                "has {} x {} pixels (height x width), but the image has {} x {}",
                own.0, own.1, size.0, size.1
            ));
        }
        if let Self::Packed { bits, .. } = self {
            let (found, expected) = ((**bits).as_ref().len(), size.0 * size.1.div_ceil(8));
            if found != expected {
                return Err(format!("has {found} bytes of bits; expected {expected}"));
            }
        }
        Ok(())
    }
}

/// Decode the masks of a stored image of `size` = (height, width). Each is a plane of the result.
///
/// # Errors
/// [`Error::Field`] if a mask is invalid or of another size; it names the mask. Also if the image
/// or the masks are too large.
pub fn decode(masks: &[StoredMask], size: (usize, usize)) -> Result<Planes, Error> {
    DecodeLimits::of_pixels(MAX_PIXELS).check_size(size.0, size.1)?;
    check_bytes(masks.len(), size)?;
    for (index, mask) in masks.iter().enumerate() {
        mask.check(size).map_err(|reason| problem(index, reason))?;
    }
    sample(masks, &SampleGrid::whole(size), &mut MaskScratch::default())
}

/// Sample masks that [`StoredMask::check`] accepts. Each is a plane of the result.
pub(crate) fn sample(
    masks: &[StoredMask],
    grid: &SampleGrid,
    scratch: &mut MaskScratch,
) -> Result<Planes, Error> {
    let mut planes = Planes::new(masks.len(), grid.padded)?;
    let mut budget = polygon::MAX_CROSSINGS;
    for (index, mask) in masks.iter().enumerate() {
        let named = |reason: String| problem(index, reason);
        let columns = &mut scratch.columns;
        match mask {
            StoredMask::Rle(rle) => {
                columns.clear(grid);
                rle.draw(grid, columns).map_err(named)?;
                columns.write(planes.get_mut(index), grid);
            }
            StoredMask::Polygons(polygons) => {
                columns.clear(grid);
                polygons
                    .draw(grid, columns, &mut scratch.crossings, &mut budget)
                    .map_err(named)?;
                columns.write(planes.get_mut(index), grid);
            }
            StoredMask::Packed { bits, size } => {
                planes.sample_packed(index, (**bits).as_ref(), size.1, grid);
            }
        }
    }
    Ok(planes)
}
