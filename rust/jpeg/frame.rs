//! Image geometry: components, blocks and MCUs.

use super::errors::{broken, unsupported};
use crate::Error;

/// Maximum number of blocks per MCU allowed by the standard.
pub(super) const MAX_MCU_BLOCKS: usize = 10;

/// A component of the frame header, with derived sizes.
#[derive(Clone, Debug, Default)]
pub(super) struct Component {
    pub(super) id: u8,
    /// Sampling factors: blocks per MCU, horizontally and vertically.
    pub(super) h: usize,
    pub(super) v: usize,
    pub(super) quantization: usize,
    /// Number of blocks that contain pixels of the image.
    pub(super) blocks_wide: usize,
    pub(super) blocks_high: usize,
}

impl Component {
    pub(super) fn new(id: u8, h: u8, v: u8, quantization: u8) -> Self {
        Self {
            id,
            h: h.into(),
            v: v.into(),
            quantization: quantization.into(),
            ..Self::default()
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) is_progressive: bool,
    pub(super) components: Vec<Component>,
    pub(super) max_h: usize,
    pub(super) max_v: usize,
    /// Number of MCUs in an interleaved scan.
    pub(super) mcus_wide: usize,
    pub(super) mcus_high: usize,
}

/// A component of a scan and its table numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct ScanComponent {
    pub(super) index: usize,
    pub(super) dc: usize,
    pub(super) ac: usize,
}

#[derive(Clone, Debug)]
pub(super) struct Scan {
    pub(super) components: Vec<ScanComponent>,
    /// Spectral selection: first and last coefficient in zigzag order.
    pub(super) start: usize,
    pub(super) end: usize,
    /// Successive approximation: previous and current bit position.
    pub(super) high: u32,
    pub(super) low: u32,
}

impl Frame {
    /// Check the sampling factors and compute the derived sizes.
    pub(super) fn new(
        height: usize,
        width: usize,
        is_progressive: bool,
        mut components: Vec<Component>,
    ) -> Result<Self, Error> {
        if let ([only], false) = (components.as_mut_slice(), is_progressive) {
            // With a single component, an MCU is one block whatever the sampling factors.
            let are_valid = (1..=4).contains(&only.h) && (1..=4).contains(&only.v);
            if are_valid {
                (only.h, only.v) = (1, 1);
            }
        }
        let (mut max_h, mut max_v) = (1, 1);
        for component in &components {
            if !(1..=4).contains(&component.h) || !(1..=4).contains(&component.v) {
                return Err(broken(format!(
                    "sampling factors {} x {}; expected 1 to 4",
                    component.h, component.v
                )));
            }
            max_h = max_h.max(component.h);
            max_v = max_v.max(component.v);
        }
        for component in &mut components {
            if max_h % component.h != 0 || max_v % component.v != 0 {
                return Err(unsupported(format!(
                    "sampling factors {} x {}; expected divisors of {max_h} x {max_v}",
                    component.h, component.v
                )));
            }
            component.blocks_wide = (width * component.h).div_ceil(8 * max_h);
            component.blocks_high = (height * component.v).div_ceil(8 * max_v);
        }
        Ok(Self {
            height,
            width,
            is_progressive,
            mcus_wide: width.div_ceil(8 * max_h),
            mcus_high: height.div_ceil(8 * max_v),
            components,
            max_h,
            max_v,
        })
    }

    /// Check the limits of interleaved scans.
    pub(super) fn check_scan(&self, scan: &Scan) -> Result<(), Error> {
        let parts = scan.components.iter();
        let components = parts.filter_map(|part| self.components.get(part.index));
        let blocks: usize = components.map(|component| component.h * component.v).sum();
        if scan.components.len() > 1 && blocks > MAX_MCU_BLOCKS {
            let reason = format!("MCU has {blocks} blocks; expected at most {MAX_MCU_BLOCKS}");
            return Err(broken(reason));
        }
        Ok(())
    }
}
