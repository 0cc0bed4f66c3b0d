//! Fallible allocation for sizes that depend on the data.
//!
//! `vec!` and `with_capacity` abort the process when memory is short; these functions return an
//! error that names the purpose of the memory.

use crate::Error;

/// Create a vector of `count` copies of a value; `what` describes it in the error.
pub(crate) fn filled<T: Clone>(
    value: T,
    count: usize,
    what: impl FnOnce() -> String,
) -> Result<Vec<T>, Error> {
    let mut values = with_capacity(count, what)?;
    values.resize(count, value);
    Ok(values)
}

/// Create an empty vector with room for `count` values.
pub(crate) fn with_capacity<T>(
    count: usize,
    what: impl FnOnce() -> String,
) -> Result<Vec<T>, Error> {
    let mut values = Vec::new();
    reserve(&mut values, count, what)?;
    Ok(values)
}

/// Reserve room for `more` values.
pub(crate) fn reserve<T>(
    values: &mut Vec<T>,
    more: usize,
    what: impl FnOnce() -> String,
) -> Result<(), Error> {
    values.try_reserve_exact(more).map_err(|_| Error::Memory {
        bytes: more.saturating_mul(size_of::<T>()),
        what: what(),
    })
}

/// Check that `bytes` can be allocated, for libraries that abort if an allocation fails.
pub(crate) fn check(bytes: usize, what: impl FnOnce() -> String) -> Result<(), Error> {
    // Otherwise, the compiler may remove the allocation.
    std::hint::black_box(with_capacity::<u8>(bytes, what)?);
    Ok(())
}

/// Reserve a row of tokens for each box.
pub(crate) fn reserve_rows(rows: &mut Vec<bool>, boxes: usize, tokens: usize) -> Result<(), Error> {
    reserve(rows, boxes.saturating_mul(tokens), || {
        format!("{boxes} boxes and {tokens} tokens; use fewer boxes or a smaller max_tokens")
    })
}

/// Describes an image's pixels in errors.
pub(crate) fn of_image(height: usize, width: usize) -> impl Fn() -> String + Copy {
    move || format!("an image of {height} x {width} pixels; use a smaller image or fewer threads")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_values_need_no_memory() {
        assert!(filled(0_u8, 0, String::new).unwrap().is_empty());
        assert!(check(0, String::new).is_ok());
    }

    #[test]
    fn failed_allocations_are_named() {
        assert_eq!(filled(7_u16, 3, String::new).unwrap(), [7; 3]);
        for error in [
            filled(0_u64, usize::MAX / 16, of_image(3, 4)).unwrap_err(),
            // More bytes than a usize can represent.
            filled(0_u64, usize::MAX, of_image(3, 4)).unwrap_err(),
            check(usize::MAX / 2, of_image(3, 4)).unwrap_err(),
        ] {
            let message = error.to_string();
            assert!(
                message.contains(" bytes for an image of 3 x 4 pixels; use "),
                "{message}"
            );
        }
    }
}
