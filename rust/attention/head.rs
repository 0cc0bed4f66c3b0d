//! Forward pass of one head of one window or sample; see [`super::gradients`] for its gradients.
//!
//! A few queries are processed at a time; their scores stay in the L1 cache and are never stored.
//! Order of operations: queries are scaled, then multiplied by the keys; the bias is added, then
//! the mask; weights are the exponentials relative to the largest score, divided by their sum.

use super::lanes::Lanes;
use super::products::{PADDING, PAIR, WIDE, multiply};
use super::rows::{HeadRows, load, transpose, write};
use super::softmax::{exponentials, log2};

/// Inputs of a head: n queries attend to m keys, with head dim d. In buffers, d is padded to w with
/// zeros.
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
    /// Bias and mask of the queries starting at `query`, or null.
    ///
    /// # Safety
    /// The query is below `queries`, and bias and mask have (n, p) elements.
    #[inline(always)]
    pub(super) unsafe fn added(&self, query: usize) -> [*const f32; 2] {
        let offset = query * padded(self.keys);
        [self.bias, self.mask].map(|first| {
            if first.is_null() {
                first
            } else {
                // SAFETY: the query exists, so its row is inside the (n, p) elements.
                unsafe { first.add(offset) }
            }
        })
    }
}

/// Maximum key elements per block, so that keys and values take only part of the L2 cache.
const BLOCK_ELEMENTS: usize = 144 * 64;

/// Round a number of keys, or a head dim, up to fill whole registers.
pub(super) fn padded(count: usize) -> usize {
    count.next_multiple_of(PADDING)
}

/// Scratch buffers of one thread.
#[derive(Default)]
pub(super) struct HeadScratch(Vec<CacheLine>);

/// One cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct CacheLine(#[allow(dead_code)] [f32; 16]);

impl HeadScratch {
    /// Return uninitialized buffers of at least these sizes, each aligned to a cache line.
    pub(super) fn parts<const N: usize>(&mut self, sizes: [usize; N]) -> [*mut f32; N] {
        let lines = sizes.map(|size| size.div_ceil(16));
        let total = lines.iter().sum();
        if self.0.len() < total {
            self.0.resize(total, CacheLine([0.0; 16]));
        }
        // One borrow for all parts: another would end the validity of the pointers before it.
        let mut next = self.0.as_mut_ptr();
        lines.map(|count| {
            let part = next.cast();
            next = next.wrapping_add(count);
            part
        })
    }
}

/// Compute the output of the queries and, unless null, the base-2 logsumexp of their scores.
///
/// Without bias and mask, the queries attend to one block of keys at a time (online softmax), so
/// that the data of a block stays in the caches.
///
/// # Safety
/// The processor supports the instructions of the lanes; all rows of the head exist with `width`
/// elements each, as do `out`'s for its queries; bias and mask are null or valid for (n, p)
/// elements, and `logsumexp` is null or valid for n; no other thread writes the inputs or accesses
/// the outputs.
#[inline(always)]
pub(super) unsafe fn forward<L: Lanes, const R: usize>(
    head: &Head,
    out: &HeadRows,
    logsumexp: *mut f32,
    scratch: &mut HeadScratch,
) {
    let (n, d, w) = (head.queries, head.width, padded(head.width));
    let is_plain = head.bias.is_null() && head.mask.is_null();
    let blocks = (head.keys * w).div_ceil(BLOCK_ELEMENTS);
    let block = if is_plain && blocks > 1 {
        // Blocks of the same size.
        padded(head.keys.div_ceil(blocks))
    } else {
        head.keys
    };
    let is_whole = block >= head.keys;
    let [bw, rw, rb] = [block * w, R * w, R * padded(block)];
    let nw = if is_whole { 0 } else { n * w };
    let parts = scratch.parts([d * padded(block), bw, rw, rb, rw, n, n, nw]);
    let [keys_t, values, query, weights, block_out, ..] = parts;
    let [.., all_largest, all_totals, all_out] = parts;
    let mut begin = 0;
    // SAFETY: the buffers are disjoint and as long as the functions require: m is at most `block`,
    // and p at most `padded(block)`. Rows below n and `begin + m` exist by the caller.
    unsafe {
        // Runs at least once: without keys the output is 0.
        loop {
            let m = block.min(head.keys - begin);
            let p = padded(m);
            let (key, value) = (head.key.skip(begin), head.value.skip(begin));
            transpose(&key, m, d, p, keys_t);
            load::<L>(&value, 0..m, m, d, 1.0, values);
            let mut first = 0;
            while first < n {
                let rows = R.min(n - first);
                load::<L>(&head.query, first..first + rows, R, d, scale(d), query);
                let next = first + R..first + 2 * R;
                head.query.prefetch(next.clone(), n, d);
                out.prefetch(next, n, d);
                if !is_whole {
                    let next = block + first * block / n..block + (first + R) * block / n;
                    key.prefetch_apart(next.clone(), head.keys - begin, d);
                    value.prefetch_apart(next, head.keys - begin, d);
                }
                multiply::<L, R, WIDE>((query, w), (keys_t, p), (weights, p), (d, p));
                let added = head.added(first);
                let (largest, total) = exponentials::<L, R>(weights, rows, (m, p), added);
                multiply::<L, R, PAIR>((weights, p), (values, w), (block_out, w), (m, w));
                for r in 0..rows {
                    let i = first + r;
                    let (own, sum) = (block_out.add(r * w), all_out.add(i * w));
                    let (largest_sum, total_sum) = (all_largest.add(i), all_totals.add(i));
                    if begin == 0 {
                        *largest_sum = largest[r].first();
                        *total_sum = total[r].first();
                        if is_whole {
                            finish::<L>(out.row(i), own, d, *total_sum);
                        } else {
                            write::<L>((sum, false), own, w, 1.0);
                        }
                    } else {
                        let before = (largest_sum, total_sum, sum);
                        join::<L>(before, (largest[r], total[r], own), w);
                    }
                }
                first += R;
            }
            begin += block;
            if begin >= head.keys {
                break;
            }
        }
        for i in 0..n {
            if !is_whole {
                finish::<L>(out.row(i), all_out.add(i * w), d, *all_totals.add(i));
            }
        }
        if !logsumexp.is_null() {
            for i in 0..n {
                // Rounded only once, since its error affects every weight. Without keys, the
                // largest score is -inf, and so is the logsumexp.
                let largest = f64::from(*all_largest.add(i)) * std::f64::consts::LOG2_E;
                #[allow(clippy::cast_possible_truncation)]
                let sum = (largest + f64::from(log2(*all_totals.add(i)))) as f32;
                *logsumexp.add(i) = sum;
            }
        }
    }
}

/// Write the output of a query (0 if there are no keys); skip padding.
///
/// # Safety
/// Same as for [`write`]; a padding row may be null.
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
    // SAFETY: the row is no padding, so it is valid for d elements by the caller.
    unsafe { write::<L>((to, false), from, d, factor) };
}

/// Merge the output of a block of keys into that of the preceding blocks; each is relative to its
/// own largest score. Both have w elements.
///
/// # Safety
/// The processor supports the instructions of the lanes; `before` and `own` are valid for w
/// elements, a multiple of [`PADDING`], and do not overlap; the other two pointers for one.
#[inline(always)]
unsafe fn join<L: Lanes>(
    (largest_before, total_before, before): (*mut f32, *mut f32, *mut f32),
    (largest, total, own): (L, L, *const f32),
    w: usize,
) {
    // SAFETY: a register from k on is inside the w elements, since its width divides w; the caller
    // guarantees the rest.
    unsafe {
        let old = L::splat(*largest_before);
        let new = largest.max(old);
        let (factor_before, factor) = (old.subtract(new).exp(), largest.subtract(new).exp());
        let sum = total.multiply(factor);
        *largest_before = new.first();
        *total_before = L::splat(*total_before)
            .multiply_add(factor_before, sum)
            .first();
        let mut k = 0;
        while k < w {
            let added = L::load(own.add(k)).multiply(factor);
            let sum = L::load(before.add(k)).multiply_add(factor_before, added);
            sum.store(before.add(k));
            k += L::WIDTH;
        }
    }
}

/// Scale applied to the queries.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)] // Head dims are small.
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
