//! Memory made by Rust, handed to Python without a copy; the only `unsafe` code of the bindings.

use std::ffi::{CStr, c_int, c_void};
use std::{ptr, slice};

use pyo3::buffer::{Element, PyBuffer};
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::loader::buffer_pool::PooledBuffer;
use crate::normalize::layout::Dtype;

/// The values of a [`Buffer`].
pub enum Values {
    /// Bytes.
    Uint8(Vec<u8>),
    /// Single precision.
    Float32(Vec<f32>),
    /// Whole numbers.
    Int64(Vec<i64>),
    /// Truth values.
    Bool(Vec<bool>),
    /// Values of pictures, in a block of a loader's pool.
    Pooled(PooledBuffer, Dtype),
}

impl Values {
    fn len(&self) -> usize {
        match self {
            Self::Uint8(values) => values.len(),
            Self::Float32(values) => values.len(),
            Self::Int64(values) => values.len(),
            Self::Bool(values) => values.len(),
            Self::Pooled(block, dtype) => block.len() / dtype.bytes(),
        }
    }

    fn item_size(&self) -> usize {
        match self {
            Self::Uint8(_) | Self::Bool(_) => 1,
            Self::Float32(_) => 4,
            Self::Int64(_) => 8,
            Self::Pooled(_, dtype) => dtype.bytes(),
        }
    }

    fn format(&self) -> &'static CStr {
        match self {
            Self::Uint8(_) | Self::Pooled(_, Dtype::Uint8) => c"B",
            Self::Float32(_) | Self::Pooled(_, Dtype::Float32) => c"f",
            Self::Pooled(_, Dtype::Float16) => c"e",
            // The protocol has no name for it.
            Self::Pooled(_, Dtype::BFloat16) => c"H",
            Self::Int64(_) => c"q",
            Self::Bool(_) => c"?",
        }
    }

    fn dtype(&self) -> &'static str {
        match self {
            Self::Uint8(_) => "uint8",
            Self::Float32(_) => "float32",
            Self::Pooled(_, dtype) => dtype.name(),
            Self::Int64(_) => "int64",
            Self::Bool(_) => "bool",
        }
    }

    fn pointer(&mut self) -> *mut c_void {
        match self {
            Self::Uint8(values) => values.as_mut_ptr().cast(),
            Self::Float32(values) => values.as_mut_ptr().cast(),
            Self::Int64(values) => values.as_mut_ptr().cast(),
            Self::Bool(values) => values.as_mut_ptr().cast(),
            Self::Pooled(block, _) => block.as_mut_ptr().cast(),
        }
    }
}

/// An array of Rust's, writable through the buffer protocol: `numpy.asarray(buffer)` and
/// `torch.frombuffer(buffer, dtype=...)` share its memory.
#[pyclass(module = "fiber._core", frozen)]
pub struct Buffer {
    // Reached through a raw pointer only after construction; see `__getbuffer__`.
    pointer: SendPointer,
    dtype: &'static str,
    format: &'static CStr,
    item_size: ffi::Py_ssize_t,
    bytes: ffi::Py_ssize_t,
    shape: Box<[ffi::Py_ssize_t]>,
    strides: Box<[ffi::Py_ssize_t]>,
    /// Keeps the memory that `pointer` points to alive and in place.
    _values: Values,
}

/// A pointer into memory that the same [`Buffer`] owns.
struct SendPointer(*mut c_void);

// SAFETY: the memory behind the pointer is plain numbers owned by the buffer. Rust never reads or
// writes it after construction; Python code that shares it between threads synchronises itself, as
// with any other exporter of the buffer protocol.
unsafe impl Send for SendPointer {}
// SAFETY: see above.
unsafe impl Sync for SendPointer {}

impl Buffer {
    /// Wrap values, row by row, as an array of this shape.
    ///
    /// # Errors
    /// `ValueError` where the shape does not hold that many values.
    pub fn new(mut values: Values, shape: &[usize]) -> PyResult<Self> {
        if shape.iter().product::<usize>() != values.len() {
            return Err(PyValueError::new_err(format!(
                "{} values do not fill the shape {shape:?}",
                values.len()
            )));
        }
        let size = |count: usize| ffi::Py_ssize_t::try_from(count).map_err(PyErr::from);
        let shape = shape
            .iter()
            .map(|&n| size(n))
            .collect::<PyResult<Box<_>>>()?;
        let item_size = size(values.item_size())?;
        let mut stride = item_size;
        let mut strides: Vec<_> = shape
            .iter()
            .rev()
            .map(|&count| {
                let this = stride;
                stride *= count.max(1);
                this
            })
            .collect();
        strides.reverse();
        Ok(Self {
            pointer: SendPointer(values.pointer()),
            dtype: values.dtype(),
            format: values.format(),
            item_size,
            bytes: item_size * size(values.len())?,
            shape,
            strides: strides.into_boxed_slice(),
            _values: values,
        })
    }
}

#[pymethods]
impl Buffer {
    /// Length of every dimension.
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.shape.iter())
    }

    /// "uint8", "float16", "bfloat16", "float32", "int64" or "bool".
    #[getter]
    fn dtype(&self) -> &'static str {
        self.dtype
    }

    fn __repr__(&self) -> String {
        format!("Buffer(shape={:?}, dtype='{}')", self.shape, self.dtype)
    }

    /// Fill a view of the memory.
    ///
    /// # Safety
    /// Called by the interpreter only, with a valid `view`.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        if view.is_null() {
            return Err(PyBufferError::new_err("view is null"));
        }
        let buffer = slf.get();
        let wants = |flag: c_int| flags & flag == flag;
        let if_wanted = |flag: c_int, pointer: *const ffi::Py_ssize_t| {
            if wants(flag) {
                pointer.cast_mut()
            } else {
                ptr::null_mut()
            }
        };
        let exported = ffi::Py_buffer {
            obj: ptr::null_mut(),
            buf: buffer.pointer.0,
            len: buffer.bytes,
            itemsize: buffer.item_size,
            readonly: 0,
            ndim: c_int::try_from(buffer.shape.len())?,
            format: if wants(ffi::PyBUF_FORMAT) {
                buffer.format.as_ptr().cast_mut()
            } else {
                ptr::null_mut()
            },
            // The array is contiguous, so a consumer that asks for no shape reads it as bytes.
            shape: if_wanted(ffi::PyBUF_ND, buffer.shape.as_ptr()),
            strides: if_wanted(ffi::PyBUF_STRIDES, buffer.strides.as_ptr()),
            suboffsets: ptr::null_mut(),
            internal: ptr::null_mut(),
        };
        // SAFETY: `view` is valid for writes by the protocol. The memory, shape, strides and format
        // it points to belong to `slf` (the object is frozen, its boxes and vectors never move) or
        // are static, and the view holds a reference to `slf` until it is released.
        unsafe {
            ptr::write(view, exported);
            (*view).obj = slf.into_any().into_ptr();
        }
        Ok(())
    }
}

/// The numbers of an array that Python keeps.
///
/// # Errors
/// `ValueError` for an array whose numbers do not lie one behind another.
pub fn numbers<'a, T: Element>(name: &str, array: &'a PyBuffer<T>) -> PyResult<&'a [T]> {
    if !array.is_c_contiguous() {
        return Err(PyValueError::new_err(format!(
            "{name}: expected a contiguous array"
        )));
    }
    if array.item_count() == 0 {
        return Ok(&[]);
    }
    // SAFETY: the exporter keeps so many numbers in place as long as there is the buffer. Others
    // could write them at the same time, as with any array that is shared; none of ours does.
    Ok(unsafe { slice::from_raw_parts(array.buf_ptr().cast(), array.item_count()) })
}

/// The same, to be written.
///
/// # Errors
/// As [`numbers`], and for an array that may only be read.
#[allow(clippy::mut_from_ref)] // The array is Python's; this is the one place that writes it.
pub fn numbers_mut<'a, T: Element>(name: &str, array: &'a PyBuffer<T>) -> PyResult<&'a mut [T]> {
    numbers(name, array)?;
    if array.readonly() {
        return Err(PyValueError::new_err(format!(
            "{name}: the array is read-only"
        )));
    }
    if array.item_count() == 0 {
        return Ok(&mut []);
    }
    // SAFETY: as above; the caller passes no array twice.
    Ok(unsafe { slice::from_raw_parts_mut(array.buf_ptr().cast(), array.item_count()) })
}
