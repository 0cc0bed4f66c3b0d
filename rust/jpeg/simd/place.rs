//! Storing of coefficients.

use crate::jpeg::block::{Block, NATURAL_ORDER_FROM_END};

/// Store a coefficient, given the number of coefficients that remain in zigzag order; past the end,
/// it overwrites the last one.
#[inline]
pub(in crate::jpeg) fn place(block: &mut Block, places_left: i8, value: i16) {
    let position = usize::from(NATURAL_ORDER_FROM_END[usize::from(places_left as u8)]);
    // SAFETY: every entry of the table is below 64, as asserted below. A mask instead costs a few
    // percent of a whole image, since this is done for every coefficient.
    unsafe { *block.get_unchecked_mut(position) = value };
}

const _: () = {
    let mut at = 0;
    while at < NATURAL_ORDER_FROM_END.len() {
        assert!(NATURAL_ORDER_FROM_END[at] < 64);
        at += 1;
    }
};
