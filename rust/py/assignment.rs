//! Binding of linear sum assignment.

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::arrays::{Buffer, numbers};
use crate::assignment;

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
