//! Backward pass of one head: gradients of queries, keys and values.
//!
//! Attention weights are recomputed, so no tensor as large as the scores is stored.

use super::head::{Head, HeadScratch, padded, scale};
use super::lanes::Lanes;
use super::products::{PAIR, WIDE, accumulate, multiply};
use super::rows::{HeadRows, load, transpose, write};
use super::softmax::{add, dot, exponentials, saved_softmax_backward, softmax_backward};

/// Gradient of the output of a [`Head`], and the gradients to compute.
#[derive(Clone, Copy)]
pub(super) struct Gradients<'a> {
    pub out: HeadRows<'a>,
    pub query: HeadRows<'a>,
    pub key: HeadRows<'a>,
    pub value: HeadRows<'a>,
    /// (n, p) accumulated gradients of the scores, or null.
    pub bias: *mut f32,
}

/// Results of the forward pass of a [`Head`] without bias and mask.
#[derive(Clone, Copy)]
pub(super) struct SavedForward<'a> {
    /// (n,) logsumexp of the scores in base 2.
    pub logsumexp: *const f32,
    pub out: HeadRows<'a>,
}

/// Compute the gradients: in blocks of keys if there are more keys than queries and the forward
/// results were saved, otherwise in blocks of queries.
///
/// # Safety
/// Same as for [`super::head::forward`], with the rows of `gradients` and `saved` among the inputs
/// and outputs: their `bias` is null or valid for (n, p) elements, the saved `logsumexp` for n.
/// With saved results, the head has no bias and no mask.
#[inline(always)]
pub(super) unsafe fn backward<L: Lanes, const R: usize>(
    head: &Head,
    gradients: &Gradients,
    saved: Option<&SavedForward>,
    scratch: &mut HeadScratch,
) {
    // SAFETY: the same conditions as the caller's.
    unsafe {
        match saved {
            Some(saved) if head.keys > head.queries => {
                backward_by_keys::<L, R>(head, gradients, saved, scratch);
            }
            _ => backward_by_queries::<L, R>(head, gradients, saved, scratch),
        }
    }
}

/// Backward pass in blocks of queries.
///
/// # Safety
/// Same as for [`backward`].
#[inline(always)]
unsafe fn backward_by_queries<L: Lanes, const R: usize>(
    head: &Head,
    gradients: &Gradients,
    saved: Option<&SavedForward>,
    scratch: &mut HeadScratch,
) {
    let (m, d, p) = (head.keys, head.width, padded(head.keys));
    let w = padded(d);
    let [dp, mw, rw, rp] = [d * p, m * w, R * w, R * p];
    let parts = scratch.parts([dp, mw, dp, mw, mw, rw, rw, rp, rp, rw]);
    let [keys_t, keys, values_t, grad_keys, grad_values, ..] = parts;
    let [.., query, grad, weights, grad_scores, out] = parts;
    // SAFETY: the buffers are disjoint and as long as the functions require, for R rows of w or p
    // elements or all m keys. Rows below n and m exist by the caller.
    unsafe {
        transpose(&head.key, m, d, p, keys_t);
        transpose(&head.value, m, d, p, values_t);
        load::<L>(&head.key, 0..m, m, d, 1.0, keys);
        grad_keys.write_bytes(0, m * w);
        grad_values.write_bytes(0, m * w);
        let mut first = 0;
        while first < head.queries {
            let rows = R.min(head.queries - first);
            load::<L>(&head.query, first..first + rows, R, d, scale(d), query);
            load::<L>(&gradients.out, first..first + rows, R, d, 1.0, grad);
            for rows in [&head.query, &gradients.out, &gradients.query] {
                rows.prefetch(first + R..first + 2 * R, head.queries, d);
            }
            // Computed early, since horizontal sums have a long latency.
            let mut deltas = [L::splat(0.0); R];
            if let Some(SavedForward { out, .. }) = saved {
                out.prefetch(first + R..first + 2 * R, head.queries, d);
                for r in 0..rows {
                    deltas[r] = dot::<L>(grad.add(r * w), out.row(first + r).0, d);
                }
            }
            multiply::<L, R, WIDE>((query, w), (keys_t, p), (weights, p), (d, p));
            multiply::<L, R, WIDE>((grad, w), (values_t, p), (grad_scores, p), (d, p));
            if let Some(saved) = saved {
                for r in 0..rows {
                    let (weights, grad_scores) = (weights.add(r * p), grad_scores.add(r * p));
                    let logsumexp = L::splat(*saved.logsumexp.add(first + r));
                    saved_softmax_backward(weights, grad_scores, p, |_| (logsumexp, deltas[r]));
                }
            } else {
                let added = head.added(first);
                let (_, total) = exponentials::<L, R>(weights, rows, (m, p), added);
                softmax_backward::<L, R>(weights, total, grad_scores, p, rows);
            }
            // Weights of missing rows are 0 for all keys.
            weights.add(rows * p).write_bytes(0, (R - rows) * p);
            grad_scores.add(rows * p).write_bytes(0, (R - rows) * p);
            if !gradients.bias.is_null() {
                add::<L>(gradients.bias.add(first * p), grad_scores, rows * p);
            }
            multiply::<L, R, PAIR>((grad_scores, p), (keys, w), (out, w), (m, w));
            accumulate::<L, R>(weights, grad, (m, w, p), grad_values);
            accumulate::<L, R>(grad_scores, query, (m, w, p), grad_keys);
            for r in 0..rows {
                let to = gradients.query.row(first + r);
                write::<L>(to, out.add(r * w), d, scale(d));
            }
            first += R;
        }
        for j in 0..m {
            write::<L>(gradients.key.row(j), grad_keys.add(j * w), d, 1.0);
            write::<L>(gradients.value.row(j), grad_values.add(j * w), d, 1.0);
        }
    }
}

/// Backward pass in blocks of keys. Keys, values and their gradients may exceed the caches, so they
/// are accessed only once.
///
/// # Safety
/// Same as for [`backward`] with saved results.
#[inline(always)]
unsafe fn backward_by_keys<L: Lanes, const R: usize>(
    head: &Head,
    gradients: &Gradients,
    saved: &SavedForward,
    scratch: &mut HeadScratch,
) {
    let (n, d, p) = (head.queries, head.width, padded(head.queries));
    let w = padded(d);
    let [dp, nw, rw, rp] = [d * p, n * w, R * w, R * p];
    let parts = scratch.parts([dp, nw, dp, nw, nw, p, p, rw, rw, rp, rp, rw]);
    let [queries_t, queries, grads_t, grads, grad_queries, ..] = parts;
    let [.., logsumexp, deltas, key, value, weights, grad_scores, out] = parts;
    // SAFETY: the buffers are disjoint and as long as the functions require, for R rows of w or p
    // elements or all n queries. Rows below n and `keys` exist by the caller.
    unsafe {
        load::<L>(&head.query, 0..n, n, d, scale(d), queries);
        load::<L>(&gradients.out, 0..n, n, d, 1.0, grads);
        transpose(&HeadRows::packed(queries, w), n, d, p, queries_t);
        transpose(&HeadRows::packed(grads, w), n, d, p, grads_t);
        grad_queries.write_bytes(0, n * w);
        // Values past the last query are finite and unused.
        logsumexp.write_bytes(0, p);
        deltas.write_bytes(0, p);
        for i in 0..n {
            *logsumexp.add(i) = *saved.logsumexp.add(i);
            *deltas.add(i) = dot::<L>(grads.add(i * w), saved.out.row(i).0, d).first();
        }
        let mut first = 0;
        while first < head.keys {
            let rows = R.min(head.keys - first);
            load::<L>(&head.key, first..first + rows, R, d, 1.0, key);
            load::<L>(&head.value, first..first + rows, R, d, 1.0, value);
            for rows in [&head.key, &head.value, &gradients.key, &gradients.value] {
                rows.prefetch_apart(first + R..first + 2 * R, head.keys, d);
            }
            multiply::<L, R, WIDE>((key, w), (queries_t, p), (weights, p), (d, p));
            multiply::<L, R, WIDE>((value, w), (grads_t, p), (grad_scores, p), (d, p));
            for r in 0..rows {
                let (weights, grad_scores) = (weights.add(r * p), grad_scores.add(r * p));
                saved_softmax_backward(weights, grad_scores, p, |column| {
                    (L::load(logsumexp.add(column)), L::load(deltas.add(column)))
                });
            }
            // Missing rows and their scores are 0.
            accumulate::<L, R>(grad_scores, key, (n, w, p), grad_queries);
            multiply::<L, R, PAIR>((grad_scores, p), (queries, w), (out, w), (n, w));
            for r in 0..rows {
                write::<L>(gradients.key.row(first + r), out.add(r * w), d, 1.0);
            }
            multiply::<L, R, PAIR>((weights, p), (grads, w), (out, w), (n, w));
            for r in 0..rows {
                write::<L>(gradients.value.row(first + r), out.add(r * w), d, 1.0);
            }
            first += R;
        }
        for i in 0..n {
            write::<L>(gradients.query.row(i), grad_queries.add(i * w), d, scale(d));
        }
    }
}
