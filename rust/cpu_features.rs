//! SIMD instruction sets used by the hand-written loops. They all produce the same bytes.

use crate::Error;
use crate::error::by_name;

/// A SIMD instruction set, ordered by width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Instructions {
    /// The baseline of the compilation target.
    Scalar,
    /// NEON (128 bits), available on every 64-bit ARM processor.
    Neon,
    /// AVX2, FMA and F16C (256 bits).
    Avx2,
    /// AVX-512 (512 bits) with VBMI (byte shuffles) and VNNI (dot products of bytes).
    Avx512,
}

const NAMES: [(Instructions, &str); 4] = [
    (Instructions::Scalar, "scalar"),
    (Instructions::Neon, "neon"),
    (Instructions::Avx2, "avx2"),
    (Instructions::Avx512, "avx512"),
];

impl Instructions {
    /// The widest set that this processor supports.
    #[must_use]
    pub fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let wide = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vbmi")
                && is_x86_feature_detected!("avx512vnni");
            let narrow = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            if wide && narrow {
                return Self::Avx512;
            }
            if narrow {
                return Self::Avx2;
            }
        }
        if cfg!(target_arch = "aarch64") {
            return Self::Neon;
        }
        Self::Scalar
    }

    /// True if the processor supports this set.
    fn is_here(self) -> bool {
        // No processor has both x86 and ARM sets.
        self <= Self::best() && (self != Self::Neon || cfg!(target_arch = "aarch64"))
    }

    /// Look up an instruction set by name.
    ///
    /// # Errors
    /// [`Error::Argument`] if the name is unknown or this processor lacks the instruction set.
    pub fn from_name(name: &str) -> Result<Self, Error> {
        let found = by_name("instructions", name, &NAMES)?;
        if !found.is_here() {
            let reason = format!("'{name}' is not supported by this processor");
            return Err(Error::argument("instructions", reason));
        }
        Ok(found)
    }

    /// All sets that this processor supports, narrowest first.
    pub fn available() -> impl Iterator<Item = Self> {
        NAMES
            .map(|(set, _)| set)
            .into_iter()
            .filter(|set| set.is_here())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_found_by_name_if_the_processor_has_them() {
        assert_eq!(
            Instructions::from_name("scalar").unwrap(),
            Instructions::Scalar
        );
        assert!(Instructions::from_name("sse").is_err());
        let available: Vec<_> = Instructions::available().collect();
        assert_eq!(available[0], Instructions::Scalar);
        assert_eq!(available.last(), Some(&Instructions::best()));
        for (set, name) in NAMES {
            assert_eq!(
                Instructions::from_name(name).is_ok(),
                available.contains(&set)
            );
        }
    }
}
