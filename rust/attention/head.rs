//! Forward pass of one head of one window or sample. The backward pass is in [`super::gradients`].
//!
//! A few queries are processed at a time; their scores stay in the L1 cache and are never stored.
//! Order of operations: queries are scaled, then multiplied with the keys; the bias is added, then
//! the mask; weights are the exponentials relative to the largest score, divided by their sum.

use super::lanes::Lanes;
use super::products::{PADDING, combine, scores};
use super::rows::{HeadRows, gather, load, transpose, write};
use super::softmax::{exponentials, log2};

/// Inputs of a head: n queries attend to m keys of width d.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    pub queries: usize,
    pub keys: usize,
    pub width: usize,
    pub query: HeadRows<'a>,
    pub key: HeadRows<'a>,
    pub value: HeadRows<'a>,
    /// (n, p) added to the scores, or null; p is `padded(m)`.
    pub bias: *const f32,
    /// (n, p) added after the bias, or null.
    pub mask: *const f32,
}

impl Head<'_> {
    /// Pointers to the bias and mask rows of a query, or null.
    ///
    /// # Safety
    /// The query exists.
    #[inline(always)]
    pub(super) unsafe fn added(&self, query: usize) -> [*const f32; 2] {
        let place = query * padded(self.keys);
        [self.bias, self.mask].map(|first| {
            if first.is_null() {
                first
            } else {
                // SAFETY: as for the caller.
                unsafe { first.add(place) }
            }
        })
    }
}

/// Key elements per block; keys and values fit in part of the L2 cache.
const AT_ONCE: usize = 144 * 64;

/// Keys per block, for blocks of equal size.
fn keys_at_once(keys: usize, width: usize, may_be_parted: bool) -> usize {
    if !may_be_parted || keys * width <= AT_ONCE {
        return keys;
    }
    padded(keys.div_ceil((keys * width).div_ceil(AT_ONCE)))
}

/// Round a number of keys up to whole registers.
pub(super) fn padded(keys: usize) -> usize {
    keys.next_multiple_of(PADDING)
}

/// Scratch buffers of a thread.
#[derive(Default)]
pub(super) struct HeadScratch(Vec<CacheLine>);

/// A cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct CacheLine(#[allow(dead_code)] [f32; 16]);

impl HeadScratch {
    /// Uninitialized buffers of at least these sizes, each aligned to a cache line.
    pub(super) fn parts<const N: usize>(&mut self, sizes: [usize; N]) -> [*mut f32; N] {
        let lines = sizes.map(|size| size.div_ceil(16));
        let total = lines.iter().sum();
        if self.0.len() < total {
            self.0.resize(total, CacheLine([0.0; 16]));
        }
        let mut first = 0;
        lines.map(|count| {
            let part = self.0[first..].as_mut_ptr().cast();
            first += count;
            part
        })
    }
}

/// Compute the output of the queries into `read`; unless null, `sums` gets the base-2 logarithm of
/// each query's sum of exponentials.
///
/// Without bias and mask, blocks of keys are combined with all queries (online softmax), so that
/// the data of a block stays in the caches.
///
/// # Safety
/// The processor supports the instructions of the lanes. Rows hold `width` elements, a multiple of
/// [`PADDING`]; no other thread writes what is read or accesses what is written.
#[inline(always)]
pub(super) unsafe fn forward<L: Lanes, const R: usize>(
    head: &Head,
    read: &HeadRows,
    sums: *mut f32,
    space: &mut HeadScratch,
) {
    let (n, d) = (head.queries, head.width);
    let is_plain = head.bias.is_null() && head.mask.is_null();
    let at_once = keys_at_once(head.keys, d, is_plain);
    let is_whole = at_once >= head.keys;
    let [
        turned_keys,
        values,
        query,
        weights,
        out,
        all_largest,
        all_totals,
        all_out,
    ] = space.parts([
        d * padded(at_once),
        at_once * d,
        R * d,
        R * padded(at_once),
        R * d,
        n,
        n,
        if is_whole { 0 } else { n * d },
    ]);
    let mut begin = 0;
    // SAFETY: the buffers have the sizes that the functions require.
    unsafe {
        // At least once: without keys the output is 0.
        loop {
            let m = at_once.min(head.keys - begin);
            let p = padded(m);
            let (key, value) = (head.key.from(begin), head.value.from(begin));
            transpose(&key, m, d, p, turned_keys);
            gather::<L>(&value, m, d, 1.0, values);
            let mut first = 0;
            while first < n {
                let rows = R.min(n - first);
                load::<L, R>(&head.query, first, rows, d, scale(d), query);
                let next = first + R..first + 2 * R;
                head.query.prefetch(next.clone(), n, d);
                read.prefetch(next, n, d);
                if !is_whole {
                    let next = at_once + first * at_once / n..at_once + (first + R) * at_once / n;
                    key.prefetch_apart(next.clone(), head.keys - begin, d);
                    value.prefetch_apart(next, head.keys - begin, d);
                }
                scores::<L, R>(query, turned_keys, d, p, weights);
                let added = head.added(first);
                let (largest, total) = exponentials::<L, R>(weights, rows, (m, p), added);
                combine::<L, R>(weights, values, (m, d, p), out);
                for r in 0..rows {
                    let i = first + r;
                    let (own, so_far) = (out.add(r * d), all_out.add(i * d));
                    let (largest_so_far, total_so_far) = (all_largest.add(i), all_totals.add(i));
                    if begin == 0 {
                        *largest_so_far = largest[r].first();
                        *total_so_far = total[r].first();
                        if is_whole {
                            finish::<L>(read.row(i), own, d, *total_so_far);
                        } else {
                            write::<L>((so_far, false), own, d, 1.0);
                        }
                    } else {
                        let before = (largest_so_far, total_so_far, so_far);
                        join::<L>(before, (largest[r], total[r], own), d);
                    }
                }
                first += R;
            }
            begin += at_once;
            if begin >= head.keys {
                break;
            }
        }
        for i in 0..n {
            if !is_whole {
                finish::<L>(read.row(i), all_out.add(i * d), d, *all_totals.add(i));
            }
        }
        if !sums.is_null() {
            for i in 0..n {
                // Rounded once: its error affects every weight. Without keys the largest score is
                // -inf, and so is the sum.
                let largest = f64::from(*all_largest.add(i)) * std::f64::consts::LOG2_E;
                #[allow(clippy::cast_possible_truncation)]
                let sum = (largest + f64::from(log2(*all_totals.add(i)))) as f32;
                *sums.add(i) = sum;
            }
        }
    }
}

/// Write the output of a query, unless it is padding: 0 without keys.
#[inline(always)]
unsafe fn finish<L: Lanes>(
    (to, is_padded): (*mut f32, bool),
    from: *const f32,
    d: usize,
    total: f32,
) {
    if is_padded {
        return;
    }
    let factor = if total == 0.0 { 0.0 } else { 1.0 / total };
    // SAFETY: as for the caller.
    unsafe { write::<L>((to, false), from, d, factor) };
}

/// Add the output of a block of keys to that of the blocks before, each relative to its own largest
/// score.
#[inline(always)]
unsafe fn join<L: Lanes>(
    (largest_before, total_before, before): (*mut f32, *mut f32, *mut f32),
    (largest, total, own): (L, L, *const f32),
    d: usize,
) {
    // SAFETY: as for the caller.
    unsafe {
        let before_it = L::splat(*largest_before);
        let new = largest.max(before_it);
        let (factor_before, factor) = (before_it.subtract(new).exp(), largest.subtract(new).exp());
        let sum = total.multiply(factor);
        *largest_before = new.first();
        *total_before = L::splat(*total_before)
            .multiply_add(factor_before, sum)
            .first();
        let mut k = 0;
        while k < d {
            let added = L::load(own.add(k)).multiply(factor);
            let sum = L::load(before.add(k)).multiply_add(factor_before, added);
            sum.store(before.add(k));
            k += L::WIDTH;
        }
    }
}

/// Scale of the queries.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)] // Widths are small.
pub(super) fn scale(width: usize) -> f32 {
    (1.0 / (width as f64).sqrt()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_buffers_are_aligned_and_disjoint() {
        let mut space = HeadScratch::default();
        let [first, none, second] = space.parts([17, 0, 3]);
        assert_eq!(first.addr() % 64, 0);
        assert_eq!(none.addr() - first.addr(), 2 * 64);
        assert_eq!(second, none);
    }
}
