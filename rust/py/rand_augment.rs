//! Bindings for RandAugment.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::arrays::Buffer;
use super::pixels::{to_buffer, to_rgb};
use super::transform::{arguments, count};
use crate::Error;
use crate::transform::affine;
use crate::transform::rand_augment::{self, Operation, Policy};

/// Apply random operations to each image.
#[pyclass(module = "fiber._core", frozen, eq)]
#[derive(Clone, PartialEq)]
pub struct RandAugment {
    pub(super) inner: rand_augment::RandAugment,
}

#[pymethods]
impl RandAugment {
    #[new]
    #[pyo3(signature = (*, policy = "fiber", num_ops = 2, magnitude = None, probability = None, operations = None))]
    fn new(
        policy: &str,
        num_ops: i128,
        magnitude: Option<f64>,
        probability: Option<f64>,
        operations: Option<Vec<String>>,
    ) -> PyResult<Self> {
        let policy = Policy::from_name(policy)?;
        let mut inner = rand_augment::RandAugment::published(policy);
        inner.num_ops = count("num_ops", num_ops)?;
        inner.magnitude = magnitude.unwrap_or(inner.magnitude);
        inner.probability = probability.unwrap_or(inner.probability);
        if let Some(names) = operations {
            let kinds = names.iter().map(|name| policy.operation(name));
            inner.operations = kinds.collect::<Result<_, _>>()?;
        }
        inner.check()?;
        Ok(Self { inner })
    }

    /// Absolute argument of each operation, or None if it takes no argument.
    fn arguments<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let arguments = PyDict::new(py);
        for kind in &self.inner.operations {
            let argument = self.inner.policy.argument(*kind, self.inner.magnitude);
            arguments.set_item(kind.name(), argument)?;
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
    settings.set_item("policy", inner.policy.name())?;
    settings.set_item("num_ops", inner.num_ops)?;
    settings.set_item("magnitude", inner.magnitude)?;
    settings.set_item("probability", inner.probability)?;
    settings.set_item("operations", names)?;
    Ok(settings)
}

/// Apply one operation to an (H, W, 3) uint8 array.
#[pyfunction]
#[pyo3(signature = (image, operation, argument = None, *, policy = "fiber"))]
pub fn augment_image(
    image: &Bound<'_, PyAny>,
    operation: &str,
    argument: Option<f64>,
    policy: &str,
) -> PyResult<Buffer> {
    let policy = Policy::from_name(policy)?;
    let kind = policy.operation(operation)?;
    let expected = policy.argument(kind, 0.0).is_some();
    let usable = argument.is_none_or(|argument| argument.abs() <= f64::from(f32::MAX));
    if argument.is_some() != expected || !usable {
        let wanted = if expected { "a finite number" } else { "None" };
        let given = argument.map_or_else(|| "None".to_owned(), |number| number.to_string());
        let reason = format!("{given} for {operation}; expected {wanted}");
        return Err(Error::argument("argument", reason).into());
    }
    let operation = Operation {
        policy,
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
    image.py().detach(|| operation.apply(&mut pixels))?;
    to_buffer(pixels)
}
