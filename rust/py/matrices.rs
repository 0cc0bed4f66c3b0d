//! Bindings of functions of matrices: linear sum assignment, and products of float16 rows.

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::arrays::{Buffer, numbers};
use crate::assignment;
use crate::half_products::half_products as multiply;

/// Assign rows to columns of a (rows, columns) matrix: (2, n) int64, rows first.
#[pyfunction]
pub fn linear_sum_assignment(py: Python<'_>, costs: PyBuffer<f64>) -> PyResult<Buffer> {
    let &[rows, columns] = costs.shape() else {
        let shape = costs.shape();
        let message = format!("costs: expected 2 dimensions, got shape {shape:?}");
        return Err(PyValueError::new_err(message));
    };
    let values = numbers("costs", &costs)?;
    let pairs = py.detach(|| assignment::assign(values, rows, columns))?;
    let (first, last): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    let count = first.len();
    #[allow(clippy::cast_possible_wrap)] // Indices are far below the largest number of 63 bits.
    let found = first.into_iter().chain(last).map(|index| index as i64);
    Buffer::new(found.collect(), &[2, count])
}

/// Multiply float16 rows (n, D), as the uint16 of their bits, with queries (Q, D): (Q, n) float32.
#[pyfunction]
pub fn half_products(
    py: Python<'_>,
    rows: PyBuffer<u16>,
    queries: PyBuffer<f32>,
) -> PyResult<Buffer> {
    let (&[count, width], &[asked, query_width]) = (rows.shape(), queries.shape()) else {
        let (rows, queries) = (rows.shape(), queries.shape());
        let message =
            format!("rows, queries: expected 2 dimensions, got shapes {rows:?} and {queries:?}");
        return Err(PyValueError::new_err(message));
    };
    if width != query_width {
        let message =
            format!("queries: expected width {width}, that of the rows, got {query_width}");
        return Err(PyValueError::new_err(message));
    }
    let (row_bits, values) = (numbers("rows", &rows)?, numbers("queries", &queries)?);
    let mut found = py.detach(|| multiply(row_bits, values, width));
    // Without columns, all products are sums of nothing.
    found.resize(asked * count, 0.0);
    Buffer::new(found, &[asked, count])
}
