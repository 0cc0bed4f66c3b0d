//! Which instructions of the processor the hand-written loops use; all of them give the same bytes.

use crate::Error;

/// A set of instructions; the later the wider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Instructions {
    /// What every processor has.
    Scalar,
    /// NEON, which every 64-bit ARM processor has: 128 bits.
    Neon,
    /// AVX2, FMA and F16C: 256 bits.
    Avx2,
    /// AVX-512 with VBMI (shuffles of single bytes) and VNNI (products of bytes, four at a time).
    Avx512,
}

/// Every set with its name.
const NAMES: [(Instructions, &str); 4] = [
    (Instructions::Scalar, "scalar"),
    (Instructions::Neon, "neon"),
    (Instructions::Avx2, "avx2"),
    (Instructions::Avx512, "avx512"),
];

impl Instructions {
    /// The widest set of the processor at hand.
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

    /// Whether the processor has the set.
    fn is_here(self) -> bool {
        // Of two kinds of processors neither has what the other has.
        self <= Self::best() && (self != Self::Neon || cfg!(target_arch = "aarch64"))
    }

    /// Find a set by name.
    ///
    /// # Errors
    /// [`Error::Argument`] for another name, and for a set that the processor does not have.
    pub fn from_name(name: &str) -> Result<Self, Error> {
        let found = NAMES.into_iter().find(|&(_, known)| known == name);
        let (found, _) = found.ok_or_else(|| {
            Error::argument(
                "instructions",
                format!("'{name}' is no set; expected 'scalar', 'neon', 'avx2' or 'avx512'"),
            )
        })?;
        if !found.is_here() {
            return Err(Error::argument(
                "instructions",
                format!("this processor does not have '{name}'"),
            ));
        }
        Ok(found)
    }

    /// Every set that the processor has, the narrowest first.
    pub fn available() -> impl Iterator<Item = Self> {
        NAMES
            .into_iter()
            .map(|(set, _)| set)
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
