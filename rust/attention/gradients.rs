//! Backward pass of one head: gradients of queries, keys and values.
//!
//! Attention weights are recomputed, so that nothing of the size of the scores is stored.

use super::head::{Head, HeadScratch, padded, scale};
use super::lanes::Lanes;
use super::products::{accumulate, combine, scores};
use super::rows::{HeadRows, gather, load, transpose, write};
use super::softmax::{add, dot, exponentials, known_softmax_backward, softmax_backward};

/// The gradient of the output of a [`Head`], and the gradients to compute.
#[derive(Clone, Copy)]
pub(super) struct Gradients<'a> {
    pub read: HeadRows<'a>,
    pub query: HeadRows<'a>,
    pub key: HeadRows<'a>,
    pub value: HeadRows<'a>,
    /// (n, p), to which the gradients of the scores are added, or null.
    pub bias: *mut f32,
}

/// Saved results of the forward pass of a [`Head`] without bias and mask.
#[derive(Clone, Copy)]
pub(super) struct SavedForward<'a> {
    /// Base-2 logarithms of the sums of exponentials: (n,).
    pub sums: *const f32,
    /// Output of the forward pass.
    pub read: HeadRows<'a>,
}

/// Compute the gradients: in blocks of keys if there are more keys than queries and the forward
/// pass was saved, otherwise in blocks of queries.
///
/// # Safety
/// As [`super::head::forward`]; with a saved forward pass the head has no bias and no mask.
#[inline(always)]
pub(super) unsafe fn backward<L: Lanes, const R: usize>(
    head: &Head,
    gradients: &Gradients,
    known: Option<&SavedForward>,
    space: &mut HeadScratch,
) {
    // SAFETY: as for the caller.
    unsafe {
        match known {
            Some(known) if head.keys > head.queries => {
                backward_by_keys::<L, R>(head, gradients, known, space);
            }
            _ => backward_by_queries::<L, R>(head, gradients, known, space),
        }
    }
}

/// Backward pass in blocks of queries.
///
/// # Safety
/// As [`super::head::forward`].
#[inline(always)]
unsafe fn backward_by_queries<L: Lanes, const R: usize>(
    head: &Head,
    gradients: &Gradients,
    known: Option<&SavedForward>,
    space: &mut HeadScratch,
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
    // SAFETY: the buffers have the sizes that the functions require.
    unsafe {
        transpose(&head.key, m, d, p, turned_keys);
        transpose(&head.value, m, d, p, turned_values);
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
            // Early, since horizontal sums have a long latency.
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
                    let less = L::splat(*known.sums.add(first + r));
                    known_softmax_backward(weights, of_scores, p, |_| (less, deltas[r]));
                }
            } else {
                let added = head.added(first);
                let (_, total) = exponentials::<L, R>(weights, rows, (m, p), added);
                softmax_backward::<L, R>(weights, total, of_scores, p, rows);
            }
            // Weights of missing rows are 0 for any keys.
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

/// Backward pass in blocks of keys: keys, values and their gradients may not fit in the caches, and
/// are accessed once.
///
/// # Safety
/// As [`super::head::forward`]; the head has no bias and no mask.
#[inline(always)]
unsafe fn backward_by_keys<L: Lanes, const R: usize>(
    head: &Head,
    gradients: &Gradients,
    known: &SavedForward,
    space: &mut HeadScratch,
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
    // SAFETY: the buffers have the sizes that the functions require.
    unsafe {
        gather::<L>(&head.query, n, d, scale(d), queries);
        gather::<L>(&gradients.read, n, d, 1.0, grads);
        transpose(&HeadRows::packed(queries, d), n, d, p, turned_queries);
        transpose(&HeadRows::packed(grads, d), n, d, p, turned_grads);
        of_queries.write_bytes(0, n * d);
        // Values after the last query are finite and unused.
        less.write_bytes(0, p);
        deltas.write_bytes(0, p);
        for i in 0..n {
            *less.add(i) = *known.sums.add(i);
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
            // Rows that are not keys are 0, and so are their scores.
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
