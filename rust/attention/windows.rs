//! Self-attention in (shifted) square windows of a map, with a relative position bias.
//!
//! Letters: M tokens of the batch, B H W; N tokens of a window; p as in [`super::head`].

use std::iter;

use super::gradients::Gradients;
use super::head::{Head, padded};
use super::rows::HeadRows;
use super::{Shared, backward, forward, threads};
use crate::Error;
use crate::cpu_features::Instructions;

/// Mask value between tokens from different sides of a rolled map's border.
const SEPARATED: f32 = -100.0;
/// Minimum tasks of a forward pass, if there are as many windows and heads.
const FORWARD_TASKS: usize = 16;
/// The same for a backward pass. Each task accumulates its own bias gradients; they are added in a
/// fixed order, so that results do not depend on the number of threads.
const BACKWARD_TASKS: usize = 16;

/// Shapes and parameters of a window attention.
#[derive(Clone, Debug)]
pub struct WindowAttention {
    /// B.
    pub samples: usize,
    /// (H, W), at least 1.
    pub map: (usize, usize),
    /// h.
    pub heads: usize,
    /// d; see [`super::takes`].
    pub head_width: usize,
    /// Side of a window.
    pub window: usize,
    /// Shift of the map, below `window`.
    pub shift: usize,
    /// Unpadded (height, width) of each sample, in the top left corner; `None` for the whole map.
    pub sizes: Option<Vec<(usize, usize)>>,
    /// Maximum number of threads.
    pub threads: usize,
    /// Instruction set.
    pub instructions: Instructions,
}

/// Input tensors.
pub struct WindowInputs<'a> {
    /// (M, 3, h, d).
    pub qkv: &'a [f32],
    /// ((2 window - 1)^2, h).
    pub bias_table: &'a [f32],
    /// (3, h, d), QKV of padding.
    pub qkv_bias: &'a [f32],
}

/// Gradients of [`WindowInputs`].
pub struct WindowGradients<'a> {
    /// (M, 3, h, d).
    pub of_qkv: &'a mut [f32],
    /// ((2 window - 1)^2, h).
    pub of_bias_table: &'a mut [f32],
    /// (3, h, d).
    pub of_qkv_bias: &'a mut [f32],
}

/// Window partition of a batch.
struct Partition {
    /// (windows, N), token indices, or [`HeadRows::PADDED`].
    places: Vec<u32>,
    /// Which seams of the rolled map a window contains: 2 between rows + 1 between columns.
    seams: Vec<u8>,
    /// Tokens outside of their sample's unpadded map.
    outside: Vec<usize>,
}

impl WindowAttention {
    /// N.
    fn tokens(&self) -> usize {
        self.window * self.window
    }

    /// Elements of all heads.
    fn row(&self) -> usize {
        self.heads * self.head_width
    }

    fn check(&self, inputs: &WindowInputs) -> Result<(), Error> {
        let tokens = self.samples * self.map.0 * self.map.1;
        super::expect("qkv", inputs.qkv.len(), 3 * tokens * self.row())?;
        let offsets = (2 * self.window - 1).pow(2);
        super::expect("bias_table", inputs.bias_table.len(), offsets * self.heads)?;
        super::expect("qkv_bias", inputs.qkv_bias.len(), 3 * self.row())?;
        if self.shift >= self.window || u32::try_from(tokens).is_err() {
            return Err(Error::argument(
                "shift",
                format!("{}, window {}, {tokens} tokens", self.shift, self.window),
            ));
        }
        if let Some(sizes) = &self.sizes {
            super::expect("sizes", sizes.len(), self.samples)?;
            let (height, width) = self.map;
            if let Some(size) = sizes.iter().find(|size| size.0 > height || size.1 > width) {
                return Err(Error::argument(
                    "sizes",
                    format!("{size:?}; expected at most the map's {height} x {width}"),
                ));
            }
        }
        super::expect_width(self.head_width)
    }

    /// Forward pass: the output (M, h, d).
    ///
    /// # Errors
    /// [`Error::Argument`] for a tensor of another size.
    pub fn forward(&self, inputs: &WindowInputs, out: &mut [f32]) -> Result<(), Error> {
        self.check(inputs)?;
        super::expect("out", out.len(), inputs.qkv.len() / 3)?;
        let cut = self.cut();
        for &token in &cut.outside {
            out[token * self.row()..][..self.row()].fill(0.0);
        }
        let (bias, masks) = (self.expand(inputs.bias_table), self.masks(&cut));
        let windows = cut.seams.len();
        let groups = FORWARD_TASKS
            .div_ceil(windows.max(1))
            .clamp(1, self.heads.max(1));
        let heads_at_once = self.heads.div_ceil(groups);
        let (qkv, padding) = (
            Shared::read_only(inputs.qkv),
            Shared::read_only(inputs.qkv_bias),
        );
        let out = Shared::new(out);
        threads::run(windows * groups, self.threads, &|task, space| {
            let (window, first) = (task / groups, task % groups * heads_at_once);
            for head in first..(first + heads_at_once).min(self.heads) {
                // SAFETY: the sizes were checked; every window and head has its own rows.
                unsafe {
                    let what = self.head(&cut, window, head, (qkv, padding), &bias, &masks);
                    let read = HeadRows {
                        first: out.at(head * self.head_width),
                        stride: self.row(),
                        places: what.query.places,
                        padding: std::ptr::null_mut(),
                    };
                    forward(self.instructions, &what, &read, std::ptr::null_mut(), space);
                }
            }
        });
        Ok(())
    }

    /// Backward pass: gradients of the inputs, given the gradient (M, h, d) of the output.
    ///
    /// # Errors
    /// [`Error::Argument`] for a tensor of another size.
    pub fn backward(
        &self,
        grad: &[f32],
        inputs: &WindowInputs,
        of: &mut WindowGradients,
    ) -> Result<(), Error> {
        self.check(inputs)?;
        super::expect("grad", grad.len(), inputs.qkv.len() / 3)?;
        super::expect("of_qkv", of.of_qkv.len(), inputs.qkv.len())?;
        super::expect(
            "of_bias_table",
            of.of_bias_table.len(),
            inputs.bias_table.len(),
        )?;
        super::expect("of_qkv_bias", of.of_qkv_bias.len(), inputs.qkv_bias.len())?;
        let cut = self.cut();
        let (row, d) = (self.row(), self.head_width);
        for &token in &cut.outside {
            of.of_qkv[token * 3 * row..][..3 * row].fill(0.0);
        }
        let (bias, masks) = (self.expand(inputs.bias_table), self.masks(&cut));
        let windows = cut.seams.len();
        let parts = BACKWARD_TASKS
            .div_ceil(self.heads.max(1))
            .clamp(1, windows.max(1));
        let windows_at_once = windows.div_ceil(parts);
        // Per task: gradients of the scores (N, p), and of padding (3, d).
        let scores = self.tokens() * padded(self.tokens());
        let mut of_bias = vec![0.0; self.heads * parts * scores];
        let mut of_padding = vec![0.0; self.heads * parts * 3 * d];
        let (qkv, padding) = (
            Shared::read_only(inputs.qkv),
            Shared::read_only(inputs.qkv_bias),
        );
        let nothing = vec![0.0; d];
        let (grad, nothing) = (Shared::read_only(grad), Shared::read_only(&nothing));
        let of_qkv = Shared::new(of.of_qkv);
        {
            let of_bias = Shared::new(&mut of_bias);
            let of_padding = Shared::new(&mut of_padding);
            threads::run(self.heads * parts, self.threads, &|task, space| {
                let (head, first) = (task / parts, task % parts * windows_at_once);
                for window in first..(first + windows_at_once).min(windows) {
                    // SAFETY: the sizes were checked; every window and head has its own rows, and
                    // every task its own sums.
                    unsafe {
                        let what = self.head(&cut, window, head, (qkv, padding), &bias, &masks);
                        let places = what.query.places;
                        let of_part = |part: usize| HeadRows {
                            first: of_qkv.at(part * row + head * d),
                            stride: 3 * row,
                            places,
                            padding: of_padding.at((task * 3 + part) * d),
                        };
                        let gradients = Gradients {
                            read: HeadRows {
                                first: grad.at(head * d),
                                stride: row,
                                places,
                                padding: nothing.at(0),
                            },
                            query: of_part(0),
                            key: of_part(1),
                            value: of_part(2),
                            bias: of_bias.at(task * scores),
                        };
                        backward(self.instructions, &what, &gradients, None, space);
                    }
                }
            });
        }
        self.reduce_bias(&of_bias, parts, of.of_bias_table);
        of.of_qkv_bias.fill(0.0);
        for (task, sums) in of_padding.chunks_exact(3 * d).enumerate() {
            for (part, sums) in sums.chunks_exact(d).enumerate() {
                let to = &mut of.of_qkv_bias[part * row + task / parts * d..][..d];
                iter::zip(to, sums).for_each(|(to, sum)| *to += sum);
            }
        }
        Ok(())
    }

    /// One head of one window.
    ///
    /// # Safety
    /// The tensors (M, 3, h, d), (3, h, d) and the others have their shapes.
    unsafe fn head<'a>(
        &self,
        cut: &'a Partition,
        window: usize,
        head: usize,
        (qkv, padding): (Shared, Shared),
        bias: &'a [f32],
        masks: &'a [Option<Vec<f32>>; 4],
    ) -> Head<'a> {
        let (n, d) = (self.tokens(), self.head_width);
        let places = Some(&cut.places[window * n..][..n]);
        let rows = |part: usize| HeadRows {
            // SAFETY: as for the caller; likewise below.
            first: unsafe { qkv.at(part * self.row() + head * d) },
            stride: 3 * self.row(),
            places,
            padding: unsafe { padding.at(part * self.row() + head * d) },
        };
        let mask = &masks[usize::from(cut.seams[window])];
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

    /// Pad, roll and partition every sample's map.
    fn cut(&self) -> Partition {
        let (height, width) = self.map;
        let mut cut = Partition {
            places: Vec::new(),
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
                        let place = match (y, x) {
                            // A batch has fewer tokens than a u32 counts.
                            #[allow(clippy::cast_possible_truncation)]
                            (Some(y), Some(x)) => (first + y * width + x) as u32,
                            _ => HeadRows::PADDED,
                        };
                        cut.places.push(place);
                    }
                    let last_row = self.shift > 0 && (y + 1) * self.window == rows.len();
                    let last_column = self.shift > 0 && (x + 1) * self.window == columns.len();
                    cut.seams
                        .push(2 * u8::from(last_row) + u8::from(last_column));
                }
            }
            if own != self.map {
                let tokens = (0..height).flat_map(|y| (0..width).map(move |x| (y, x)));
                let outside = tokens.filter(|&(y, x)| y >= own.0 || x >= own.1);
                cut.outside
                    .extend(outside.map(|(y, x)| first + y * width + x));
            }
        }
        cut
    }

    /// Source index of each position of an axis, padded and rolled.
    fn ticks(&self, side: usize) -> Vec<Option<usize>> {
        let padded = side.next_multiple_of(self.window);
        (0..padded)
            .map(|place| Some((place + self.shift) % padded).filter(|&tick| tick < side))
            .collect()
    }

    /// Bias of every head and pair of tokens: (h, N, p).
    fn expand(&self, table: &[f32]) -> Vec<f32> {
        let (w, n) = (self.window, self.tokens());
        let (side, p) = (2 * w - 1, padded(n));
        let mut bias = vec![0.0; self.heads * n * p];
        // The offset decreases from key to key, so that a reversed table is copied in runs.
        let mut turned = vec![0.0; side * side];
        for (head, rows) in bias.chunks_exact_mut(n * p).enumerate() {
            for (to, from) in turned.iter_mut().rev().zip(0..) {
                *to = table[from * self.heads + head];
            }
            for (query, row) in rows.chunks_exact_mut(p).enumerate() {
                let (y, x) = (query / w, query % w);
                for (key_row, run) in row[..n].chunks_exact_mut(w).enumerate() {
                    // The offset to key column 0 is the largest of a run.
                    let largest = (y + w - 1 - key_row) * side + x + w - 1;
                    run.copy_from_slice(&turned[side * side - 1 - largest..][..w]);
                }
            }
        }
        bias
    }

    /// Add the gradients of the scores (h parts, N, p) to those of the table.
    fn reduce_bias(&self, of_bias: &[f32], parts: usize, of_table: &mut [f32]) {
        let (w, n) = (self.window, self.tokens());
        let (side, p) = (2 * w - 1, padded(n));
        for (head, of_head) in of_bias.chunks_exact((parts * n * p).max(1)).enumerate() {
            let mut turned = vec![0.0; side * side];
            for (row, of_row) in of_head.chunks_exact(p).enumerate() {
                let query = row % n;
                let (y, x) = (query / w, query % w);
                for (key_row, run) in of_row[..n].chunks_exact(w).enumerate() {
                    let largest = (y + w - 1 - key_row) * side + x + w - 1;
                    let to = &mut turned[side * side - 1 - largest..][..w];
                    iter::zip(to, run).for_each(|(to, value)| *to += value);
                }
            }
            for (from, to) in turned.iter().rev().zip(0..) {
                of_table[to * self.heads + head] = *from;
            }
        }
    }

    /// Mask (N, p) of windows for each combination of seams.
    fn masks(&self, cut: &Partition) -> [Option<Vec<f32>>; 4] {
        let (w, n) = (self.window, self.tokens());
        let p = padded(n);
        std::array::from_fn(|seams| {
            if seams == 0 || !cut.seams.iter().any(|&other| usize::from(other) == seams) {
                return None;
            }
            let region = |token: usize| {
                let behind = |tick: usize| usize::from(tick >= w - self.shift);
                (seams / 2 * behind(token / w), seams % 2 * behind(token % w))
            };
            let regions: Vec<_> = (0..n).map(region).collect();
            let mut mask = vec![0.0; n * p];
            for (row, own) in mask.chunks_exact_mut(p).zip(&regions) {
                for (value, other) in row.iter_mut().zip(&regions) {
                    *value = if own == other { 0.0 } else { SEPARATED };
                }
            }
            Some(mask)
        })
    }
}
