//! Masking for the masked-language-modeling loss (MLM).

/// Label of a token that is not asked for.
pub const IGNORED_LABEL: i64 = -100;
