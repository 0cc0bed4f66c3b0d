//! Bindings for image transforms.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::arrays::Buffer;
use super::color_jitter::{ColorJitter, describe as describe_color_jitter};
use super::image::{method, normalization};
use super::pixels::{ImageSource, limits};
use super::rand_augment::{RandAugment, describe as describe_rand_augment};
use crate::boxes::BoxXyxy;
use crate::decode_limits::MAX_PIXELS;
use crate::image::{Decoded, Rgb};
use crate::normalize::{self, IMAGENET_MEAN, IMAGENET_STD, Normalization};
use crate::resize::Method;
use crate::resize::alpha::Alpha;
use crate::rng::{Purpose, Rng};
use crate::transform::crop::RandomCrop;
use crate::transform::{Geometry, Transform, color_jitter, rand_augment};

/// Convert a count; unlike pyo3's own error, this one names the argument.
pub(super) fn count(name: &'static str, value: i128) -> PyResult<usize> {
    usize::try_from(value)
        .map_err(|_| PyValueError::new_err(format!("{name}: {value}; expected 0 or more")))
}

/// Format keyword arguments.
pub(super) fn arguments(settings: &Bound<'_, PyDict>) -> PyResult<String> {
    let fields = settings.iter();
    let fields = fields.map(|(name, value)| Ok(format!("{name}={}", value.repr()?)));
    Ok(fields.collect::<PyResult<Vec<_>>>()?.join(", "))
}

/// Resize, augment and normalize an image and transform its boxes accordingly.
#[pyclass(module = "fiber._core", frozen, eq)]
#[derive(Clone, PartialEq)]
pub struct ImageTransform {
    pub(super) inner: Transform,
}

impl ImageTransform {
    fn build(
        geometry: Geometry,
        flip_probability: f64,
        (color_jitter, rand_augment): (Option<&ColorJitter>, Option<&RandAugment>),
        (method, alpha, normalization): (Method, &str, Normalization),
    ) -> PyResult<Self> {
        use color_jitter::ColorJitter as Jitter;
        use rand_augment::RandAugment as Augment;
        let inner = Transform {
            geometry,
            method,
            flip_probability,
            color_jitter: color_jitter.map_or_else(Jitter::off, |given| given.inner),
            rand_augment: rand_augment.map_or_else(Augment::off, |given| given.inner.clone()),
            alpha: Alpha::from_name(alpha)?,
            normalization,
        };
        inner.check()?;
        Ok(Self { inner })
    }
}

#[pymethods]
#[allow(clippy::too_many_arguments)] // Keyword arguments in Python.
impl ImageTransform {
    /// Resize to `size` x `size` without keeping the aspect ratio.
    #[staticmethod]
    #[pyo3(signature = (size, *, color_jitter = None, rand_augment = None, filter = "bicubic", resize = "exact", alpha = "drop", channel_order = "rgb", mean = IMAGENET_MEAN, std = IMAGENET_STD))]
    fn squash(
        size: i128,
        color_jitter: Option<&ColorJitter>,
        rand_augment: Option<&RandAugment>,
        filter: &str,
        resize: &str,
        alpha: &str,
        channel_order: &str,
        mean: [f64; 3],
        std: [f64; 3],
    ) -> PyResult<Self> {
        let augment = (color_jitter, rand_augment);
        let values = (
            method(filter, resize)?,
            alpha,
            normalization(channel_order, mean, std)?,
        );
        let size = count("size", size)?;
        Self::build(Geometry::Squash { size }, 0.0, augment, values)
    }

    /// Resize the shorter side to `size` and cut out the central `size` x `size` pixels.
    #[staticmethod]
    #[pyo3(signature = (size, *, color_jitter = None, rand_augment = None, filter = "bicubic", resize = "exact", alpha = "drop", channel_order = "rgb", mean = IMAGENET_MEAN, std = IMAGENET_STD))]
    fn center_crop(
        size: i128,
        color_jitter: Option<&ColorJitter>,
        rand_augment: Option<&RandAugment>,
        filter: &str,
        resize: &str,
        alpha: &str,
        channel_order: &str,
        mean: [f64; 3],
        std: [f64; 3],
    ) -> PyResult<Self> {
        let augment = (color_jitter, rand_augment);
        let values = (
            method(filter, resize)?,
            alpha,
            normalization(channel_order, mean, std)?,
        );
        let size = count("size", size)?;
        Self::build(Geometry::CenterCrop { size }, 0.0, augment, values)
    }

    /// Crop a random rectangle and resize it to `size` x `size`.
    #[staticmethod]
    #[pyo3(signature = (size, *, scale = (0.5, 1.0), ratio = (0.75, 4.0 / 3.0), flip_probability = 0.5, color_jitter = None, rand_augment = None, filter = "bicubic", resize = "exact", alpha = "drop", channel_order = "rgb", mean = IMAGENET_MEAN, std = IMAGENET_STD))]
    fn random_resized_crop(
        size: i128,
        scale: (f64, f64),
        ratio: (f64, f64),
        flip_probability: f64,
        color_jitter: Option<&ColorJitter>,
        rand_augment: Option<&RandAugment>,
        filter: &str,
        resize: &str,
        alpha: &str,
        channel_order: &str,
        mean: [f64; 3],
        std: [f64; 3],
    ) -> PyResult<Self> {
        let augment = (color_jitter, rand_augment);
        let values = (
            method(filter, resize)?,
            alpha,
            normalization(channel_order, mean, std)?,
        );
        let size = count("size", size)?;
        let geometry = Geometry::RandomResizedCrop { size, scale, ratio };
        Self::build(geometry, flip_probability, augment, values)
    }

    /// Resize the shorter side to one of `sizes`, and the longer side to at most `max_size`.
    #[staticmethod]
    #[pyo3(signature = (sizes, max_size, *, crop_probability = 0.0, crop_scale = (0.5, 1.0), flip_probability = 0.0, color_jitter = None, rand_augment = None, divisor = 32, filter = "bilinear", resize = "exact", alpha = "drop", channel_order = "rgb", mean = IMAGENET_MEAN, std = IMAGENET_STD))]
    fn shorter_side(
        sizes: Vec<i128>,
        max_size: i128,
        crop_probability: f64,
        crop_scale: (f64, f64),
        flip_probability: f64,
        color_jitter: Option<&ColorJitter>,
        rand_augment: Option<&RandAugment>,
        divisor: i128,
        filter: &str,
        resize: &str,
        alpha: &str,
        channel_order: &str,
        mean: [f64; 3],
        std: [f64; 3],
    ) -> PyResult<Self> {
        let augment = (color_jitter, rand_augment);
        let values = (
            method(filter, resize)?,
            alpha,
            normalization(channel_order, mean, std)?,
        );
        let sizes = sizes.into_iter().map(|size| count("sizes", size));
        let geometry = Geometry::ShorterSide {
            sizes: sizes.collect::<PyResult<_>>()?,
            max_size: count("max_size", max_size)?,
            divisor: count("divisor", divisor)?,
            cut: RandomCrop {
                probability: crop_probability,
                scale: crop_scale,
            },
        };
        Self::build(geometry, flip_probability, augment, values)
    }

    /// Resize to a random scale of a square of `size` pixels, cut out at most the square, and pad.
    #[staticmethod]
    #[pyo3(signature = (size, *, scale = (0.1, 2.0), padding = 128, flip_probability = 0.5, color_jitter = None, rand_augment = None, filter = "bilinear", resize = "exact", alpha = "drop", channel_order = "rgb", mean = IMAGENET_MEAN, std = IMAGENET_STD))]
    fn scale_jitter(
        size: i128,
        scale: (f64, f64),
        padding: i128,
        flip_probability: f64,
        color_jitter: Option<&ColorJitter>,
        rand_augment: Option<&RandAugment>,
        filter: &str,
        resize: &str,
        alpha: &str,
        channel_order: &str,
        mean: [f64; 3],
        std: [f64; 3],
    ) -> PyResult<Self> {
        let augment = (color_jitter, rand_augment);
        let values = (
            method(filter, resize)?,
            alpha,
            normalization(channel_order, mean, std)?,
        );
        let padding = u8::try_from(padding)
            .map_err(|_| PyValueError::new_err(format!("padding: {padding}; expected 0 to 255")))?;
        let geometry = Geometry::ScaleJitter {
            size: count("size", size)?,
            scale,
            padding,
        };
        Self::build(geometry, flip_probability, augment, values)
    }

    /// True if every output has the same square size.
    #[getter]
    fn is_square(&self) -> bool {
        !matches!(self.inner.geometry, Geometry::ShorterSide { .. })
    }

    /// True if images should be passed with their alpha channel.
    #[getter]
    fn keeps_alpha(&self) -> bool {
        self.inner.keeps_alpha()
    }

    /// Return all settings by name.
    fn describe<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let settings = PyDict::new(py);
        match &self.inner.geometry {
            Geometry::Squash { size } => {
                settings.set_item("kind", "squash")?;
                settings.set_item("size", size)?;
            }
            Geometry::CenterCrop { size } => {
                settings.set_item("kind", "center_crop")?;
                settings.set_item("size", size)?;
            }
            Geometry::RandomResizedCrop { size, scale, ratio } => {
                settings.set_item("kind", "random_resized_crop")?;
                settings.set_item("size", size)?;
                settings.set_item("scale", scale)?;
                settings.set_item("ratio", ratio)?;
            }
            Geometry::ScaleJitter {
                size,
                scale,
                padding,
            } => {
                settings.set_item("kind", "scale_jitter")?;
                settings.set_item("size", size)?;
                settings.set_item("scale", scale)?;
                settings.set_item("padding", padding)?;
            }
            Geometry::ShorterSide {
                sizes,
                max_size,
                divisor,
                cut,
            } => {
                settings.set_item("kind", "shorter_side")?;
                settings.set_item("sizes", sizes)?;
                settings.set_item("max_size", max_size)?;
                settings.set_item("crop_probability", cut.probability)?;
                settings.set_item("crop_scale", [cut.scale.0, cut.scale.1])?;
                settings.set_item("divisor", divisor)?;
            }
        }
        settings.set_item("flip_probability", self.inner.flip_probability)?;
        let jitter = &self.inner.color_jitter;
        let is_on = *jitter != color_jitter::ColorJitter::off();
        let jitter = is_on.then(|| describe_color_jitter(py, jitter));
        settings.set_item("color_jitter", jitter.transpose()?)?;
        let augment = &self.inner.rand_augment;
        let augment = (augment.num_ops > 0).then(|| describe_rand_augment(py, augment));
        settings.set_item("rand_augment", augment.transpose()?)?;
        settings.set_item("filter", self.inner.method.filter.name())?;
        settings.set_item("resize", self.inner.method.precision.name())?;
        settings.set_item("alpha", self.inner.alpha.name())?;
        let normalization = &self.inner.normalization;
        settings.set_item("channel_order", normalization.channel_order.name())?;
        settings.set_item("mean", normalization.mean)?;
        settings.set_item("std", normalization.std)?;
        Ok(settings)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let settings = self.describe(py)?;
        let kind = settings.get_item("kind")?;
        settings.del_item("kind")?;
        let kind = kind.map_or_else(String::new, |kind| kind.to_string());
        Ok(format!("ImageTransform.{kind}({})", arguments(&settings)?))
    }
}

/// Apply a transform to an (H, W, 3) or (H, W, 4) uint8 array or to the bytes of an image file.
#[pyfunction]
#[pyo3(signature = (image, transform, boxes = None, *, seed = 0, epoch = 0, index = 0, max_pixels = MAX_PIXELS, max_decode_bytes = None))]
#[allow(clippy::too_many_arguments)] // Keyword arguments in Python.
pub fn apply_transform(
    image: &Bound<'_, PyAny>,
    transform: &ImageTransform,
    boxes: Option<Vec<BoxXyxy>>,
    seed: u64,
    epoch: u64,
    index: u64,
    max_pixels: usize,
    max_decode_bytes: Option<usize>,
) -> PyResult<(Buffer, Vec<BoxXyxy>, (usize, usize))> {
    let py = image.py();
    let transform = &transform.inner;
    let limits = limits(max_pixels, max_decode_bytes);
    let source = ImageSource::get(image, transform.keeps_alpha(), limits)?;
    let boxes = boxes.unwrap_or_default();
    if !boxes.is_empty() {
        transform.rand_augment.check_boxes()?;
        transform.geometry.check_boxes()?;
    }
    let (height, width) = source.size();
    let mut rng = Rng::new(seed, epoch, index, Purpose::Image(0));
    let sampled = transform.sample(height, width, &mut rng);
    let boxes = sampled.transform_boxes(&boxes, height, width)?;
    let write = |resized: Rgb| {
        let (divisor, padding) = (transform.divisor(), transform.geometry.padding());
        normalize::write(&[&resized], &transform.normalization, divisor, padding)
    };
    let (values, shape) = match &source {
        ImageSource::Array(array) => {
            let view = array.view()?;
            py.detach(|| sampled.apply(view).and_then(write))?
        }
        ImageSource::Owned(Decoded::Rgb(image)) => {
            py.detach(|| sampled.apply(image).and_then(write))?
        }
        ImageSource::Owned(Decoded::Rgba(image)) => {
            py.detach(|| sampled.apply_with_alpha(image).and_then(write))?
        }
    };
    Ok((
        Buffer::new(values, &[3, shape.0, shape.1])?,
        boxes.into_iter().flatten().collect(),
        (sampled.height, sampled.width),
    ))
}
