//! Bindings of attention for `fiber.kernels.*.native`; results are written into its arrays.

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::arrays::{numbers, numbers_mut};
use crate::attention::cross::{self, CrossAttention};
use crate::attention::windows::{self, WindowAttention};
use crate::cpu_features::Instructions;

/// Check the number of dimensions.
fn shape<const N: usize>(name: &str, array: &PyBuffer<f32>) -> PyResult<[usize; N]> {
    array.shape().try_into().map_err(|_| {
        let found = array.shape();
        PyValueError::new_err(format!("{name}: shape {found:?}; expected {N} dimensions"))
    })
}

fn instructions(name: Option<&str>) -> PyResult<Instructions> {
    name.map_or_else(
        || Ok(Instructions::best()),
        |name| Instructions::from_name(name).map_err(PyErr::from),
    )
}

/// Window attention, forward.
#[pyfunction]
#[pyo3(signature = (qkv, bias_table, qkv_bias, out, *, window, shift, sizes, threads,
                    instructions = None))]
#[allow(clippy::too_many_arguments)] // Keyword arguments in Python.
pub fn window_attention(
    py: Python<'_>,
    qkv: PyBuffer<f32>,
    bias_table: PyBuffer<f32>,
    qkv_bias: PyBuffer<f32>,
    out: PyBuffer<f32>,
    window: usize,
    shift: usize,
    sizes: Option<Vec<(usize, usize)>>,
    threads: usize,
    instructions: Option<&str>,
) -> PyResult<()> {
    let what = windows_of(&qkv, window, shift, sizes, threads, instructions)?;
    let inputs = windows::WindowInputs {
        qkv: numbers("qkv", &qkv)?,
        bias_table: numbers("bias_table", &bias_table)?,
        qkv_bias: numbers("qkv_bias", &qkv_bias)?,
    };
    let out = numbers_mut("out", &out)?;
    py.detach(|| what.forward(&inputs, out))
        .map_err(PyErr::from)
}

/// Window attention, backward.
#[pyfunction]
#[pyo3(signature = (grad, qkv, bias_table, qkv_bias, of_qkv, of_bias_table, of_qkv_bias, *, window,
                    shift, sizes, threads, instructions = None))]
#[allow(clippy::too_many_arguments)] // Keyword arguments in Python.
pub fn window_attention_backward(
    py: Python<'_>,
    grad: PyBuffer<f32>,
    qkv: PyBuffer<f32>,
    bias_table: PyBuffer<f32>,
    qkv_bias: PyBuffer<f32>,
    of_qkv: PyBuffer<f32>,
    of_bias_table: PyBuffer<f32>,
    of_qkv_bias: PyBuffer<f32>,
    window: usize,
    shift: usize,
    sizes: Option<Vec<(usize, usize)>>,
    threads: usize,
    instructions: Option<&str>,
) -> PyResult<()> {
    let what = windows_of(&qkv, window, shift, sizes, threads, instructions)?;
    let inputs = windows::WindowInputs {
        qkv: numbers("qkv", &qkv)?,
        bias_table: numbers("bias_table", &bias_table)?,
        qkv_bias: numbers("qkv_bias", &qkv_bias)?,
    };
    let mut outputs = windows::WindowGradients {
        of_qkv: numbers_mut("of_qkv", &of_qkv)?,
        of_bias_table: numbers_mut("of_bias_table", &of_bias_table)?,
        of_qkv_bias: numbers_mut("of_qkv_bias", &of_qkv_bias)?,
    };
    let grad = numbers("grad", &grad)?;
    py.detach(|| what.backward(grad, &inputs, &mut outputs))
        .map_err(PyErr::from)
}

fn windows_of(
    qkv: &PyBuffer<f32>,
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

/// Cross-attention, forward.
#[pyfunction]
#[pyo3(signature = (query, key, value, out, sums, *, key_lengths, key_mask, threads, instructions = None))]
#[allow(clippy::too_many_arguments)] // Keyword arguments in Python.
pub fn cross_attention(
    py: Python<'_>,
    query: PyBuffer<f32>,
    key: PyBuffer<f32>,
    value: PyBuffer<f32>,
    out: PyBuffer<f32>,
    sums: PyBuffer<f32>,
    key_lengths: Option<Vec<u32>>,
    key_mask: Option<PyBuffer<u8>>,
    threads: usize,
    instructions: Option<&str>,
) -> PyResult<()> {
    let what = cross_of(
        &query,
        &key,
        key_lengths,
        key_mask.as_ref(),
        threads,
        instructions,
    )?;
    let inputs = cross::CrossInputs {
        query: numbers("query", &query)?,
        key: numbers("key", &key)?,
        value: numbers("value", &value)?,
    };
    let (out, sums) = (numbers_mut("out", &out)?, numbers_mut("sums", &sums)?);
    py.detach(|| what.forward(&inputs, out, sums))
        .map_err(PyErr::from)
}

/// Cross-attention, backward.
#[pyfunction]
#[pyo3(signature = (grad, query, key, value, read, sums, of_query, of_key, of_value, *, key_lengths, key_mask, threads,
                    instructions = None))]
#[allow(clippy::too_many_arguments)] // Keyword arguments in Python.
pub fn cross_attention_backward(
    py: Python<'_>,
    grad: PyBuffer<f32>,
    query: PyBuffer<f32>,
    key: PyBuffer<f32>,
    value: PyBuffer<f32>,
    read: PyBuffer<f32>,
    sums: PyBuffer<f32>,
    of_query: PyBuffer<f32>,
    of_key: PyBuffer<f32>,
    of_value: PyBuffer<f32>,
    key_lengths: Option<Vec<u32>>,
    key_mask: Option<PyBuffer<u8>>,
    threads: usize,
    instructions: Option<&str>,
) -> PyResult<()> {
    let what = cross_of(
        &query,
        &key,
        key_lengths,
        key_mask.as_ref(),
        threads,
        instructions,
    )?;
    let inputs = cross::CrossInputs {
        query: numbers("query", &query)?,
        key: numbers("key", &key)?,
        value: numbers("value", &value)?,
    };
    let outputs = [
        numbers_mut("of_query", &of_query)?,
        numbers_mut("of_key", &of_key)?,
        numbers_mut("of_value", &of_value)?,
    ];
    let grad = numbers("grad", &grad)?;
    let known = (numbers("read", &read)?, numbers("sums", &sums)?);
    py.detach(|| what.backward(grad, &inputs, known, outputs))
        .map_err(PyErr::from)
}

fn cross_of(
    query: &PyBuffer<f32>,
    key: &PyBuffer<f32>,
    key_lengths: Option<Vec<u32>>,
    key_mask: Option<&PyBuffer<u8>>,
    threads: usize,
    name: Option<&str>,
) -> PyResult<CrossAttention> {
    let [samples, queries, heads, head_width] = shape("query", query)?;
    let [_, keys, ..] = shape::<4>("key", key)?;
    let real = key_mask.map(|mask| numbers("key_mask", mask)).transpose()?;
    let real = real
        .map(|mask| cross::marked_keys(mask, keys))
        .or_else(|| key_lengths.and_then(|lengths| cross::first_keys(&lengths, keys)));
    Ok(CrossAttention {
        samples,
        queries,
        keys,
        heads,
        head_width,
        real,
        threads,
        instructions: instructions(name)?,
    })
}
