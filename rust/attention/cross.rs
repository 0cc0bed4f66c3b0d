//! Cross-attention within a sample: image tokens attend to text tokens, or the reverse.

use super::gradients::{Gradients, SavedForward};
use super::head::Head;
use super::rows::HeadRows;
use super::{Shared, backward, check_size, check_width, forward, size_of, threads};
use crate::Error;
use crate::cpu_features::Instructions;

/// Minimum queries per task, which makes the cost of transposing the keys negligible.
const QUERIES_PER_TASK: usize = 64;
/// Tasks per thread, for load balancing.
const TASKS_PER_THREAD: usize = 4;

/// Shapes and parameters of cross-attention.
#[derive(Clone, Debug)]
pub struct CrossAttention {
    /// B, the batch size.
    pub samples: usize,
    /// n, the number of queries per sample.
    pub queries: usize,
    /// m, the number of keys per sample.
    pub keys: usize,
    /// h, the number of heads.
    pub heads: usize,
    /// d, the head dim, at least 1.
    pub head_width: usize,
    /// Indices of the unmasked keys of each sample; `None` for all.
    pub unmasked: Option<Vec<Vec<u32>>>,
    /// Maximum number of threads.
    pub threads: usize,
    /// SIMD instruction set.
    pub instructions: Instructions,
}

/// Indices of the keys of each sample at which the mask (B, m) is nonzero.
#[must_use]
pub fn unmasked_keys(mask: &[u8], keys: usize) -> Vec<Vec<u32>> {
    let unmasked = |row: &[u8]| {
        let indices = (0u32..).zip(row).filter(|&(_, &value)| value != 0);
        indices.map(|(index, _)| index).collect()
    };
    mask.chunks_exact(keys.max(1)).map(unmasked).collect()
}

/// Indices of the first `lengths` keys of each sample; `None` if these are all keys.
#[must_use]
pub fn first_keys(lengths: &[u32], keys: usize) -> Option<Vec<Vec<u32>>> {
    let is_all = lengths.iter().all(|&length| length as usize == keys);
    (!is_all).then(|| {
        lengths
            .iter()
            .map(|&length| (0..length).collect())
            .collect()
    })
}

impl CrossAttention {
    /// Elements per token over all heads.
    fn row(&self) -> usize {
        size_of([self.heads, self.head_width])
    }

    fn check(&self, inputs: [&[f32]; 3]) -> Result<(), Error> {
        let tokens = [self.queries, self.keys, self.keys];
        for (i, name) in ["query", "key", "value"].into_iter().enumerate() {
            let expected = size_of([self.samples, tokens[i], self.row()]);
            check_size(name, inputs[i].len(), expected)?;
        }
        if let Some(unmasked) = &self.unmasked
            && (unmasked.len() != self.samples
                || unmasked
                    .iter()
                    .flatten()
                    .any(|&key| key as usize >= self.keys))
        {
            return Err(Error::argument(
                "unmasked",
                format!("expected key indices below {} per sample", self.keys),
            ));
        }
        check_width(self.head_width)
    }

    /// Compute the output (B, n, h, d) and the base-2 logsumexp of the scores (B, h, n) from query
    /// (B, n, h, d), key and value (B, m, h, d).
    ///
    /// # Errors
    /// [`Error::Argument`] if a tensor has the wrong size.
    pub fn forward(
        &self,
        inputs: [&[f32]; 3],
        out: &mut [f32],
        logsumexp: &mut [f32],
    ) -> Result<(), Error> {
        self.check(inputs)?;
        check_size("out", out.len(), inputs[0].len())?;
        let pairs = size_of([self.samples, self.heads]);
        check_size("logsumexp", logsumexp.len(), size_of([pairs, self.queries]))?;
        let wanted = (self.threads * TASKS_PER_THREAD).div_ceil(pairs.max(1));
        let per_task = self.queries.div_ceil(wanted.max(1)).max(QUERIES_PER_TASK);
        let parts = self.queries.div_ceil(per_task);
        let (out, logsumexp) = (Shared::new(out), Shared::new(logsumexp));
        let inputs = inputs.map(Shared::read_only);
        threads::run(pairs * parts, self.threads, &|task, scratch| {
            let (pair, first) = (task / parts, task % parts * per_task);
            let mut head = self.head(pair, inputs);
            head.queries = per_task.min(self.queries - first);
            let out = self.rows(out, pair, self.queries, None);
            let logsumexp = logsumexp.at(pair * self.queries + first);
            // SAFETY: the sizes and the indices of keys were checked, so all rows are in the
            // tensors;
            // `first` is below the number of queries, and no other task has these rows of `out` and
            // elements of `logsumexp`.
            unsafe {
                head.query = head.query.skip(first);
                forward(
                    self.instructions,
                    &head,
                    &out.skip(first),
                    logsumexp,
                    scratch,
                );
            }
        });
        Ok(())
    }

    /// Compute the gradients of query, key and value from the output's gradient and the results
    /// of [`Self::forward`].
    ///
    /// # Errors
    /// [`Error::Argument`] if a tensor has the wrong size.
    pub fn backward(
        &self,
        grad: &[f32],
        inputs: [&[f32]; 3],
        (out, logsumexp): (&[f32], &[f32]),
        grads: [&mut [f32]; 3],
    ) -> Result<(), Error> {
        self.check(inputs)?;
        let pairs = size_of([self.samples, self.heads]);
        for (name, found, expected) in [
            ("grad", grad.len(), inputs[0].len()),
            ("out", out.len(), inputs[0].len()),
            ("logsumexp", logsumexp.len(), size_of([pairs, self.queries])),
            ("grad_query", grads[0].len(), inputs[0].len()),
            ("grad_key", grads[1].len(), inputs[1].len()),
            ("grad_value", grads[2].len(), inputs[2].len()),
        ] {
            check_size(name, found, expected)?;
        }
        if self.unmasked.is_some() {
            grads[1].fill(0.0);
            grads[2].fill(0.0);
        }
        let inputs = inputs.map(Shared::read_only);
        let [grad, out, logsumexp] = [grad, out, logsumexp].map(Shared::read_only);
        let [grad_query, grad_key, grad_value] = grads.map(Shared::new);
        threads::run(pairs, self.threads, &|pair, scratch| {
            let head = self.head(pair, inputs);
            let gradients = Gradients {
                out: self.rows(grad, pair, self.queries, None),
                query: self.rows(grad_query, pair, self.queries, None),
                key: self.rows(grad_key, pair, self.keys, head.key.indices),
                value: self.rows(grad_value, pair, self.keys, head.key.indices),
                bias: std::ptr::null_mut(),
            };
            let saved = SavedForward {
                logsumexp: logsumexp.at(pair * self.queries),
                out: self.rows(out, pair, self.queries, None),
            };
            // SAFETY: the sizes and the indices of keys were checked, so all rows are in the
            // tensors; no other task has this pair of sample and head, whose rows of the gradients
            // are its own. There is no bias and no mask.
            unsafe { backward(self.instructions, &head, &gradients, Some(&saved), scratch) };
        });
        Ok(())
    }

    /// Inputs of one head of one sample.
    fn head(&self, pair: usize, [query, key, value]: [Shared; 3]) -> Head<'_> {
        let unmasked = self
            .unmasked
            .as_ref()
            .map(|keys| &keys[pair / self.heads][..]);
        Head {
            queries: self.queries,
            keys: unmasked.map_or(self.keys, <[u32]>::len),
            width: self.head_width,
            query: self.rows(query, pair, self.queries, None),
            key: self.rows(key, pair, self.keys, unmasked),
            value: self.rows(value, pair, self.keys, unmasked),
            bias: std::ptr::null(),
            mask: std::ptr::null(),
        }
    }

    /// Rows of one head of one sample in a tensor (B, tokens, h, d).
    fn rows<'a>(
        &self,
        tensor: Shared,
        pair: usize,
        tokens: usize,
        indices: Option<&'a [u32]>,
    ) -> HeadRows<'a> {
        let (sample, head) = (pair / self.heads, pair % self.heads);
        HeadRows {
            first: tensor.at(sample * tokens * self.row() + head * self.head_width),
            stride: self.row(),
            indices,
            padding: std::ptr::null_mut(),
        }
    }
}
