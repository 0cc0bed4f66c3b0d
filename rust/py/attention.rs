//! Attention bindings for `fiber.kernels.*.native`, which allocates the outputs.

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::arrays::{numbers, views};
use crate::attention::cross::{self, CrossAttention};
use crate::attention::windows::WindowAttention;
use crate::cpu_features::Instructions;

type Floats = PyBuffer<f32>;

/// Return the shape after checking the number of dimensions.
fn shape<const N: usize>(name: &str, array: &Floats) -> PyResult<[usize; N]> {
    let found = array.shape();
    found.try_into().map_err(|_| {
        PyValueError::new_err(format!(
            "{name}: expected {N} dimensions, got shape {found:?}"
        ))
    })
}

fn instructions(name: Option<&str>) -> PyResult<Instructions> {
    Ok(name.map_or_else(|| Ok(Instructions::best()), Instructions::from_name)?)
}

/// Three arrays with their names.
fn named<'a>(names: [&'static str; 3], arrays: &'a [Floats; 3]) -> [(&'static str, &'a Floats); 3] {
    let [a, b, c] = arrays;
    [(names[0], a), (names[1], b), (names[2], c)]
}

const WINDOW_INPUTS: [&str; 3] = ["qkv", "bias_table", "qkv_bias"];
const WINDOW_GRADS: [&str; 3] = ["grad_qkv", "grad_bias_table", "grad_qkv_bias"];
const CROSS_INPUTS: [&str; 3] = ["query", "key", "value"];
const CROSS_GRADS: [&str; 3] = ["grad_query", "grad_key", "grad_value"];

/// Forward pass of window attention.
#[pyfunction]
#[pyo3(signature = (arrays, out, *, window, shift, sizes, threads, instructions = None))]
#[allow(clippy::too_many_arguments)] // These are keyword arguments in Python.
pub fn window_attention(
    py: Python<'_>,
    arrays: [Floats; 3],
    out: Floats,
    window: usize,
    shift: usize,
    sizes: Option<Vec<(usize, usize)>>,
    threads: usize,
    instructions: Option<&str>,
) -> PyResult<()> {
    let attention = window_options(&arrays[0], window, shift, sizes, threads, instructions)?;
    let (arrays, [out]) = views(named(WINDOW_INPUTS, &arrays), [("out", &out)])?;
    Ok(py.detach(|| attention.forward(arrays, out))?)
}

/// Backward pass of window attention.
#[pyfunction]
#[pyo3(signature = (grad, arrays, grads, *, window, shift, sizes, threads, instructions = None))]
#[allow(clippy::too_many_arguments)] // These are keyword arguments in Python.
pub fn window_attention_backward(
    py: Python<'_>,
    grad: Floats,
    arrays: [Floats; 3],
    grads: [Floats; 3],
    window: usize,
    shift: usize,
    sizes: Option<Vec<(usize, usize)>>,
    threads: usize,
    instructions: Option<&str>,
) -> PyResult<()> {
    let attention = window_options(&arrays[0], window, shift, sizes, threads, instructions)?;
    let [qkv, bias_table, qkv_bias] = named(WINDOW_INPUTS, &arrays);
    let read = [qkv, bias_table, qkv_bias, ("grad", &grad)];
    let ([qkv, bias_table, qkv_bias, grad], grads) = views(read, named(WINDOW_GRADS, &grads))?;
    let arrays = [qkv, bias_table, qkv_bias];
    Ok(py.detach(|| attention.backward(grad, arrays, grads))?)
}

fn window_options(
    qkv: &Floats,
    window: usize,
    shift: usize,
    sizes: Option<Vec<(usize, usize)>>,
    threads: usize,
    name: Option<&str>,
) -> PyResult<WindowAttention> {
    let [samples, height, width, _, heads, head_width] = shape("qkv", qkv)?;
    Ok(WindowAttention {
        samples,
        map: (height, width),
        heads,
        head_width,
        window,
        shift,
        sizes,
        threads,
        instructions: instructions(name)?,
    })
}

/// Forward pass of cross-attention.
#[pyfunction]
#[pyo3(signature = (arrays, out, logsumexp, *, key_lengths, key_mask, threads, instructions = None))]
#[allow(clippy::too_many_arguments)] // These are keyword arguments in Python.
pub fn cross_attention(
    py: Python<'_>,
    arrays: [Floats; 3],
    out: Floats,
    logsumexp: Floats,
    key_lengths: Option<Vec<u32>>,
    key_mask: Option<PyBuffer<u8>>,
    threads: usize,
    instructions: Option<&str>,
) -> PyResult<()> {
    let attention = cross_options(&arrays, key_lengths, key_mask, threads, instructions)?;
    let written = [("out", &out), ("logsumexp", &logsumexp)];
    let (arrays, [out, logsumexp]) = views(named(CROSS_INPUTS, &arrays), written)?;
    Ok(py.detach(|| attention.forward(arrays, out, logsumexp))?)
}

/// Backward pass of cross-attention.
#[pyfunction]
#[pyo3(signature = (grad, arrays, out, logsumexp, grads, *, key_lengths, key_mask, threads,
                    instructions = None))]
#[allow(clippy::too_many_arguments)] // These are keyword arguments in Python.
pub fn cross_attention_backward(
    py: Python<'_>,
    grad: Floats,
    arrays: [Floats; 3],
    out: Floats,
    logsumexp: Floats,
    grads: [Floats; 3],
    key_lengths: Option<Vec<u32>>,
    key_mask: Option<PyBuffer<u8>>,
    threads: usize,
    instructions: Option<&str>,
) -> PyResult<()> {
    let attention = cross_options(&arrays, key_lengths, key_mask, threads, instructions)?;
    let [query, key, value] = named(CROSS_INPUTS, &arrays);
    let saved = [("out", &out), ("logsumexp", &logsumexp)];
    let read = [query, key, value, ("grad", &grad), saved[0], saved[1]];
    let ([query, key, value, grad, out, logsumexp], grads) =
        views(read, named(CROSS_GRADS, &grads))?;
    let arrays = [query, key, value];
    Ok(py.detach(|| attention.backward(grad, arrays, (out, logsumexp), grads))?)
}

fn cross_options(
    [query, key, _]: &[Floats; 3],
    key_lengths: Option<Vec<u32>>,
    key_mask: Option<PyBuffer<u8>>,
    threads: usize,
    name: Option<&str>,
) -> PyResult<CrossAttention> {
    let [samples, queries, heads, head_width] = shape("query", query)?;
    let [_, keys, ..] = shape::<4>("key", key)?;
    let unmasked = match key_mask {
        Some(mask) => Some(cross::unmasked_keys(numbers("key_mask", &mask)?, keys)),
        None => key_lengths.and_then(|lengths| cross::first_keys(&lengths, keys)),
    };
    Ok(CrossAttention {
        samples,
        queries,
        keys,
        heads,
        head_width,
        unmasked,
        threads,
        instructions: instructions(name)?,
    })
}
