//! One head of one window or one sample: from rows of queries, keys and values to what is read, and
//! back to their gradients.
//!
//! A few queries at a time; their scores stay in the innermost cache and are never written out.
//! Order of operations: queries are scaled, then multiplied with the keys, the bias is added, then
//! the mask; weights are the exponentials less the largest score, divided by their sum.

use super::lanes::Lanes;
use super::products::{PADDING, accumulate, combine, scores};
use super::rows::{Rows, gather, load, turn, write};
use super::softmax::{add, dot, exponentials, known_softmax_backward, log2, softmax_backward};

/// What is computed: n queries read m keys; d numbers each.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    pub queries: usize,
    pub keys: usize,
    pub width: usize,
    pub query: Rows<'a>,
    pub key: Rows<'a>,
    pub value: Rows<'a>,
    /// (n, p) to add to the scores, or null; p is `padded(m)`.
    pub bias: *const f32,
    /// The same once more.
    pub mask: *const f32,
}

impl Head<'_> {
    /// What is added to the scores from a query on: the bias and the mask, or null.
    ///
    /// # Safety
    /// There is such a query.
    #[inline(always)]
    unsafe fn added(&self, query: usize) -> [*const f32; 2] {
        let place = query * padded(self.keys);
        [self.bias, self.mask].map(|first| {
            if first.is_null() {
                first
            } else {
                // SAFETY: as of the caller.
                unsafe { first.add(place) }
            }
        })
    }
}

/// Gradients of a [`Head`]: the one that is given and those that are wanted.
#[derive(Clone, Copy)]
pub(super) struct Gradients<'a> {
    pub read: Rows<'a>,
    pub query: Rows<'a>,
    pub key: Rows<'a>,
    pub value: Rows<'a>,
    /// (n, p), where the gradients of the scores are added, or null.
    pub bias: *mut f32,
}

/// What the forward pass found of a [`Head`] without bias and mask.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    /// Logarithms in base 2 of the sums of exponentials: (n,).
    pub sums: *const f32,
    /// What was read.
    pub read: Rows<'a>,
}

/// Numbers of the keys that are taken at once: they and the values fill a part of the second cache.
const AT_ONCE: usize = 144 * 64;

/// Keys that are taken at once where they may be parted: about as many each time.
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

/// Memory that a thread computes in.
#[derive(Default)]
pub(super) struct Space(Vec<Line>);

/// A line of the cache.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[allow(dead_code)] [f32; 16]);

impl Space {
    /// Give uninitialised numbers, at least so many of each; each begins a line.
    fn parts<const N: usize>(&mut self, sizes: [usize; N]) -> [*mut f32; N] {
        let lines = sizes.map(|size| size.div_ceil(16));
        let total = lines.iter().sum();
        if self.0.len() < total {
            self.0.resize(total, Line([0.0; 16]));
        }
        let mut first = 0;
        lines.map(|count| {
            let part = self.0[first..].as_mut_ptr().cast();
            first += count;
            part
        })
    }
}

/// Compute what the queries read, and write it to `read`; where `sums` is not null it takes the
/// logarithm of each query's sum of exponentials, in base 2.
///
/// Without bias and mask a few keys at a time meet all queries, so that what belongs to those keys
/// stays in the caches; what the parts give is put together as they come.
///
/// # Safety
/// The processor has the instructions of the lanes. Rows hold `width` numbers, a multiple of
/// [`PADDING`]; no other thread writes what is read or touches what is written.
#[inline(always)]
pub(super) unsafe fn forward<L: Lanes, const R: usize>(
    head: &Head,
    read: &Rows,
    sums: *mut f32,
    space: &mut Space,
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
    // SAFETY: the parts have the sizes that the functions state.
    unsafe {
        // Once at least: without a key nothing is read.
        loop {
            let m = at_once.min(head.keys - begin);
            let p = padded(m);
            let (key, value) = (head.key.from(begin), head.value.from(begin));
            turn(&key, m, d, p, turned_keys);
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
                // Without a key the largest score is -inf, and so is the sum.
                let largest = *all_largest.add(i) * std::f32::consts::LOG2_E;
                *sums.add(i) = largest + log2(*all_totals.add(i));
            }
        }
    }
}

/// Write what a query reads, unless it is a padded one: 0 where there is no key.
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
    // SAFETY: as of the caller.
    unsafe { write::<L>((to, false), from, d, factor) };
}

/// Add what a query reads of some keys to what it reads of those before, each relative to its own
/// largest score.
#[inline(always)]
unsafe fn join<L: Lanes>(
    (largest_before, total_before, before): (*mut f32, *mut f32, *mut f32),
    (largest, total, own): (L, L, *const f32),
    d: usize,
) {
    // SAFETY: as of the caller.
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

/// Compute the gradients; weights are computed anew, for a few queries at a time.
///
/// # Safety
/// As [`forward`].
#[inline(always)]
pub(super) unsafe fn backward<L: Lanes, const R: usize>(
    head: &Head,
    gradients: &Gradients,
    known: Option<&Known>,
    space: &mut Space,
) {
    let (m, d, p) = (head.keys, head.width, padded(head.keys));
    let [
        turned_keys,
        keys,
        turned_values,
        of_keys,
        of_values,
        query,
        grad,
        weights,
        of_scores,
        out,
    ] = space.parts([
        d * p,
        m * d,
        d * p,
        m * d,
        m * d,
        R * d,
        R * d,
        R * p,
        R * p,
        R * d,
    ]);
    // SAFETY: the parts have the sizes that the functions state.
    unsafe {
        turn(&head.key, m, d, p, turned_keys);
        turn(&head.value, m, d, p, turned_values);
        gather::<L>(&head.key, m, d, 1.0, keys);
        of_keys.write_bytes(0, m * d);
        of_values.write_bytes(0, m * d);
        let mut first = 0;
        while first < head.queries {
            let rows = R.min(head.queries - first);
            load::<L, R>(&head.query, first, rows, d, scale(d), query);
            load::<L, R>(&gradients.read, first, rows, d, 1.0, grad);
            for rows in [&head.query, &gradients.read, &gradients.query] {
                rows.prefetch(first + R..first + 2 * R, head.queries, d);
            }
            // Long before they are needed, since sums across a register take their time.
            let mut deltas = [L::splat(0.0); R];
            if let Some(known) = known {
                known
                    .read
                    .prefetch(first + R..first + 2 * R, head.queries, d);
                for r in 0..rows {
                    deltas[r] = dot::<L>(grad.add(r * d), known.read.row(first + r).0, d);
                }
            }
            scores::<L, R>(query, turned_keys, d, p, weights);
            scores::<L, R>(grad, turned_values, d, p, of_scores);
            if let Some(known) = known {
                for r in 0..rows {
                    let (weights, of_scores) = (weights.add(r * p), of_scores.add(r * p));
                    let less = L::splat(natural(*known.sums.add(first + r)));
                    known_softmax_backward(weights, of_scores, p, |_| (less, deltas[r]));
                }
            } else {
                let added = head.added(first);
                let (_, total) = exponentials::<L, R>(weights, rows, (m, p), added);
                softmax_backward::<L, R>(weights, total, of_scores, p, rows);
            }
            // Rows that are none have no weights, whatever the keys hold.
            weights.add(rows * p).write_bytes(0, (R - rows) * p);
            of_scores.add(rows * p).write_bytes(0, (R - rows) * p);
            if !gradients.bias.is_null() {
                add::<L>(gradients.bias.add(first * p), of_scores, rows * p);
            }
            combine::<L, R>(of_scores, keys, (m, d, p), out);
            accumulate::<L, R>(weights, grad, (m, d, p), of_values);
            accumulate::<L, R>(of_scores, query, (m, d, p), of_keys);
            for r in 0..rows {
                let to = gradients.query.row(first + r);
                write::<L>(to, out.add(r * d), d, scale(d));
            }
            first += R;
        }
        for j in 0..m {
            write::<L>(gradients.key.row(j), of_keys.add(j * d), d, 1.0);
            write::<L>(gradients.value.row(j), of_values.add(j * d), d, 1.0);
        }
    }
}

/// The same for a few keys at a time, where there are more of them than queries: keys, values and
/// their gradients, which do not fit into the caches, are touched once.
///
/// # Safety
/// As [`forward`]; the head has no bias and no mask.
#[inline(always)]
pub(super) unsafe fn backward_by_keys<L: Lanes, const R: usize>(
    head: &Head,
    gradients: &Gradients,
    known: &Known,
    space: &mut Space,
) {
    let (n, d, p) = (head.queries, head.width, padded(head.queries));
    let [
        turned_queries,
        queries,
        turned_grads,
        grads,
        of_queries,
        less,
        deltas,
        key,
        value,
        weights,
        of_scores,
        out,
    ] = space.parts([
        d * p,
        n * d,
        d * p,
        n * d,
        n * d,
        p,
        p,
        R * d,
        R * d,
        R * p,
        R * p,
        R * d,
    ]);
    // SAFETY: the parts have the sizes that the functions state.
    unsafe {
        gather::<L>(&head.query, n, d, scale(d), queries);
        gather::<L>(&gradients.read, n, d, 1.0, grads);
        turn(&Rows::packed(queries, d), n, d, p, turned_queries);
        turn(&Rows::packed(grads, d), n, d, p, turned_grads);
        of_queries.write_bytes(0, n * d);
        // What stands behind the last query is finite, and is not used.
        less.write_bytes(0, p);
        deltas.write_bytes(0, p);
        for i in 0..n {
            *less.add(i) = natural(*known.sums.add(i));
            *deltas.add(i) = dot::<L>(grads.add(i * d), known.read.row(i).0, d).first();
        }
        let mut first = 0;
        while first < head.keys {
            let rows = R.min(head.keys - first);
            load::<L, R>(&head.key, first, rows, d, 1.0, key);
            load::<L, R>(&head.value, first, rows, d, 1.0, value);
            for rows in [&head.key, &head.value, &gradients.key, &gradients.value] {
                rows.prefetch_apart(first + R..first + 2 * R, head.keys, d);
            }
            scores::<L, R>(key, turned_queries, d, p, weights);
            scores::<L, R>(value, turned_grads, d, p, of_scores);
            for r in 0..rows {
                let (weights, of_scores) = (weights.add(r * p), of_scores.add(r * p));
                known_softmax_backward(weights, of_scores, p, |column| {
                    (L::load(less.add(column)), L::load(deltas.add(column)))
                });
            }
            of_scores.add(rows * p).write_bytes(0, (R - rows) * p);
            accumulate::<L, R>(of_scores, key, (n, d, p), of_queries);
            combine::<L, R>(of_scores, queries, (n, d, p), out);
            for r in 0..rows {
                write::<L>(gradients.key.row(first + r), out.add(r * d), d, 1.0);
            }
            combine::<L, R>(weights, grads, (n, d, p), out);
            for r in 0..rows {
                write::<L>(gradients.value.row(first + r), out.add(r * d), d, 1.0);
            }
            first += R;
        }
        for i in 0..n {
            write::<L>(gradients.query.row(i), of_queries.add(i * d), d, scale(d));
        }
    }
}

/// The natural logarithm of what a logarithm in base 2 is given of.
fn natural(log2: f32) -> f32 {
    log2 * std::f32::consts::LN_2
}

/// What queries are multiplied with.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)] // Widths are small.
fn scale(width: usize) -> f32 {
    (1.0 / (width as f64).sqrt()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_the_memory_begin_lines_and_do_not_overlap() {
        let mut space = Space::default();
        let [first, none, second] = space.parts([17, 0, 3]);
        assert_eq!(first.addr() % 64, 0);
        assert_eq!(none.addr() - first.addr(), 2 * 64);
        assert_eq!(second, none);
    }
}
