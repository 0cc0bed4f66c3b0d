//! Self-attention in (shifted) square windows of a map, with a relative position bias.
//!
//! Notation: M = B H W tokens in the batch, N tokens per window, p as in [`super::head`].

use std::iter;

use super::gradients::Gradients;
use super::head::{Head, padded};
use super::rows::HeadRows;
use super::{Shared, backward, check_size, check_width, forward, size_of, threads};
use crate::Error;
use crate::cpu_features::Instructions;

/// Mask value for token pairs from opposite sides of a rolled map's border.
const SHIFT_MASK: f32 = -100.0;
/// Minimum number of tasks per pass, if there are that many (window, head) pairs. In the backward
/// pass, each task accumulates its own bias gradients, which are then summed in a fixed order, so
/// results do not depend on the number of threads.
const MIN_TASKS: usize = 16;

/// Shapes and parameters of window attention.
#[derive(Clone, Debug)]
pub struct WindowAttention {
    /// B, the batch size.
    pub samples: usize,
    /// Map size (H, W), at least 1.
    pub map: (usize, usize),
    /// h, the number of heads.
    pub heads: usize,
    /// d, the head dim, at least 1.
    pub head_width: usize,
    /// Window size, in tokens per side.
    pub window: usize,
    /// Shift of the map in tokens, less than `window`.
    pub shift: usize,
    /// Unpadded (height, width) of each sample, in the top left corner; `None` for the whole map.
    pub sizes: Option<Vec<(usize, usize)>>,
    /// Maximum number of threads.
    pub threads: usize,
    /// SIMD instruction set.
    pub instructions: Instructions,
}

/// Partition of a batch into windows.
struct Partition {
    /// (windows, N) token indices, or [`HeadRows::PADDED`].
    indices: Vec<u32>,
    /// Seams of the rolled map in each window: bit 1 between rows, bit 0 between columns.
    seams: Vec<u8>,
    /// Tokens outside their sample's unpadded map.
    outside: Vec<usize>,
}

impl WindowAttention {
    /// N, the number of tokens per window.
    fn tokens(&self) -> usize {
        self.window * self.window
    }

    /// Elements per token over all heads.
    fn row(&self) -> usize {
        size_of([self.heads, self.head_width])
    }

    fn check(&self, [qkv, bias_table, qkv_bias]: [&[f32]; 3]) -> Result<(), Error> {
        let tokens = size_of([self.samples, self.map.0, self.map.1]);
        check_size("qkv", qkv.len(), size_of([3, tokens, self.row()]))?;
        let side = size_of([2, self.window]).saturating_sub(1);
        check_size(
            "bias_table",
            bias_table.len(),
            size_of([side, side, self.heads]),
        )?;
        check_size("qkv_bias", qkv_bias.len(), size_of([3, self.row()]))?;
        if self.shift >= self.window || u32::try_from(tokens).is_err() {
            return Err(Error::argument(
                "shift",
                format!(
                    "expected shift < window and at most {} tokens, got {}, {} and {tokens}",
                    u32::MAX,
                    self.shift,
                    self.window
                ),
            ));
        }
        if let Some(sizes) = &self.sizes {
            check_size("sizes", sizes.len(), self.samples)?;
            let (height, width) = self.map;
            if let Some(size) = sizes.iter().find(|size| size.0 > height || size.1 > width) {
                let reason = format!("expected at most {height} x {width}, got {size:?}");
                return Err(Error::argument("sizes", reason));
            }
        }
        check_width(self.head_width)
    }

    /// Compute the output (M, h, d) from qkv (M, 3, h, d), the bias table ((2 window - 1)^2, h),
    /// and the QKV of padded positions (3, h, d).
    ///
    /// # Errors
    /// [`Error::Argument`] if a tensor has the wrong size.
    pub fn forward(&self, inputs: [&[f32]; 3], out: &mut [f32]) -> Result<(), Error> {
        self.check(inputs)?;
        let [qkv, bias_table, qkv_bias] = inputs;
        check_size("out", out.len(), qkv.len() / 3)?;
        let partition = self.partition();
        for &token in &partition.outside {
            out[token * self.row()..][..self.row()].fill(0.0);
        }
        let (bias, masks) = (self.expand(bias_table), self.masks(&partition));
        let windows = partition.seams.len();
        let groups = MIN_TASKS
            .div_ceil(windows.max(1))
            .clamp(1, self.heads.max(1));
        let heads_per_task = self.heads.div_ceil(groups);
        let inputs = [qkv, qkv_bias].map(Shared::read_only);
        let out = Shared::new(out);
        threads::run(windows * groups, self.threads, &|task, scratch| {
            let (window, first) = (task / groups, task % groups * heads_per_task);
            for head in first..(first + heads_per_task).min(self.heads) {
                let inputs = self.head(&partition, window, head, inputs, &bias, &masks);
                let out = HeadRows {
                    first: out.at(head * self.head_width),
                    stride: self.row(),
                    indices: inputs.query.indices,
                    padding: std::ptr::null_mut(),
                };
                let logsumexp = std::ptr::null_mut();
                // SAFETY: the sizes were checked, so every index is a row of the tensors, and bias
                // and mask have (N, p) elements for the window. No other task has this window and
                // head, whose rows of `out` are its own.
                unsafe { forward(self.instructions, &inputs, &out, logsumexp, scratch) };
            }
        });
        Ok(())
    }

    /// Compute the gradients of the inputs from the output's gradient (M, h, d).
    ///
    /// # Errors
    /// [`Error::Argument`] if a tensor has the wrong size.
    pub fn backward(
        &self,
        grad: &[f32],
        inputs: [&[f32]; 3],
        grads: [&mut [f32]; 3],
    ) -> Result<(), Error> {
        self.check(inputs)?;
        check_size("grad", grad.len(), inputs[0].len() / 3)?;
        for (i, name) in ["grad_qkv", "grad_bias_table", "grad_qkv_bias"]
            .into_iter()
            .enumerate()
        {
            check_size(name, grads[i].len(), inputs[i].len())?;
        }
        let [grad_qkv, grad_bias_table, grad_qkv_bias] = grads;
        let partition = self.partition();
        let (row, d) = (self.row(), self.head_width);
        for &token in &partition.outside {
            grad_qkv[token * 3 * row..][..3 * row].fill(0.0);
        }
        let (bias, masks) = (self.expand(inputs[1]), self.masks(&partition));
        let windows = partition.seams.len();
        let parts = MIN_TASKS
            .div_ceil(self.heads.max(1))
            .clamp(1, windows.max(1));
        let windows_per_task = windows.div_ceil(parts);
        // Gradients per task: of the scores (N, p), and of the padding (3, d).
        let pairs = self.tokens() * padded(self.tokens());
        let mut grad_scores = vec![0.0; self.heads * parts * pairs];
        let mut grad_padding = vec![0.0; self.heads * parts * 3 * d];
        let zeros = vec![0.0; d];
        {
            let inputs = [inputs[0], inputs[2]].map(Shared::read_only);
            let [grad, zeros] = [grad, &zeros].map(Shared::read_only);
            let [grad_qkv, grad_scores, grad_padding] =
                [grad_qkv, &mut grad_scores, &mut grad_padding].map(Shared::new);
            threads::run(self.heads * parts, self.threads, &|task, scratch| {
                let (head, first) = (task / parts, task % parts * windows_per_task);
                for window in first..(first + windows_per_task).min(windows) {
                    let inputs = self.head(&partition, window, head, inputs, &bias, &masks);
                    let indices = inputs.query.indices;
                    let part_grad = |part: usize| HeadRows {
                        first: grad_qkv.at(part * row + head * d),
                        stride: 3 * row,
                        indices,
                        padding: grad_padding.at((task * 3 + part) * d),
                    };
                    let gradients = Gradients {
                        out: HeadRows {
                            first: grad.at(head * d),
                            stride: row,
                            indices,
                            padding: zeros.at(0),
                        },
                        query: part_grad(0),
                        key: part_grad(1),
                        value: part_grad(2),
                        bias: grad_scores.at(task * pairs),
                    };
                    // SAFETY: the sizes were checked, so every index is a row of the tensors, and
                    // bias and mask have (N, p) elements for the window. No other task has this
                    // window and head, whose rows of `grad_qkv` are its own, nor this task's (N, p)
                    // and (3, d) sums.
                    unsafe { backward(self.instructions, &inputs, &gradients, None, scratch) };
                }
            });
        }
        self.reduce_bias(&grad_scores, parts, grad_bias_table);
        grad_qkv_bias.fill(0.0);
        for (task, sums) in grad_padding.chunks_exact(3 * d).enumerate() {
            for (part, sums) in sums.chunks_exact(d).enumerate() {
                let to = &mut grad_qkv_bias[part * row + task / parts * d..][..d];
                iter::zip(to, sums).for_each(|(to, sum)| *to += sum);
            }
        }
        Ok(())
    }

    /// Inputs of one head of one window.
    fn head<'a>(
        &self,
        partition: &'a Partition,
        window: usize,
        head: usize,
        [qkv, padding]: [Shared; 2],
        bias: &'a [f32],
        masks: &'a [Option<Vec<f32>>; 4],
    ) -> Head<'a> {
        let (n, d) = (self.tokens(), self.head_width);
        let indices = Some(&partition.indices[window * n..][..n]);
        let rows = |part: usize| HeadRows {
            first: qkv.at(part * self.row() + head * d),
            stride: 3 * self.row(),
            indices,
            padding: padding.at(part * self.row() + head * d),
        };
        let mask = &masks[usize::from(partition.seams[window])];
        Head {
            queries: n,
            keys: n,
            width: d,
            query: rows(0),
            key: rows(1),
            value: rows(2),
            bias: bias[head * n * padded(n)..].as_ptr(),
            mask: mask.as_ref().map_or(std::ptr::null(), Vec::as_ptr),
        }
    }

    /// Pad, roll and partition each sample's map.
    fn partition(&self) -> Partition {
        let (height, width) = self.map;
        let mut partition = Partition {
            indices: Vec::new(),
            seams: Vec::new(),
            outside: Vec::new(),
        };
        for sample in 0..self.samples {
            let own = self.sizes.as_ref().map_or(self.map, |sizes| sizes[sample]);
            let first = sample * height * width;
            let (rows, columns) = (self.ticks(own.0), self.ticks(own.1));
            for (y, row) in rows.chunks_exact(self.window).enumerate() {
                for (x, column) in columns.chunks_exact(self.window).enumerate() {
                    for (y, x) in row.iter().flat_map(|y| column.iter().map(move |x| (y, x))) {
                        let index = match (y, x) {
                            // `check` ensures that token indices fit into u32.
                            #[allow(clippy::cast_possible_truncation)]
                            (Some(y), Some(x)) => (first + y * width + x) as u32,
                            _ => HeadRows::PADDED,
                        };
                        partition.indices.push(index);
                    }
                    let last_row = self.shift > 0 && (y + 1) * self.window == rows.len();
                    let last_column = self.shift > 0 && (x + 1) * self.window == columns.len();
                    partition
                        .seams
                        .push(2 * u8::from(last_row) + u8::from(last_column));
                }
            }
            if own != self.map {
                let tokens = (0..height).flat_map(|y| (0..width).map(move |x| (y, x)));
                let outside = tokens.filter(|&(y, x)| y >= own.0 || x >= own.1);
                partition
                    .outside
                    .extend(outside.map(|(y, x)| first + y * width + x));
            }
        }
        partition
    }

    /// Source index of each position along a padded and rolled axis.
    fn ticks(&self, side: usize) -> Vec<Option<usize>> {
        let padded = side.next_multiple_of(self.window);
        (0..padded)
            .map(|position| Some((position + self.shift) % padded).filter(|&tick| tick < side))
            .collect()
    }

    /// Bias of every head and token pair: (h, N, p).
    fn expand(&self, table: &[f32]) -> Vec<f32> {
        let (w, n) = (self.window, self.tokens());
        let (side, p) = (2 * w - 1, padded(n));
        let mut bias = vec![0.0; self.heads * n * p];
        // The offset decreases from key to key, so runs are copied from a reversed table.
        let mut reversed = vec![0.0; side * side];
        for (head, rows) in bias.chunks_exact_mut(n * p).enumerate() {
            for (to, from) in reversed.iter_mut().rev().zip(0..) {
                *to = table[from * self.heads + head];
            }
            for (query, row) in rows.chunks_exact_mut(p).enumerate() {
                let (y, x) = (query / w, query % w);
                for (key_row, run) in row[..n].chunks_exact_mut(w).enumerate() {
                    // The offset to key column 0 is the largest of a run.
                    let largest = (y + w - 1 - key_row) * side + x + w - 1;
                    run.copy_from_slice(&reversed[side * side - 1 - largest..][..w]);
                }
            }
        }
        bias
    }

    /// Reduce the gradients of the scores (h parts, N, p) to those of the table.
    fn reduce_bias(&self, grad_scores: &[f32], parts: usize, grad_table: &mut [f32]) {
        let (w, n) = (self.window, self.tokens());
        let (side, p) = (2 * w - 1, padded(n));
        for (head, grad_head) in grad_scores.chunks_exact((parts * n * p).max(1)).enumerate() {
            let mut reversed = vec![0.0; side * side];
            for (row, grad_row) in grad_head.chunks_exact(p).enumerate() {
                let query = row % n;
                let (y, x) = (query / w, query % w);
                for (key_row, run) in grad_row[..n].chunks_exact(w).enumerate() {
                    let largest = (y + w - 1 - key_row) * side + x + w - 1;
                    let to = &mut reversed[side * side - 1 - largest..][..w];
                    iter::zip(to, run).for_each(|(to, value)| *to += value);
                }
            }
            for (from, to) in reversed.iter().rev().zip(0..) {
                grad_table[to * self.heads + head] = *from;
            }
        }
    }

    /// Mask (N, p) of a window for each combination of seams.
    fn masks(&self, partition: &Partition) -> [Option<Vec<f32>>; 4] {
        let (w, n) = (self.window, self.tokens());
        let p = padded(n);
        std::array::from_fn(|seams| {
            if seams == 0
                || !partition
                    .seams
                    .iter()
                    .any(|&other| usize::from(other) == seams)
            {
                return None;
            }
            let region = |token: usize| {
                let after_seam = |tick: usize| usize::from(tick >= w - self.shift);
                (
                    seams / 2 * after_seam(token / w),
                    seams % 2 * after_seam(token % w),
                )
            };
            let regions: Vec<_> = (0..n).map(region).collect();
            let mut mask = vec![0.0; n * p];
            for (row, own) in mask.chunks_exact_mut(p).zip(&regions) {
                for (value, other) in row.iter_mut().zip(&regions) {
                    *value = if own == other { 0.0 } else { SHIFT_MASK };
                }
            }
            Some(mask)
        })
    }
}
