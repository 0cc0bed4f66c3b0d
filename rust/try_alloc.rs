//! Memory whose size comes from the data: it is had, or an error says what it was for.
//!
//! `vec!` and `with_capacity` end the process where the system gives nothing more.

use crate::Error;

/// The most pixels of a picture unless another limit is given; twice Pillow's warning level.
pub const MAX_PIXELS: usize = 178_956_970;

/// A vector of `count` equal values; `what` names it in the message.
///
/// # Errors
/// [`Error::Memory`] where there is no memory for them.
pub(crate) fn filled<T: Clone>(
    value: T,
    count: usize,
    what: impl FnOnce() -> String,
) -> Result<Vec<T>, Error> {
    let mut values = Vec::new();
    reserve(&mut values, count, what)?;
    values.resize(count, value);
    Ok(values)
}

/// Make room for `more` values behind those that are there.
///
/// # Errors
/// As [`filled`].
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

/// Ask whether so many bytes could be had, for work of other crates that take them without asking.
///
/// # Errors
/// As [`filled`].
pub(crate) fn check(bytes: usize, what: impl FnOnce() -> String) -> Result<(), Error> {
    let mut asked_for = Vec::<u8>::new();
    reserve(&mut asked_for, bytes, what)?;
    // Without a use the compiler may leave the allocation out.
    std::hint::black_box(asked_for);
    Ok(())
}

/// Make room for a row of tokens of each of some boxes.
///
/// # Errors
/// As [`filled`].
pub(crate) fn reserve_rows(rows: &mut Vec<bool>, boxes: usize, tokens: usize) -> Result<(), Error> {
    reserve(rows, boxes.saturating_mul(tokens), || {
        format!("{boxes} boxes of {tokens} tokens; expected fewer boxes, or a smaller max_tokens")
    })
}

/// The pixels of one picture, in messages.
pub(crate) fn of_picture(height: usize, width: usize) -> impl Fn() -> String + Copy {
    move || {
        format!(
            "a picture of {height} x {width} pixels; expected a smaller picture, or fewer threads"
        )
    }
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
    fn what_there_is_no_memory_for_is_named() {
        assert_eq!(filled(7_u16, 3, String::new).unwrap(), [7; 3]);
        for error in [
            filled(0_u64, usize::MAX / 16, of_picture(3, 4)).unwrap_err(),
            // More bytes than can be counted.
            filled(0_u64, usize::MAX, of_picture(3, 4)).unwrap_err(),
            check(usize::MAX / 2, of_picture(3, 4)).unwrap_err(),
        ] {
            let message = error.to_string();
            assert!(
                message.contains(" bytes for a picture of 3 x 4 pixels; expected "),
                "{message}"
            );
        }
    }
}
