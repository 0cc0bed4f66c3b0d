//! Bindings for RandAugment.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::arrays::Buffer;
use super::image::{arguments, count};
use super::pixels::{to_buffer, to_rgb};
use crate::Error;
use crate::transform::affine;
use crate::transform::rand_augment::{self, OpKind, Operation};

/// Apply random operations to each image.
#[pyclass(module = "fiber._core", frozen, eq)]
#[derive(Clone, PartialEq)]
pub struct RandAugment {
    pub(super) inner: rand_augment::RandAugment,
}

fn all_names() -> Vec<String> {
    let names = OpKind::NAMES.iter();
    names.map(|&(_, name)| name.to_owned()).collect()
}

#[pymethods]
impl RandAugment {
    #[new]
    #[pyo3(signature = (*, num_ops = 2, magnitude = 7.0, probability = 0.5, operations = all_names()))]
    fn new(
        num_ops: i128,
        magnitude: f64,
        probability: f64,
        operations: Vec<String>,
    ) -> PyResult<Self> {
        let operations = operations.iter().map(|name| OpKind::from_name(name));
        let inner = rand_augment::RandAugment {
            num_ops: count("num_ops", num_ops)?,
            magnitude,
            probability,
            operations: operations.collect::<Result<_, _>>()?,
        };
        inner.check()?;
        Ok(Self { inner })
    }

    /// Absolute argument of each operation, or None if it takes no argument.
    fn arguments<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let arguments = PyDict::new(py);
        for kind in &self.inner.operations {
            arguments.set_item(kind.name(), kind.argument(self.inner.magnitude))?;
        }
        Ok(arguments)
    }

    /// Return all settings by name.
    fn describe<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        describe(py, &self.inner)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!("RandAugment({})", arguments(&self.describe(py)?)?))
    }
}

/// Return all settings by name.
pub fn describe<'py>(
    py: Python<'py>,
    inner: &rand_augment::RandAugment,
) -> PyResult<Bound<'py, PyDict>> {
    let names: Vec<&str> = inner.operations.iter().map(|kind| kind.name()).collect();
    let settings = PyDict::new(py);
    settings.set_item("num_ops", inner.num_ops)?;
    settings.set_item("magnitude", inner.magnitude)?;
    settings.set_item("probability", inner.probability)?;
    settings.set_item("operations", names)?;
    Ok(settings)
}

/// Apply one operation to an (H, W, 3) uint8 array.
#[pyfunction]
#[pyo3(signature = (image, operation, argument = None))]
pub fn augment_image(
    image: &Bound<'_, PyAny>,
    operation: &str,
    argument: Option<f64>,
) -> PyResult<Buffer> {
    let kind = OpKind::from_name(operation)?;
    let expected = kind.argument(0.0).is_some();
    let usable = argument.is_none_or(|argument| argument.abs() <= f64::from(f32::MAX));
    if argument.is_some() != expected || !usable {
        let wanted = if expected { "a finite number" } else { "None" };
        let given = argument.map_or_else(|| "None".to_owned(), |number| number.to_string());
        let reason = format!("{given} for {operation}; expected {wanted}");
        return Err(Error::argument("argument", reason).into());
    }
    let operation = Operation {
        kind,
        argument: argument.unwrap_or(0.0),
    };
    let mut pixels = to_rgb(image)?;
    let sides = 1..=affine::MAX_SIDE;
    if !(sides.contains(&pixels.height) && sides.contains(&pixels.width)) {
        let size = format!("{} x {} pixels", pixels.height, pixels.width);
        let reason = format!("{size}; expected sides of 1 to {}", affine::MAX_SIDE);
        return Err(Error::argument("image", reason).into());
    }
    image.py().detach(|| operation.apply(&mut pixels));
    to_buffer(pixels)
}
