//! Bindings for color jitter.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::arrays::Buffer;
use super::pixels::{to_buffer, to_rgb};
use crate::transform::color_jitter::{self, ColorChange};

/// Randomly change brightness, contrast, saturation and hue.
#[pyclass(module = "fiber._core", frozen, eq)]
#[derive(Clone, PartialEq)]
pub struct ColorJitter {
    pub(super) inner: color_jitter::ColorJitter,
}

#[pymethods]
impl ColorJitter {
    #[new]
    #[pyo3(signature = (*, brightness = (1.0, 1.0), contrast = (1.0, 1.0), saturation = (1.0, 1.0), hue = (0.0, 0.0)))]
    fn new(
        brightness: (f64, f64),
        contrast: (f64, f64),
        saturation: (f64, f64),
        hue: (f64, f64),
    ) -> PyResult<Self> {
        let inner = color_jitter::ColorJitter {
            brightness,
            contrast,
            saturation,
            hue,
        };
        inner.check()?;
        Ok(Self { inner })
    }

    /// Return all settings by name.
    fn describe<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        describe(py, &self.inner)
    }

    fn __repr__(&self) -> String {
        let fields = self
            .inner
            .ranges()
            .map(|(name, range)| format!("{name}={range:?}"));
        format!("ColorJitter({})", fields.join(", "))
    }
}

/// Return all settings by name.
pub fn describe<'py>(
    py: Python<'py>,
    inner: &color_jitter::ColorJitter,
) -> PyResult<Bound<'py, PyDict>> {
    let settings = PyDict::new(py);
    for (name, range) in inner.ranges() {
        settings.set_item(name, [range.0, range.1])?;
    }
    Ok(settings)
}

/// Apply one color change to an (H, W, 3) uint8 array.
#[pyfunction]
pub fn jitter_image(image: &Bound<'_, PyAny>, change: &str, factor: f64) -> PyResult<Buffer> {
    let change = ColorChange::from_name(change, factor)?;
    let mut pixels = to_rgb(image)?;
    image.py().detach(|| change.apply(&mut pixels));
    to_buffer(pixels)
}
