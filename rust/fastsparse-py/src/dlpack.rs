//! Arrays and tensors of others over the same memory, by capsules of DLPack.
//!
//! NumPy reads and makes such capsules as well, but does not know bfloat16, and takes several times
//! as long: a small layer of torch spends most of its time on the way in and out.

use std::ffi::{CStr, c_void};

use numpy::npyffi::{NPY_ARRAY_WRITEABLE, PY_ARRAY_API, PyArrayObject};
use numpy::{PyArrayDescr, PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::PyBufferError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyCapsule;
use pyo3::{PyTypeInfo, ffi};

use crate::array;

/// The name of a capsule whose tensor nobody has taken over.
const NAME: &CStr = c"dltensor";

/// The memory of the CPU.
const CPU: i32 = 1;

/// Dimensions at most.
const DIMENSIONS: usize = 64;

/// `DLTensor` of dlpack.h 0.8, with its parts written out.
#[repr(C)]
struct Tensor {
    data: *mut c_void,
    device: i32,
    device_id: i32,
    dimensions: i32,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *mut i64,
    strides: *mut i64,
    byte_offset: u64,
}

/// `DLManagedTensor`.
#[repr(C)]
struct Managed {
    tensor: Tensor,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Managed)>,
}

/// Codes and bits of the dtypes that cross, and what they are called in NumPy or `ml_dtypes`.
const DTYPES: [(u8, u8, &str); 9] = [
    (0, 8, "int8"),
    (0, 32, "int32"),
    (0, 64, "int64"),
    (1, 8, "uint8"),
    (2, 16, "float16"),
    (2, 32, "float32"),
    (2, 64, "float64"),
    (4, 16, "bfloat16"),
    (6, 8, "bool"),
];

/// These as NumPy has them.
fn dtypes(py: Python<'_>) -> PyResult<&'static [Py<PyArrayDescr>]> {
    static FOUND: PyOnceLock<Vec<Py<PyArrayDescr>>> = PyOnceLock::new();
    let found = FOUND.get_or_try_init(py, || {
        py.import("ml_dtypes")?; // it registers bfloat16
        DTYPES.iter().map(|(.., name)| Ok(PyArrayDescr::new(py, *name)?.unbind())).collect::<PyResult<_>>()
    });
    Ok(found?)
}

/// An array over the memory of a tensor, which it keeps alive. The capsule must not be given to
/// anybody else.
#[pyfunction]
pub fn from_dlpack<'py>(py: Python<'py>, capsule: Bound<'py, PyCapsule>) -> PyResult<Bound<'py, PyUntypedArray>> {
    let managed = capsule.pointer_checked(Some(NAME))?.cast::<Managed>();
    // SAFETY: a capsule of this name holds such a structure, which lives as long as the capsule
    // unless somebody takes it over.
    let tensor = unsafe { &managed.as_ref().tensor };
    let known = DTYPES.iter().position(|&(code, bits, _)| (code, bits, 1) == (tensor.code, tensor.bits, tensor.lanes));
    let (Some(known), CPU, Ok(len @ 0..=DIMENSIONS)) = (known, tensor.device, usize::try_from(tensor.dimensions))
    else {
        return Err(PyBufferError::new_err("a tensor of this device or dtype is no array"));
    };
    let mut shape = [0isize; DIMENSIONS];
    let mut strides = [0isize; DIMENSIONS];
    let size = isize::from(tensor.bits) / 8;
    for i in 0..len {
        // SAFETY: there are as many sizes as dimensions, and as many strides if any.
        unsafe {
            shape[i] = *tensor.shape.add(i) as isize;
            strides[i] = if tensor.strides.is_null() { 0 } else { size * *tensor.strides.add(i) as isize };
        }
    }
    let strides = if tensor.strides.is_null() { std::ptr::null_mut() } else { strides.as_mut_ptr() };
    let descr = dtypes(py)?[known].bind(py).clone();
    // SAFETY: sizes and strides are those of the memory, whose owner becomes the base of the array;
    // the calls take over the references to descriptor and capsule.
    unsafe {
        let array = PY_ARRAY_API.PyArray_NewFromDescr(
            py,
            PyUntypedArray::type_object_raw(py),
            descr.into_dtype_ptr(),
            len as i32,
            shape.as_mut_ptr(),
            strides,
            tensor.data.wrapping_byte_add(tensor.byte_offset as usize),
            NPY_ARRAY_WRITEABLE,
            std::ptr::null_mut(),
        );
        let array = Bound::from_owned_ptr_or_err(py, array)?;
        if PY_ARRAY_API.PyArray_SetBaseObject(py, array.as_ptr().cast::<PyArrayObject>(), capsule.into_ptr()) < 0 {
            return Err(PyErr::fetch(py));
        }
        Ok(array.cast_into_unchecked())
    }
}

/// What a capsule made here owns.
struct Exported {
    managed: Managed,
    /// Sizes, then strides.
    sizes: Vec<i64>,
    /// Keeps the memory.
    _array: Py<PyUntypedArray>,
}

/// A capsule for somebody who makes a tensor of it, over the memory of a writeable array.
#[pyfunction]
pub fn to_dlpack<'py>(py: Python<'py>, array: &Bound<'py, PyUntypedArray>) -> PyResult<Bound<'py, PyAny>> {
    let descr = array.dtype();
    let known = dtypes(py)?.iter().position(|known| known.bind(py).num() == descr.num());
    let (Some(known), true, true) = (known, array::writeable(array), descr.is_native_byteorder() != Some(false)) else {
        return Err(PyBufferError::new_err("an array that is read-only or of this dtype is no tensor"));
    };
    let (code, bits, _) = DTYPES[known];
    let size = isize::from(bits) / 8;
    if array.strides().iter().any(|stride| *stride < 0 || stride % size != 0) {
        return Err(PyBufferError::new_err(
            "an array with negative strides, or those of no whole elements, is no tensor",
        ));
    }
    let sizes = array.shape().iter().map(|&n| n as i64).chain(array.strides().iter().map(|&n| (n / size) as i64));
    let (data, _) = array::extent(array);
    let mut exported = Box::new(Exported {
        managed: Managed {
            tensor: Tensor {
                data: data.cast(),
                device: CPU,
                device_id: 0,
                dimensions: array.shape().len() as i32,
                code,
                bits,
                lanes: 1,
                shape: std::ptr::null_mut(),
                strides: std::ptr::null_mut(),
                byte_offset: 0,
            },
            context: std::ptr::null_mut(),
            deleter: Some(delete),
        },
        sizes: sizes.collect(),
        _array: array.clone().unbind(),
    });
    let shape = exported.sizes.as_mut_ptr();
    exported.managed.tensor.shape = shape;
    exported.managed.tensor.strides = shape.wrapping_add(array.shape().len());
    let exported = Box::into_raw(exported);
    // SAFETY: the box is given away, and comes back in `delete`, from whoever takes the tensor over
    // or from `discard`.
    unsafe {
        let managed = &raw mut (*exported).managed;
        (*managed).context = exported.cast();
        Bound::from_owned_ptr_or_err(py, ffi::PyCapsule_New(managed.cast(), NAME.as_ptr(), Some(discard)))
            .inspect_err(|_| drop(Box::from_raw(exported)))
    }
}

/// Lets go of the array, on whatever thread. While the interpreter ends it is left as it is.
unsafe extern "C" fn delete(managed: *mut Managed) {
    // SAFETY: a tensor of `to_dlpack`, which nobody uses any more.
    let exported = unsafe { (*managed).context.cast::<Exported>() };
    Python::try_attach(|_| {
        // SAFETY: the box of `to_dlpack`, given back once.
        drop(unsafe { Box::from_raw(exported) });
    });
}

/// Ends a capsule that nobody has taken the tensor from: those who do rename it.
unsafe extern "C" fn discard(capsule: *mut ffi::PyObject) {
    // SAFETY: a capsule of `to_dlpack`, and the GIL is held.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, NAME.as_ptr()) != 0 {
            delete(ffi::PyCapsule_GetPointer(capsule, NAME.as_ptr()).cast());
        }
    }
}
