//! Bindings for image decoding, resizing and transforms.

use std::path::PathBuf;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use super::arrays::Buffer;
use super::color_jitter::{ColorJitter, describe as describe_color_jitter};
use super::pixels::{RgbArray, limits, to_buffer};
use super::rand_augment::{RandAugment, describe as describe_rand_augment};
use crate::boxes::{BoxXyxy, Crop};
use crate::cpu_features::Instructions;
use crate::decode_limits::MAX_PIXELS;
use crate::image::{self, Rgb, RgbView};
use crate::loader::record;
use crate::normalize::layout::{Dtype, Layout};
use crate::normalize::{self, ChannelOrder, IMAGENET_MEAN, IMAGENET_STD, Normalization, RowWriter};
use crate::resize::{self, Filter, Method, Precision, ResizeScratch, RowResizer};
use crate::rng::{Purpose, Rng};
use crate::transform::crop::RandomCrop;
use crate::transform::{Geometry, Transform, color_jitter, rand_augment};
use crate::try_alloc;

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
        (method, normalization): (Method, Normalization),
    ) -> PyResult<Self> {
        use color_jitter::ColorJitter as Jitter;
        use rand_augment::RandAugment as Augment;
        let inner = Transform {
            geometry,
            method,
            flip_probability,
            color_jitter: color_jitter.map_or_else(Jitter::off, |given| given.inner),
            rand_augment: rand_augment.map_or_else(Augment::off, |given| given.inner.clone()),
            normalization,
        };
        inner.check()?;
        Ok(Self { inner })
    }
}

/// Convert a count; unlike pyo3's own error, this one names the argument.
pub(super) fn count(name: &'static str, value: i128) -> PyResult<usize> {
    usize::try_from(value)
        .map_err(|_| PyValueError::new_err(format!("{name}: {value}; expected 0 or more")))
}

/// Look up a filter and a precision by name.
fn method(filter: &str, precision: &str) -> PyResult<Method> {
    Ok(Method {
        filter: Filter::from_name(filter)?,
        precision: Precision::from_name(precision)?,
    })
}

fn normalization(order: &str, mean: [f64; 3], std: [f64; 3]) -> PyResult<Normalization> {
    let channel_order = ChannelOrder::from_name(order)?;
    Ok(Normalization {
        channel_order,
        mean,
        std,
    })
}

/// Format keyword arguments.
pub(super) fn arguments(settings: &Bound<'_, PyDict>) -> PyResult<String> {
    let fields = settings.iter();
    let fields = fields.map(|(name, value)| Ok(format!("{name}={}", value.repr()?)));
    Ok(fields.collect::<PyResult<Vec<_>>>()?.join(", "))
}

#[pymethods]
#[allow(clippy::too_many_arguments)] // Keyword arguments in Python.
impl ImageTransform {
    /// Resize to `size` x `size` without keeping the aspect ratio.
    #[staticmethod]
    #[pyo3(signature = (size, *, color_jitter = None, rand_augment = None, filter = "bicubic", resize = "exact", channel_order = "rgb", mean = IMAGENET_MEAN, std = IMAGENET_STD))]
    fn squash(
        size: i128,
        color_jitter: Option<&ColorJitter>,
        rand_augment: Option<&RandAugment>,
        filter: &str,
        resize: &str,
        channel_order: &str,
        mean: [f64; 3],
        std: [f64; 3],
    ) -> PyResult<Self> {
        let augment = (color_jitter, rand_augment);
        let values = (
            method(filter, resize)?,
            normalization(channel_order, mean, std)?,
        );
        let size = count("size", size)?;
        Self::build(Geometry::Squash { size }, 0.0, augment, values)
    }

    /// Resize the shorter side to `size` and cut out the central `size` x `size` pixels.
    #[staticmethod]
    #[pyo3(signature = (size, *, color_jitter = None, rand_augment = None, filter = "bicubic", resize = "exact", channel_order = "rgb", mean = IMAGENET_MEAN, std = IMAGENET_STD))]
    fn center_crop(
        size: i128,
        color_jitter: Option<&ColorJitter>,
        rand_augment: Option<&RandAugment>,
        filter: &str,
        resize: &str,
        channel_order: &str,
        mean: [f64; 3],
        std: [f64; 3],
    ) -> PyResult<Self> {
        let augment = (color_jitter, rand_augment);
        let values = (
            method(filter, resize)?,
            normalization(channel_order, mean, std)?,
        );
        let size = count("size", size)?;
        Self::build(Geometry::CenterCrop { size }, 0.0, augment, values)
    }

    /// Crop a random rectangle and resize it to `size` x `size`.
    #[staticmethod]
    #[pyo3(signature = (size, *, scale = (0.5, 1.0), ratio = (0.75, 4.0 / 3.0), flip_probability = 0.5, color_jitter = None, rand_augment = None, filter = "bicubic", resize = "exact", channel_order = "rgb", mean = IMAGENET_MEAN, std = IMAGENET_STD))]
    fn random_resized_crop(
        size: i128,
        scale: (f64, f64),
        ratio: (f64, f64),
        flip_probability: f64,
        color_jitter: Option<&ColorJitter>,
        rand_augment: Option<&RandAugment>,
        filter: &str,
        resize: &str,
        channel_order: &str,
        mean: [f64; 3],
        std: [f64; 3],
    ) -> PyResult<Self> {
        let augment = (color_jitter, rand_augment);
        let values = (
            method(filter, resize)?,
            normalization(channel_order, mean, std)?,
        );
        let size = count("size", size)?;
        let geometry = Geometry::RandomResizedCrop { size, scale, ratio };
        Self::build(geometry, flip_probability, augment, values)
    }

    /// Resize the shorter side to one of `sizes`, and the longer side to at most `max_size`.
    #[staticmethod]
    #[pyo3(signature = (sizes, max_size, *, crop_probability = 0.0, crop_scale = (0.5, 1.0), flip_probability = 0.0, color_jitter = None, rand_augment = None, divisor = 32, filter = "bilinear", resize = "exact", channel_order = "rgb", mean = IMAGENET_MEAN, std = IMAGENET_STD))]
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
        channel_order: &str,
        mean: [f64; 3],
        std: [f64; 3],
    ) -> PyResult<Self> {
        let augment = (color_jitter, rand_augment);
        let values = (
            method(filter, resize)?,
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

    /// True if every output has the same square size.
    #[getter]
    fn is_square(&self) -> bool {
        !matches!(self.inner.geometry, Geometry::ShorterSide { .. })
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

/// Read (height, width, format) without decoding the pixels.
#[pyfunction]
pub fn probe_image(data: &[u8]) -> PyResult<(usize, usize, &'static str)> {
    let (height, width, format) = image::probe(data)?;
    Ok((height, width, format.name()))
}

/// Decode the bytes of an image file to (H, W, 3) uint8.
#[pyfunction]
#[pyo3(signature = (data, *, max_pixels = MAX_PIXELS, max_decode_bytes = None, background = None))]
pub fn decode_image(
    py: Python<'_>,
    data: &[u8],
    max_pixels: usize,
    max_decode_bytes: Option<usize>,
    background: Option<(u8, u8, u8)>,
) -> PyResult<Buffer> {
    let (limits, background) = (
        limits(max_pixels, max_decode_bytes),
        background.map(<[u8; 3]>::from),
    );
    to_buffer(py.detach(|| image::decode_over(data, limits, background))?)
}

/// Decode an image file to (H, W, 3) uint8.
#[pyfunction]
#[pyo3(signature = (path, *, max_pixels = MAX_PIXELS, max_decode_bytes = None, background = None))]
pub fn read_image(
    py: Python<'_>,
    path: PathBuf,
    max_pixels: usize,
    max_decode_bytes: Option<usize>,
    background: Option<(u8, u8, u8)>,
) -> PyResult<Buffer> {
    let (limits, background) = (
        limits(max_pixels, max_decode_bytes),
        background.map(<[u8; 3]>::from),
    );
    to_buffer(py.detach(|| record::read_image(&path, limits, background))?)
}

/// Resize an (H, W, 3) uint8 array, or a crop (top, left, height, width) of it.
///
/// `rows_at_once` rows are processed at a time (0: all rows).
#[pyfunction]
#[pyo3(signature = (image, height, width, filter = "bicubic", *, resize = "exact", crop = None, rows_at_once = 0, instructions = None))]
#[allow(clippy::too_many_arguments)] // Keyword arguments in Python.
pub fn resize_image(
    image: &Bound<'_, PyAny>,
    height: usize,
    width: usize,
    filter: &str,
    resize: &str,
    crop: Option<(usize, usize, usize, usize)>,
    rows_at_once: usize,
    instructions: Option<&str>,
) -> PyResult<Buffer> {
    let array = RgbArray::get(image)?;
    let view = array.view()?;
    let method = method(filter, resize)?;
    let source = (view.height, view.width);
    let crop = match crop {
        None => Crop::whole(source.0, source.1),
        Some((top, left, height, width)) => Crop {
            top,
            left,
            height,
            width,
        },
    };
    let instructions = instructions.map(Instructions::from_name).transpose()?;
    let resized = image.py().detach(|| {
        if instructions.is_none() && rows_at_once == 0 {
            return resize::resize(view, crop, height, width, method);
        }
        let mut scratch = ResizeScratch::new(instructions.unwrap_or_else(Instructions::best));
        let mut resizer = RowResizer::new(&mut scratch, source, crop, (height, width), method)?;
        let mut pixels = Vec::new();
        let count = if rows_at_once > 0 {
            rows_at_once
        } else {
            source.0
        };
        let rows = view.pixels.chunks(count * source.1 * 3);
        let last = resizer.last_row_needed();
        for (first, rows) in (0..=last).step_by(count).zip(rows) {
            resizer.push_rows(first, rows, &mut |_, row| pixels.extend_from_slice(row))?;
        }
        Ok(Rgb::new(height, width, pixels))
    })?;
    to_buffer(resized)
}

/// Normalize an (H, W, 3) uint8 array to the bytes of an image padded to `height` x `width`.
#[pyfunction]
#[pyo3(signature = (image, height, width, *, layout = "chw", dtype = "float32", flip = false, channel_order = "rgb", mean = IMAGENET_MEAN, std = IMAGENET_STD, instructions = None))]
#[allow(clippy::too_many_arguments)] // Keyword arguments in Python.
pub fn normalize_image(
    image: &Bound<'_, PyAny>,
    height: usize,
    width: usize,
    layout: &str,
    dtype: &str,
    flip: bool,
    channel_order: &str,
    mean: [f64; 3],
    std: [f64; 3],
    instructions: Option<&str>,
) -> PyResult<Buffer> {
    let array = RgbArray::get(image)?;
    let view = array.view()?;
    let normalization = normalization(channel_order, mean, std)?;
    let instructions =
        instructions.map_or_else(|| Ok(Instructions::best()), Instructions::from_name)?;
    let (layout, dtype) = (Layout::from_name(layout)?, Dtype::from_name(dtype)?);
    let writer = RowWriter::new(&normalization, layout, dtype, instructions)?;
    let size = (height, width);
    // Not zero, like a reused batch buffer, so that unwritten bytes show up.
    let bytes = writer.slot_bytes(size);
    let mut slot = try_alloc::filled(0xAA, bytes, try_alloc::of_image(height, width))?;
    image.py().detach(|| {
        let rows = view.pixels.chunks_exact((view.width * 3).max(1));
        for (y, row) in rows.enumerate() {
            writer.write_row(row, &mut slot, size, y, flip)?;
        }
        writer.pad_below(&mut slot, size, view.height)
    })?;
    Buffer::new(slot, &[bytes])
}

/// Apply a transform to an (H, W, 3) uint8 array or to the bytes of an image file.
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
    let (decoded, array);
    let view = if let Ok(bytes) = image.cast::<PyBytes>() {
        let bytes = bytes.as_bytes();
        let limits = limits(max_pixels, max_decode_bytes);
        decoded = py.detach(|| image::decode(bytes, limits))?;
        RgbView::from(&decoded)
    } else {
        array = RgbArray::get(image)?;
        array.view()?
    };
    let (transform, boxes) = (&transform.inner, boxes.unwrap_or_default());
    if !boxes.is_empty() {
        transform.rand_augment.check_boxes()?;
        transform.geometry.check_boxes()?;
    }
    let mut rng = Rng::new(seed, epoch, index, Purpose::Image(0));
    let sampled = transform.sample(view.height, view.width, &mut rng);
    let boxes = sampled.transform_boxes(&boxes, view.height, view.width)?;
    let (values, shape) = py.detach(|| {
        sampled.apply(view).and_then(|resized| {
            normalize::write(&[&resized], &transform.normalization, transform.divisor())
        })
    })?;
    Ok((
        Buffer::new(values, &[3, shape.0, shape.1])?,
        boxes.into_iter().flatten().collect(),
        (sampled.height, sampled.width),
    ))
}
