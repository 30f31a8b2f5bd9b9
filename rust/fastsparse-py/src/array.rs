//! NumPy arrays in and out: what is accepted, borrowed as elements, and allocated as results.
//!
//! bfloat16 and the fp8 types are user-defined dtypes of `ml_dtypes`; they are told apart by their
//! type numbers, which NumPy hands out when `ml_dtypes` is imported.

use fastsparse_core::element::{DType, Elements, Word};
use numpy::npyffi::{NPY_ARRAY_WRITEABLE, NPY_ORDER, PY_ARRAY_API, PyArray_Dims};
use numpy::{PyArrayDescr, PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyString;

use crate::errors;

/// The dtypes that fastsparse knows, in the order of its messages; `ml_dtypes` marks those of that
/// module.
const KNOWN: [(DType, &str, bool); 8] = [
    (DType::F64, "float64", false),
    (DType::F32, "float32", false),
    (DType::F16, "float16", false),
    (DType::BF16, "bfloat16", true),
    (DType::F8E4M3, "float8_e4m3fn", true),
    (DType::F8E5M2, "float8_e5m2", true),
    (DType::I8, "int8", false),
    (DType::U8, "uint8", false),
];

fn type_numbers(py: Python<'_>) -> PyResult<&'static [(i32, DType); 8]> {
    static NUMBERS: PyOnceLock<[(i32, DType); 8]> = PyOnceLock::new();
    NUMBERS.get_or_try_init(py, || {
        let (numpy, ml_dtypes) = (py.import("numpy")?, py.import("ml_dtypes")?);
        let mut numbers = [(0, DType::U8); 8];
        for (slot, (dtype, name, extra)) in numbers.iter_mut().zip(KNOWN) {
            let class = if extra { &ml_dtypes } else { &numpy }.getattr(name)?;
            *slot = (PyArrayDescr::new(py, class)?.num(), dtype);
        }
        Ok(numbers)
    })
}

/// `numpy.asarray(object)`, or `numpy.from_dlpack(object)` of what has nothing else; an array is
/// passed through.
pub fn as_array<'py>(object: &Bound<'py, PyAny>, name: &str) -> PyResult<Bound<'py, PyUntypedArray>> {
    if let Ok(array) = object.cast::<PyUntypedArray>() {
        return Ok(array.clone());
    }
    let py = object.py();
    let only_dlpack = object.hasattr(intern!(py, "__dlpack__"))? && !object.hasattr(intern!(py, "__array__"))?;
    let function = if only_dlpack { intern!(py, "from_dlpack") } else { intern!(py, "asarray") };
    let array = py.import(intern!(py, "numpy"))?.call_method1(function, (object,));
    match array {
        Ok(array) => Ok(array.cast_into::<PyUntypedArray>()?),
        Err(error) if error.is_instance_of::<pyo3::exceptions::PyValueError>(py) => {
            Err(errors::general(py, format!("{name}: cannot be read as an array: {}", error.value(py))))
        }
        // A tensor of torch that NumPy cannot take: bfloat16, one with a gradient, on another
        // device.
        Err(error) => match torch_hint(object)? {
            "" => Err(error),
            hint => Err(errors::general(py, format!("{name}: cannot be read as an array: {}{hint}", error.value(py)))),
        },
    }
}

/// What a message about a tensor of torch ends with; empty for everything else.
fn torch_hint(object: &Bound<'_, PyAny>) -> PyResult<&'static str> {
    let tensor = object.hasattr(intern!(object.py(), "__torch_function__"))?;
    Ok(if tensor { "; fastsparse.torch has the same functions for tensors" } else { "" })
}

/// The array itself where its elements lie in C order and aligned, a copy otherwise.
pub fn contiguous<'py>(array: Bound<'py, PyUntypedArray>) -> PyResult<Bound<'py, PyUntypedArray>> {
    if array.is_c_contiguous() && array.is_aligned() {
        return Ok(array);
    }
    let py = array.py();
    Ok(array.call_method1(intern!(py, "copy"), (intern!(py, "C"),))?.cast_into()?)
}

/// An array argument of a known dtype, contiguous.
pub struct Input<'py> {
    /// The array, or a contiguous copy of it.
    pub array: Bound<'py, PyUntypedArray>,
    /// The array itself.
    pub given: Bound<'py, PyUntypedArray>,
    /// Type of its elements.
    pub dtype: DType,
}

impl<'py> Input<'py> {
    /// Takes anything `numpy.asarray` takes; `name` is the argument's, for messages.
    pub fn new(object: &Bound<'py, PyAny>, name: &str) -> PyResult<Input<'py>> {
        Self::with_error(object, name, errors::general)
    }

    /// The same for a part of a packed tensor: a dtype that is not known is a `FormatError`.
    pub fn part(object: &Bound<'py, PyAny>, name: &str) -> PyResult<Input<'py>> {
        Self::with_error(object, name, errors::format)
    }

    fn with_error(
        object: &Bound<'py, PyAny>,
        name: &str,
        error: fn(Python<'py>, String) -> PyErr,
    ) -> PyResult<Input<'py>> {
        let array = as_array(object, name)?;
        let dtype = known_dtype(&array, name, error)?;
        Ok(Input { array: contiguous(array.clone())?, given: array, dtype })
    }

    /// The shape.
    pub fn shape(&self) -> &[usize] {
        self.array.shape()
    }

    /// The elements, borrowed from the array. Another thread may write to them meanwhile; the
    /// kernels are written for that.
    pub fn elements(&self) -> Elements<'_> {
        match self.dtype {
            DType::F64 => Elements::F64(words(&self.array)),
            DType::F32 => Elements::F32(words(&self.array)),
            DType::F16 => Elements::F16(words(&self.array)),
            DType::BF16 => Elements::BF16(words(&self.array)),
            DType::F8E4M3 => Elements::F8E4M3(words(&self.array)),
            DType::F8E5M2 => Elements::F8E5M2(words(&self.array)),
            DType::I8 => Elements::I8(words(&self.array)),
            DType::U8 => Elements::U8(words(&self.array)),
        }
    }
}

fn known_dtype<'py>(
    array: &Bound<'py, PyUntypedArray>,
    name: &str,
    error: fn(Python<'py>, String) -> PyErr,
) -> PyResult<DType> {
    let py = array.py();
    let descr = array.dtype();
    let number = descr.num();
    if let Some((_, dtype)) = type_numbers(py)?.iter().find(|known| known.0 == number)
        && descr.is_native_byteorder() != Some(false)
    {
        return Ok(*dtype);
    }
    let known = KNOWN.map(|known| known.1).join(", ");
    let found = dtype_text(&descr)?;
    let foreign = type_numbers(py)?.iter().position(|known| known.0 == number).map_or(String::new(), |at| {
        format!(" in the byte order of this machine; convert it with .astype(\"{}\")", KNOWN[at].1)
    });
    Err(error(py, format!("{name}: dtype {found} is not supported; expected one of {known}{foreign}")))
}

/// A dtype for messages; NumPy's `name` hides a foreign byte order.
pub fn dtype_text<'py>(descr: &Bound<'py, PyArrayDescr>) -> PyResult<Bound<'py, PyString>> {
    if descr.is_native_byteorder() == Some(false) { descr.str() } else { descr.getattr("name")?.str() }
}

/// Start and length in bytes of a contiguous array.
pub fn extent(array: &Bound<'_, PyUntypedArray>) -> (*mut u8, usize) {
    // SAFETY: a live array object has a valid header.
    let data = unsafe { (*array.as_array_ptr()).data.cast() };
    (data, array.len() * array.dtype().itemsize())
}

/// Whether the elements are of this type, in the byte order of the machine, aligned and in C order.
pub fn is_plain<T: numpy::Element>(array: &Bound<'_, PyUntypedArray>) -> bool {
    let descr = array.dtype();
    descr.num() == numpy::dtype::<T>(array.py()).num()
        && descr.is_native_byteorder() != Some(false)
        && array.is_c_contiguous()
        && array.is_aligned()
}

/// Start of a contiguous, aligned array of words. Callers have refused or copied others; whoever
/// has not panics.
fn start<W: Word>(array: &Bound<'_, PyUntypedArray>) -> *mut W {
    let (data, bytes) = extent(array);
    assert!(array.is_c_contiguous() && bytes == array.len() * W::BYTES && data.cast::<W>().is_aligned());
    data.cast()
}

/// The elements of a contiguous, aligned array as words of their size.
pub fn words<'a, W: Word>(array: &'a Bound<'_, PyUntypedArray>) -> &'a [W] {
    if array.is_empty() {
        return &[];
    }
    let data = start(array);
    // SAFETY: `start` has checked that the array is contiguous, aligned, and of words; it lives as
    // long as the borrow.
    unsafe { std::slice::from_raw_parts(data, array.len()) }
}

/// As [`words`], to be written.
///
/// # Safety
/// The array is writeable and nothing else refers to its elements during `'a`.
#[expect(clippy::mut_from_ref, reason = "the elements belong to NumPy, not to the borrowed handle")]
pub unsafe fn words_mut<'a, W: Word>(array: &'a Bound<'_, PyUntypedArray>) -> &'a mut [W] {
    if array.is_empty() {
        return &mut [];
    }
    let data = start(array);
    // SAFETY: as in `words`; not aliased is the caller's promise.
    unsafe { std::slice::from_raw_parts_mut(data, array.len()) }
}

/// A fresh C-contiguous array, not initialised. NumPy allocates it: it asks for huge pages where
/// that pays.
pub fn empty<'py>(descr: Bound<'py, PyArrayDescr>, shape: &[usize]) -> PyResult<Bound<'py, PyUntypedArray>> {
    let py = descr.py();
    let mut dims = [0isize; 64];
    let dims = &mut dims[..shape.len()];
    for (dim, &size) in dims.iter_mut().zip(shape) {
        *dim = size as isize;
    }
    // SAFETY: `dims` holds as many sizes as are announced; the call takes over the reference to the
    // descriptor.
    let array = unsafe {
        let array = PY_ARRAY_API.PyArray_Empty(py, dims.len() as i32, dims.as_mut_ptr(), descr.into_dtype_ptr(), 0);
        Bound::from_owned_ptr_or_err(py, array)?
    };
    Ok(array.cast_into()?)
}

/// Shortens an array of one dimension, made here and not yet handed out. What is cut off goes back
/// to the system.
pub fn shorten(array: &Bound<'_, PyUntypedArray>, len: usize) -> PyResult<()> {
    let py = array.py();
    let mut len = len as isize;
    let mut dims = PyArray_Dims { ptr: &mut len, len: 1 };
    // SAFETY: a live array that owns its memory, which nobody looks at; `dims` has one size.
    unsafe {
        let none = PY_ARRAY_API.PyArray_Resize(py, array.as_array_ptr(), &mut dims, 0, NPY_ORDER::NPY_CORDER);
        Bound::from_owned_ptr_or_err(py, none)?;
    }
    Ok(())
}

/// A fresh array of plain words (uint8 masks, int64 offsets).
pub fn empty_words<'py, T: numpy::Element>(py: Python<'py>, shape: &[usize]) -> PyResult<Bound<'py, PyUntypedArray>> {
    empty(numpy::dtype::<T>(py), shape)
}

/// Marks an array read-only. For arrays made here and not yet handed out.
pub fn freeze(array: &Bound<'_, PyUntypedArray>) {
    // SAFETY: the header of a live array; the GIL is held.
    unsafe { (*array.as_array_ptr()).flags &= !NPY_ARRAY_WRITEABLE };
}

/// A read-only view.
pub fn frozen_view<'py>(array: &Bound<'py, PyUntypedArray>) -> PyResult<Bound<'py, PyUntypedArray>> {
    let view = array.call_method0(intern!(array.py(), "view"))?.cast_into::<PyUntypedArray>()?;
    freeze(&view);
    Ok(view)
}

/// Whether an array may be written to.
pub fn writeable(array: &Bound<'_, PyUntypedArray>) -> bool {
    // SAFETY: the header of a live array.
    unsafe { (*array.as_array_ptr()).flags & NPY_ARRAY_WRITEABLE != 0 }
}

/// Whether an array lies in the stretch of memory that a contiguous one takes.
fn overlap(own: &Bound<'_, PyUntypedArray>, other: &Bound<'_, PyUntypedArray>) -> PyResult<bool> {
    if other.is_c_contiguous() {
        let ((a, a_len), (b, b_len)) = (extent(own), extent(other));
        return Ok(a_len > 0 && b_len > 0 && a < b.wrapping_add(b_len) && b < a.wrapping_add(a_len));
    }
    let numpy = own.py().import(intern!(own.py(), "numpy"))?;
    numpy.call_method1(intern!(own.py(), "may_share_memory"), (own, other))?.is_truthy()
}

/// The array to write a dense result to: `out`, checked, or a fresh one.
pub enum Output<'py> {
    /// Not initialised, aliased by nothing.
    Fresh(Bound<'py, PyUntypedArray>),
    /// The caller's, overlapping none of the inputs.
    Given(Bound<'py, PyUntypedArray>),
    /// The caller's, and it is the first input itself.
    InPlace(Bound<'py, PyUntypedArray>),
}

impl<'py> Output<'py> {
    /// Checks `out` against what the result needs and against the inputs, given as (name, array).
    /// Only the first input may be `out` itself, and only where `in_place`.
    pub fn new(
        out: Option<&Bound<'py, PyAny>>,
        descr: Bound<'py, PyArrayDescr>,
        shape: &[usize],
        in_place: bool,
        inputs: &[(&str, &Bound<'py, PyUntypedArray>)],
    ) -> PyResult<Output<'py>> {
        let Some(out) = out else { return Ok(Output::Fresh(empty(descr, shape)?)) };
        let py = out.py();
        let fits = |array: &Bound<'py, PyUntypedArray>| {
            array.shape() == shape
                && array.dtype().is_equiv_to(&descr)
                && array.is_c_contiguous()
                && array.is_aligned()
                && writeable(array)
        };
        let array = match out.cast::<PyUntypedArray>() {
            Ok(array) if fits(array) => array.clone(),
            given => {
                let got = match given {
                    Ok(array) => format!(
                        "shape {} and dtype {}{}{}",
                        shape_text(array.shape()),
                        dtype_text(&array.dtype())?,
                        if array.is_c_contiguous() && array.is_aligned() {
                            ""
                        } else {
                            ", not C-contiguous and aligned"
                        },
                        if writeable(array) { "" } else { ", read-only" },
                    ),
                    Err(_) => format!("{}{}", out.get_type().name()?, torch_hint(out)?),
                };
                return Err(errors::general(
                    py,
                    format!(
                        "out: expected a writeable C-contiguous array of shape {} and dtype {}, got {got}",
                        shape_text(shape),
                        dtype_text(&descr)?
                    ),
                ));
            }
        };
        let own = extent(&array);
        let mut same = false;
        for (i, (name, input)) in inputs.iter().enumerate() {
            if i == 0 && in_place && own.1 > 0 && input.is_c_contiguous() && extent(input) == own {
                same = true;
                continue;
            }
            if overlap(&array, input)? {
                let but = if in_place { "; only the input itself is allowed" } else { "" };
                return Err(errors::general(py, format!("out overlaps {name}{but}")));
            }
        }
        Ok(if same { Output::InPlace(array) } else { Output::Given(array) })
    }

    /// The array.
    pub fn array(&self) -> &Bound<'py, PyUntypedArray> {
        match self {
            Output::Fresh(array) | Output::Given(array) | Output::InPlace(array) => array,
        }
    }
}

/// A shape as Python prints it.
pub fn shape_text(shape: &[usize]) -> String {
    match shape {
        [one] => format!("({one},)"),
        _ => format!("({})", shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")),
    }
}
