//! Arrays shared between Rust and Python without copying; the only `unsafe` code in the bindings.

use std::any::Any;
use std::ffi::{CStr, c_int, c_void};
use std::{ptr, slice};

use pyo3::buffer::{Element, PyBuffer};
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::loader::buffer_pool::PooledBuffer;
use crate::normalize::layout::Dtype;

/// An element type of a [`Buffer`].
pub trait Item: Send + Sync + 'static {
    /// Format code of the buffer protocol, and `NumPy`'s name.
    const TYPE: (&'static CStr, &'static str);
}

impl Item for u8 {
    const TYPE: (&'static CStr, &'static str) = (c"B", "uint8");
}

impl Item for f32 {
    const TYPE: (&'static CStr, &'static str) = (c"f", "float32");
}

impl Item for i64 {
    const TYPE: (&'static CStr, &'static str) = (c"q", "int64");
}

impl Item for bool {
    const TYPE: (&'static CStr, &'static str) = (c"?", "bool");
}

/// Array whose memory is owned by Rust, writable through the buffer protocol:
/// `numpy.asarray(buffer)` and `torch.frombuffer(buffer, dtype=...)` share it.
#[pyclass(module = "fiber._core", frozen)]
pub struct Buffer {
    // After construction, only accessed through a raw pointer; see `__getbuffer__`.
    pointer: SendPointer,
    dtype: &'static str,
    format: &'static CStr,
    item_size: ffi::Py_ssize_t,
    bytes: ffi::Py_ssize_t,
    shape: Box<[ffi::Py_ssize_t]>,
    strides: Box<[ffi::Py_ssize_t]>,
    /// Keeps the memory of `pointer` alive and in place.
    _values: Box<dyn Any + Send + Sync>,
}

/// A pointer to memory owned by the same [`Buffer`].
struct SendPointer(*mut c_void);

// SAFETY: the memory holds plain numbers and is owned by the buffer. Rust never accesses it after
// construction; Python code that shares it between threads must synchronize access itself, as with
// any other exporter of the buffer protocol.
unsafe impl Send for SendPointer {}
// SAFETY: sharing the pointer gives no access to the memory; see `Send` for Python's.
unsafe impl Sync for SendPointer {}

impl Buffer {
    /// Wrap values in C order as an array of the given shape.
    pub fn new<T: Item>(mut values: Vec<T>, shape: &[usize]) -> PyResult<Self> {
        let pointer = SendPointer(values.as_mut_ptr().cast());
        let count = values.len();
        Self::of(
            pointer,
            count,
            size_of::<T>(),
            T::TYPE,
            Box::new(values),
            shape,
        )
    }

    /// Wrap the pixels of a batch, which are in a loader's buffer.
    pub fn of_pixels(mut block: PooledBuffer, dtype: Dtype, shape: &[usize]) -> PyResult<Self> {
        let pointer = SendPointer(block.as_mut_ptr().cast());
        let count = block.len() / dtype.bytes();
        let format = match dtype {
            Dtype::Uint8 => c"B",
            Dtype::Float32 => c"f",
            Dtype::Float16 => c"e",
            // The buffer protocol has no format for bfloat16.
            Dtype::BFloat16 => c"H",
        };
        let of_type = (format, dtype.name());
        Self::of(
            pointer,
            count,
            dtype.bytes(),
            of_type,
            Box::new(block),
            shape,
        )
    }

    /// `ValueError` if the shape does not have `count` elements.
    fn of(
        pointer: SendPointer,
        count: usize,
        item_bytes: usize,
        (format, dtype): (&'static CStr, &'static str),
        values: Box<dyn Any + Send + Sync>,
        shape: &[usize],
    ) -> PyResult<Self> {
        if shape.iter().product::<usize>() != count {
            let message = format!("{count} values do not fit shape {shape:?}");
            return Err(PyValueError::new_err(message));
        }
        let size = |count: usize| ffi::Py_ssize_t::try_from(count).map_err(PyErr::from);
        let shape: Box<_> = shape.iter().map(|&n| size(n)).collect::<PyResult<_>>()?;
        let item_size = size(item_bytes)?;
        let mut strides = vec![item_size; shape.len()];
        for at in (1..shape.len()).rev() {
            strides[at - 1] = strides[at] * shape[at].max(1);
        }
        Ok(Self {
            pointer,
            dtype,
            format,
            item_size,
            bytes: item_size * size(count)?,
            shape,
            strides: strides.into_boxed_slice(),
            _values: values,
        })
    }
}

#[pymethods]
impl Buffer {
    /// Size of each dimension.
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
    /// Only called by the interpreter, with a valid `view`.
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
        let format = buffer.format.as_ptr().cast_mut();
        let (shape, strides) = (buffer.shape.as_ptr(), buffer.strides.as_ptr());
        let none = ptr::null_mut();
        let exported = ffi::Py_buffer {
            obj: ptr::null_mut(),
            buf: buffer.pointer.0,
            len: buffer.bytes,
            itemsize: buffer.item_size,
            readonly: 0,
            ndim: c_int::try_from(buffer.shape.len())?,
            format: if wants(ffi::PyBUF_FORMAT) {
                format
            } else {
                ptr::null_mut()
            },
            // The array is contiguous, so without the shape it is read as flat bytes.
            shape: if wants(ffi::PyBUF_ND) {
                shape.cast_mut()
            } else {
                none
            },
            strides: if wants(ffi::PyBUF_STRIDES) {
                strides.cast_mut()
            } else {
                none
            },
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

/// View the elements of a Python array.
pub fn numbers<'a, T: Element>(name: &str, array: &'a PyBuffer<T>) -> PyResult<&'a [T]> {
    if !array.is_c_contiguous() {
        let message = format!("{name}: expected a contiguous array");
        return Err(PyValueError::new_err(message));
    }
    if array.item_count() == 0 {
        return Ok(&[]);
    }
    // SAFETY: the exporter keeps this many elements in place as long as the buffer exists. Other
    // code could write them at the same time, as with any shared array; ours does not.
    Ok(unsafe { slice::from_raw_parts(array.buf_ptr().cast(), array.item_count()) })
}

/// Elements of arrays to read, and of arrays to write.
pub type Views<'a, T, const N: usize, const M: usize> = ([&'a [T]; N], [&'a mut [T]; M]);

/// View the elements of arrays to read and of arrays to write; `ValueError` if one to write is
/// read-only or shares memory with another.
pub fn views<'a, T: Element, const N: usize, const M: usize>(
    read: [(&str, &'a PyBuffer<T>); N],
    written: [(&str, &'a PyBuffer<T>); M],
) -> PyResult<Views<'a, T, N, M>> {
    let bytes = |array: &PyBuffer<T>| {
        let start = array.buf_ptr().addr();
        start..start + array.len_bytes()
    };
    for (at, &(name, array)) in written.iter().enumerate() {
        if array.readonly() {
            let message = format!("{name}: expected a writable array, got a read-only one");
            return Err(PyValueError::new_err(message));
        }
        let own = bytes(array);
        for &(other, array) in read.iter().chain(written.iter().take(at)) {
            let others = bytes(array);
            if own.start.max(others.start) < own.end.min(others.end) {
                let message = format!("{name}: expected memory of its own, shares that of {other}");
                return Err(PyValueError::new_err(message));
            }
        }
    }
    let mut inputs = [&[] as &[T]; N];
    let mut outputs = std::array::from_fn(|_| &mut [] as &mut [T]);
    for (to, (name, array)) in inputs.iter_mut().zip(read) {
        *to = numbers(name, array)?;
    }
    for (to, (name, array)) in outputs.iter_mut().zip(written) {
        let count = numbers(name, array)?.len();
        if count > 0 {
            // SAFETY: the exporter keeps this many elements in place as long as the buffer exists;
            // they are writable, and as checked no other view has a part of them.
            *to = unsafe { slice::from_raw_parts_mut(array.buf_ptr().cast(), count) };
        }
    }
    Ok((inputs, outputs))
}
