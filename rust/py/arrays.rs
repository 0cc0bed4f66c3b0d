//! Arrays shared between Rust and Python without a copy; the only `unsafe` code of the bindings.

use std::ffi::{CStr, c_int, c_void};
use std::{ptr, slice};

use pyo3::buffer::{Element, PyBuffer};
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::loader::buffer_pool::PooledBuffer;
use crate::normalize::layout::Dtype;

/// Storage of a [`Buffer`].
pub enum Values {
    /// uint8.
    Uint8(Vec<u8>),
    /// float32.
    Float32(Vec<f32>),
    /// int64.
    Int64(Vec<i64>),
    /// bool.
    Bool(Vec<bool>),
    /// Pixels in a pooled buffer of a loader.
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
            // The buffer protocol has no format for it.
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

/// A Rust array, writable through the buffer protocol: `numpy.asarray(buffer)` and
/// `torch.frombuffer(buffer, dtype=...)` share its memory.
#[pyclass(module = "fiber._core", frozen)]
pub struct Buffer {
    // Used only through a raw pointer after construction; see `__getbuffer__`.
    pointer: SendPointer,
    dtype: &'static str,
    format: &'static CStr,
    item_size: ffi::Py_ssize_t,
    bytes: ffi::Py_ssize_t,
    shape: Box<[ffi::Py_ssize_t]>,
    strides: Box<[ffi::Py_ssize_t]>,
    /// Keeps the memory of `pointer` alive and in place.
    _values: Values,
}

/// A pointer to memory owned by the same [`Buffer`].
struct SendPointer(*mut c_void);

// SAFETY: the memory is plain numbers owned by the buffer. Rust never accesses it after
// construction; Python code that shares it between threads synchronizes itself, as with any other
// exporter of the buffer protocol.
unsafe impl Send for SendPointer {}
// SAFETY: see above.
unsafe impl Sync for SendPointer {}

impl Buffer {
    /// Wrap values in C order as an array of this shape.
    ///
    /// # Errors
    /// `ValueError` if the shape has another number of elements.
    pub fn new(mut values: Values, shape: &[usize]) -> PyResult<Self> {
        if shape.iter().product::<usize>() != values.len() {
            return Err(PyValueError::new_err(format!(
                "{} values for the shape {shape:?}",
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
    /// Size of every dimension.
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
            // The array is contiguous, so a consumer that does not request the shape reads it as
            // bytes.
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

/// Elements of a Python array.
///
/// # Errors
/// `ValueError` if it is not contiguous.
pub fn numbers<'a, T: Element>(name: &str, array: &'a PyBuffer<T>) -> PyResult<&'a [T]> {
    if !array.is_c_contiguous() {
        return Err(PyValueError::new_err(format!(
            "{name}: expected a contiguous array"
        )));
    }
    if array.item_count() == 0 {
        return Ok(&[]);
    }
    // SAFETY: the exporter keeps this many elements in place as long as the buffer exists. Other
    // code could write them at the same time, as with any shared array; ours does not.
    Ok(unsafe { slice::from_raw_parts(array.buf_ptr().cast(), array.item_count()) })
}

/// Writable elements of a Python array.
///
/// # Errors
/// As [`numbers`], and if it is read-only.
#[allow(clippy::mut_from_ref)] // Python owns the array; only this function writes it.
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
    // SAFETY: as above; callers never pass an array twice.
    Ok(unsafe { slice::from_raw_parts_mut(array.buf_ptr().cast(), array.item_count()) })
}
