//! Memory layout and data type of image batches.

use crate::error::named;

/// Memory layout of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// (3, height, width): planar.
    Chw,
    /// (height, width, 3): interleaved.
    Hwc,
}

named!(Layout, "layout", [Chw = "chw", Hwc = "hwc"]);

/// Data type of the pixel values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// float32.
    Float32,
    /// float16, rounded from float32 to nearest even.
    Float16,
    /// bfloat16, rounded from float32 to nearest even.
    BFloat16,
    /// uint8, the original byte without normalization.
    Uint8,
}

named!(
    Dtype,
    "dtype",
    [
        Float32 = "float32",
        Float16 = "float16",
        BFloat16 = "bfloat16",
        Uint8 = "uint8"
    ]
);

impl Dtype {
    /// Bytes per value.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::Float32 => 4,
            Self::Float16 | Self::BFloat16 => 2,
            Self::Uint8 => 1,
        }
    }

    /// Encode a value; unused bytes are 0.
    pub(crate) fn stored(self, byte: u8, value: f32) -> [u8; 4] {
        let two = |bits: u16| {
            let [low, high] = bits.to_ne_bytes();
            [low, high, 0, 0]
        };
        match self {
            Self::Float32 => value.to_ne_bytes(),
            Self::Float16 => two(half_precision(value)),
            Self::BFloat16 => two(upper_half(value)),
            Self::Uint8 => [byte, 0, 0, 0],
        }
    }
}

/// Convert to bfloat16, rounding to nearest even.
#[allow(clippy::cast_possible_truncation)] // The rest has 16 bits.
fn upper_half(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) as u16
}

/// Convert to float16, rounding to nearest even.
#[allow(clippy::cast_possible_truncation)] // The rest has 16 bits.
fn half_precision(value: f32) -> u16 {
    let bits = value.to_bits();
    let (sign, size) = ((bits >> 16 & 0x8000) as u16, bits & 0x7FFF_FFFF);
    let rounded = |bits: u32, dropped: u32| {
        let half = (1 << (dropped - 1)) - 1 + (bits >> dropped & 1);
        ((bits + half) >> dropped) as u16
    };
    sign | if value.is_nan() {
        0x7E00 | (size >> 13 & 0x3FF) as u16
    } else if size >= 0x4780_0000 {
        // 2^16 or more.
        0x7C00
    } else if size >= 0x3880_0000 {
        // 2^-14 or more; rounding up may give infinity, whose bits follow those of the largest
        // number.
        rounded(size - 0x3800_0000, 13)
    } else if size >= 0x3300_0000 {
        // Subnormal, in steps of 2^-24; 2^-25 is the smallest value that may round up to one.
        let exponent = size >> 23;
        rounded(size & 0x7F_FFFF | 0x80_0000, 126 - exponent)
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known() {
        assert_eq!(Layout::from_name("hwc").unwrap(), Layout::Hwc);
        assert!(Layout::from_name("nchw").is_err());
        for (name, bytes) in [
            ("float32", 4),
            ("float16", 2),
            ("bfloat16", 2),
            ("uint8", 1),
        ] {
            let dtype = Dtype::from_name(name).unwrap();
            assert_eq!((dtype.bytes(), dtype.name()), (bytes, name));
        }
        assert!(Dtype::from_name("float64").is_err());
    }

    #[test]
    fn halves_are_rounded_to_nearest_with_ties_to_even() {
        let step = 2_f32.powi(-10);
        for (value, bits) in [
            (0.0, 0),
            (-0.0, 0x8000),
            (1.0, 0x3C00),
            (1.0 + step * 0.5, 0x3C00),
            (1.0 + step * 1.5, 0x3C02),
            (1.0 + step * 0.51, 0x3C01),
            (-2.0, 0xC000),
            (65504.0, 0x7BFF),
            (65519.0, 0x7BFF),
            (65520.0, 0x7C00),
            (1e9, 0x7C00),
            (f32::INFINITY, 0x7C00),
            (2_f32.powi(-14), 0x0400),
            (2_f32.powi(-14) * (1.0 - step * 0.25), 0x0400),
            (2_f32.powi(-24), 1),
            (2_f32.powi(-25), 0),
            (2_f32.powi(-25) * 1.001, 1),
            (2_f32.powi(-24) * 2.5, 2),
            (1e-12, 0),
        ] {
            assert_eq!(half_precision(value), bits, "{value}");
        }
        assert!(half_precision(f32::NAN) > 0x7C00);
    }

    #[test]
    fn upper_halves_are_rounded_to_nearest_with_ties_to_even() {
        for (value, bits) in [
            (1.0, 0x3F80),
            (1.0 + 2_f32.powi(-8), 0x3F80),
            (1.0 + 3.0 * 2_f32.powi(-8), 0x3F82),
            (-1.0 - 2_f32.powi(-8) * 1.01, 0xBF81),
            (f32::MAX, 0x7F80),
        ] {
            assert_eq!(upper_half(value), bits, "{value}");
        }
        assert!(upper_half(f32::NAN) > 0x7F80);
    }
}
