//! Cross-attention within a sample: image tokens attend to text tokens, or the reverse.

use super::gradients::{Gradients, SavedForward};
use super::head::Head;
use super::rows::HeadRows;
use super::{Shared, backward, forward, threads};
use crate::Error;
use crate::cpu_features::Instructions;

/// Minimum queries per task, so that transposing the keys costs little in comparison.
const QUERIES_OF_TASK: usize = 64;
/// Tasks per thread, for load balancing.
const TASKS_OF_THREAD: usize = 4;

/// Shapes and parameters of a cross-attention.
#[derive(Clone, Debug)]
pub struct CrossAttention {
    /// B.
    pub samples: usize,
    /// n, queries per sample.
    pub queries: usize,
    /// m, keys per sample.
    pub keys: usize,
    /// h.
    pub heads: usize,
    /// d; see [`super::takes`].
    pub head_width: usize,
    /// Unmasked keys of each sample; `None` for all.
    pub real: Option<Vec<Vec<u32>>>,
    /// Maximum number of threads.
    pub threads: usize,
    /// Instruction set.
    pub instructions: Instructions,
}

/// Input tensors (B, n or m, h, d).
pub struct CrossInputs<'a> {
    /// (B, n, h, d).
    pub query: &'a [f32],
    /// (B, m, h, d).
    pub key: &'a [f32],
    /// (B, m, h, d).
    pub value: &'a [f32],
}

/// Indices of the keys of each sample whose mask (B, m) is not 0.
#[must_use]
pub fn marked_keys(mask: &[u8], keys: usize) -> Vec<Vec<u32>> {
    let marked = |row: &[u8]| {
        let places = (0u32..).zip(row).filter(|&(_, &is_real)| is_real != 0);
        places.map(|(place, _)| place).collect()
    };
    mask.chunks_exact(keys.max(1)).map(marked).collect()
}

/// Indices of the first keys of each sample; `None` if these are all.
#[must_use]
pub fn first_keys(lengths: &[u32], keys: usize) -> Option<Vec<Vec<u32>>> {
    let all = lengths.iter().all(|&length| length as usize == keys);
    (!all).then(|| {
        lengths
            .iter()
            .map(|&length| (0..length).collect())
            .collect()
    })
}

impl CrossAttention {
    /// Elements per token, over all heads.
    fn row(&self) -> usize {
        self.heads * self.head_width
    }

    fn check(&self, inputs: &CrossInputs) -> Result<(), Error> {
        let sizes = [
            ("query", inputs.query.len(), self.queries),
            ("key", inputs.key.len(), self.keys),
            ("value", inputs.value.len(), self.keys),
        ];
        for (name, found, tokens) in sizes {
            super::expect(name, found, self.samples * tokens * self.row())?;
        }
        let places = self.real.iter().flatten().flatten();
        if places.into_iter().any(|&place| place as usize >= self.keys)
            || self
                .real
                .as_ref()
                .is_some_and(|real| real.len() != self.samples)
        {
            return Err(Error::argument("real", "expected keys of each sample"));
        }
        super::expect_width(self.head_width)
    }

    /// Forward pass: the output (B, n, h, d), and the base-2 logarithms of the sums of exponentials
    /// (B, h, n).
    ///
    /// # Errors
    /// [`Error::Argument`] for a tensor of another size.
    pub fn forward(
        &self,
        inputs: &CrossInputs,
        out: &mut [f32],
        sums: &mut [f32],
    ) -> Result<(), Error> {
        self.check(inputs)?;
        super::expect("out", out.len(), inputs.query.len())?;
        super::expect("sums", sums.len(), self.samples * self.heads * self.queries)?;
        let pairs = self.samples * self.heads;
        let wanted = (self.threads * TASKS_OF_THREAD).div_ceil(pairs.max(1));
        let at_once = self.queries.div_ceil(wanted.max(1)).max(QUERIES_OF_TASK);
        let parts = self.queries.div_ceil(at_once);
        let (out, sums) = (Shared::new(out), Shared::new(sums));
        let [query, key, value] = [inputs.query, inputs.key, inputs.value].map(Shared::read_only);
        threads::run(pairs * parts, self.threads, &|task, space| {
            let (pair, first) = (task / parts, task % parts * at_once);
            let mut head = self.head(pair, query, key, value);
            head.queries = at_once.min(self.queries - first);
            // SAFETY: the sizes were checked; every task writes its own rows and sums.
            unsafe {
                head.query.first = head.query.first.add(first * self.row());
                let mut read = self.rows(out, pair, self.queries, None);
                read.first = read.first.add(first * self.row());
                let sums = sums.at(pair * self.queries + first);
                forward(self.instructions, &head, &read, sums, space);
            }
        });
        Ok(())
    }

    /// Backward pass: gradients of the inputs, given the gradient of the output, the output and the
    /// logarithms.
    ///
    /// # Errors
    /// [`Error::Argument`] for a tensor of another size.
    pub fn backward(
        &self,
        grad: &[f32],
        inputs: &CrossInputs,
        (read, sums): (&[f32], &[f32]),
        [of_query, of_key, of_value]: [&mut [f32]; 3],
    ) -> Result<(), Error> {
        self.check(inputs)?;
        super::expect("grad", grad.len(), inputs.query.len())?;
        super::expect("read", read.len(), inputs.query.len())?;
        super::expect("sums", sums.len(), self.samples * self.heads * self.queries)?;
        super::expect("of_query", of_query.len(), inputs.query.len())?;
        super::expect("of_key", of_key.len(), inputs.key.len())?;
        super::expect("of_value", of_value.len(), inputs.value.len())?;
        if self.real.is_some() {
            of_key.fill(0.0);
            of_value.fill(0.0);
        }
        let [query, key, value, grad, read, sums] =
            [inputs.query, inputs.key, inputs.value, grad, read, sums].map(Shared::read_only);
        let [of_query, of_key, of_value] = [of_query, of_key, of_value].map(Shared::new);
        threads::run(self.samples * self.heads, self.threads, &|pair, space| {
            let head = self.head(pair, query, key, value);
            // SAFETY: the sizes were checked; every task writes its own rows.
            unsafe {
                let gradients = Gradients {
                    read: self.rows(grad, pair, self.queries, None),
                    query: self.rows(of_query, pair, self.queries, None),
                    key: self.rows(of_key, pair, self.keys, head.key.places),
                    value: self.rows(of_value, pair, self.keys, head.key.places),
                    bias: std::ptr::null_mut(),
                };
                let known = SavedForward {
                    sums: sums.at(pair * self.queries),
                    read: self.rows(read, pair, self.queries, None),
                };
                backward(self.instructions, &head, &gradients, Some(&known), space);
            }
        });
        Ok(())
    }

    /// One head of one sample.
    fn head(&self, pair: usize, query: Shared, key: Shared, value: Shared) -> Head<'_> {
        let real = self.real.as_ref().map(|real| &real[pair / self.heads][..]);
        // SAFETY: the pair exists, and the sizes were checked.
        unsafe {
            Head {
                queries: self.queries,
                keys: real.map_or(self.keys, <[u32]>::len),
                width: self.head_width,
                query: self.rows(query, pair, self.queries, None),
                key: self.rows(key, pair, self.keys, real),
                value: self.rows(value, pair, self.keys, real),
                bias: std::ptr::null(),
                mask: std::ptr::null(),
            }
        }
    }

    /// Rows of one head of one sample in a tensor (B, tokens, h, d).
    ///
    /// # Safety
    /// The tensor has this shape.
    unsafe fn rows<'a>(
        &self,
        tensor: Shared,
        pair: usize,
        tokens: usize,
        places: Option<&'a [u32]>,
    ) -> HeadRows<'a> {
        let (sample, head) = (pair / self.heads, pair % self.heads);
        HeadRows {
            // SAFETY: as for the caller.
            first: unsafe { tensor.at(sample * tokens * self.row() + head * self.head_width) },
            stride: self.row(),
            places,
            padding: std::ptr::null_mut(),
        }
    }
}
