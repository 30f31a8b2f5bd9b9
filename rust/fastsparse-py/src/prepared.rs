//! Weights laid out for computing.

use fastsparse_core::element::{BF16, DType, F16, F32};
use fastsparse_core::linear::Weights;
use fastsparse_core::linear::indexed::{self, Indexed, SLOTS};
use fastsparse_core::matrix::Matrix;
use numpy::{PyArrayDescrMethods, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::array::{self, Input, shape_text};
use crate::errors;
use crate::linear::{Call, check_dtype};
use crate::ops::{Array, Parts, check_parts, checked_view, int64s, mask_bits, without_gil};
use crate::runtime;

/// Values, columns, steps and starts.
type Layout<'py> = (Array<'py>, Array<'py>, Array<'py>, Array<'py>);

/// Whether column indices compute faster than the mask.
#[pyfunction]
pub fn prefers_indices(values: &Bound<'_, PyAny>, shape: Vec<usize>, batch: usize) -> PyResult<bool> {
    let py = values.py();
    let (values, exec) = (Input::new(values, "values")?, runtime::exec(py, None)?);
    Ok(indexed::pays(exec.isa, values.dtype, checked_view(py, &shape)?, values.array.len(), batch))
}

/// The layout by column indices.
#[pyfunction]
pub fn index<'py>(
    py: Python<'py>,
    values: &Bound<'py, PyAny>,
    bitmask: &Array<'py>,
    row_offsets: &Array<'py>,
    shape: Vec<usize>,
) -> PyResult<Layout<'py>> {
    let exec = runtime::exec(py, None)?;
    let values = Input::new(values, "values")?;
    check_dtype(&values, "s")?;
    let view = checked_view(py, &shape)?;
    let bits = mask_bits(bitmask, "bitmask", view)?;
    let (mask, offsets) = (array::words::<u8>(&bits), int64s(row_offsets, view)?);
    let grid = indexed::grid(view);
    let steps = array::empty_words::<u8>(py, &[grid.rows, grid.cols])?;
    let starts = array::empty_words::<i64>(py, &[grid.rows + 1])?;
    // SAFETY: fresh; int64 and u64 have one size.
    let (to, begins) = unsafe { (array::words_mut::<u8>(&steps), as_int64s(array::words_mut::<u64>(&starts))) };
    without_gil(py, view.len(), || indexed::count(view, mask, exec, to, begins));
    let size = [begins[grid.rows] as usize, SLOTS];
    let laid = array::empty(values.array.dtype(), &size)?;
    let columns = array::empty_words::<u8>(py, &size)?;
    macro_rules! fill {
        ($W:ty) => {{
            let weights =
                Weights { shape: view, values: array::words::<$W>(&values.array), mask, offsets, groups: None };
            // SAFETY: fresh.
            let (out, places) = unsafe { (array::words_mut::<$W>(&laid), array::words_mut::<u8>(&columns)) };
            without_gil(py, view.len(), || indexed::index(weights, to, begins, exec, out, places))
        }};
    }
    match values.dtype {
        DType::F32 => fill!(u32),
        _ => fill!(u16),
    }
    .map_err(|error| errors::kernel(py, error, "bitmask", &shape))?;
    [&laid, &columns, &steps, &starts].into_iter().for_each(array::freeze);
    Ok((laid, columns, steps, starts))
}

fn as_int64s(words: &mut [u64]) -> &mut [i64] {
    // SAFETY: one size and alignment, and i64 takes every bit pattern.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len()) }
}

/// Parts of a layout, of lengths that agree.
struct Checked<'a, 'py> {
    view: Matrix,
    values: Input<'py>,
    columns: &'a [u8],
    steps: &'a [u8],
    starts: &'a [i64],
}

impl<'a, 'py> Checked<'a, 'py> {
    fn new(
        values: &Bound<'py, PyAny>,
        columns: &'a Array<'py>,
        steps: &'a Array<'py>,
        starts: &'a Array<'py>,
        shape: &[usize],
    ) -> PyResult<Self> {
        let py = values.py();
        let view = checked_view(py, shape)?;
        let grid = indexed::grid(view);
        let values = Input::new(values, "values")?;
        check_dtype(&values, "s")?;
        let bytes = |array: &Array<'py>, want: &[usize]| {
            array.shape() == want && array.dtype().num() == numpy::dtype::<u8>(py).num() && array.is_c_contiguous()
        };
        let laid = values.shape().len() == 2 && values.shape()[1] == SLOTS;
        if !laid || !bytes(columns, values.shape()) || !bytes(steps, &[grid.rows, grid.cols]) {
            let message = format!("columns: not those of weights of shape {}", shape_text(shape));
            return Err(errors::format(py, message));
        }
        let starts = int64s(starts, Matrix { rows: grid.rows, cols: 0 })?;
        Ok(Checked { view, values, columns: array::words(columns), steps: array::words(steps), starts })
    }

    fn layout<W: fastsparse_core::element::Word>(&self) -> Indexed<'_, W> {
        let Checked { view, ref values, columns, steps, starts } = *self;
        Indexed { shape: view, values: array::words(&values.array), columns, steps, starts }
    }
}

/// The packed form of a layout, with `kept` values.
#[pyfunction]
pub fn unindex<'py>(
    py: Python<'py>,
    values: &Bound<'py, PyAny>,
    columns: &Array<'py>,
    steps: &Array<'py>,
    starts: &Array<'py>,
    shape: Vec<usize>,
    kept: usize,
) -> PyResult<Parts<'py>> {
    let checked = Checked::new(values, columns, steps, starts, &shape)?;
    if kept > checked.values.array.len() {
        return Err(errors::format(py, format!("kept: at most {}, got {kept}", checked.values.array.len())));
    }
    let packed = array::empty(checked.values.array.dtype(), &[kept])?;
    let bits = array::empty_words::<u8>(py, &[checked.view.rows, checked.view.row_bytes()])?;
    // SAFETY: fresh.
    let mask = unsafe { array::words_mut::<u8>(&bits) };
    macro_rules! fill {
        ($W:ty) => {{
            // SAFETY: fresh.
            let out = unsafe { array::words_mut::<$W>(&packed) };
            let layout = checked.layout::<$W>();
            without_gil(py, checked.view.len(), || indexed::unindex(layout, out, mask))
        }};
    }
    match checked.values.dtype {
        DType::F32 => fill!(u32),
        _ => fill!(u16),
    }
    .map_err(|error| errors::kernel(py, error, "columns", &shape))?;
    check_parts(py, packed.as_any(), bits.as_any(), shape)
}

/// `x @ weights.T + bias` by column indices.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "the interface that both backends have")]
pub fn linear_indexed<'py>(
    py: Python<'py>,
    values: &Bound<'py, PyAny>,
    columns: &Array<'py>,
    steps: &Array<'py>,
    starts: &Array<'py>,
    shape: Vec<usize>,
    x: &Bound<'py, PyAny>,
    bias: Option<&Bound<'py, PyAny>>,
    out: Option<&Bound<'py, PyAny>>,
) -> PyResult<Array<'py>> {
    let exec = runtime::exec(py, None)?;
    let checked = Checked::new(values, columns, steps, starts, &shape)?;
    let parts = [("values", &checked.values.given), ("columns", columns), ("steps", steps), ("starts", starts)];
    let call = Call::new(&checked.values, checked.view, x, bias, None, out, &parts)?;
    let bias = call.bias();
    macro_rules! compute {
        ($E:ty, $X:ty, $W:ty, $Y:ty) => {{
            let (weights, x) = (checked.layout::<$W>(), array::words::<$Y>(&call.x.array));
            // SAFETY: fresh, or the caller's array that `Output::new` found writeable and apart from every input.
            let out = unsafe { array::words_mut::<$Y>(call.output.array()) };
            without_gil(py, call.work, || indexed::linear_indexed::<$E, $X>(weights, x, bias, exec, out))
        }};
    }
    match (checked.values.dtype, call.x.dtype) {
        (DType::F16, DType::F16) => compute!(F16, F16, u16, u16),
        (DType::BF16, DType::BF16) => compute!(BF16, BF16, u16, u16),
        (DType::F16, _) => compute!(F16, F32, u16, u32),
        (DType::BF16, _) => compute!(BF16, F32, u16, u32),
        _ => compute!(F32, F32, u32, u32),
    }
    .map_err(|error| errors::kernel(py, error, "columns", &shape))?;
    Ok(call.output.array().clone())
}
