//! What becomes of a picked token.

/// Model input for a picked token.
pub(super) enum Corruption {
    Mask,
    Random,
    Keep,
}

/// The 80/10/10 rule, for `uniform` in [0, 1).
#[inline]
pub(super) fn corruption(uniform: f64) -> Corruption {
    if uniform >= 0.9 {
        Corruption::Keep
    } else if uniform < 0.8 {
        Corruption::Mask
    } else {
        Corruption::Random
    }
}
