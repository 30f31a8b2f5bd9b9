//! Weights laid out for computing.

use fastsparse_core::element::{BF16, DType, F16, F32, Word};
use fastsparse_core::error::Result;
use fastsparse_core::linear::Weights;
use fastsparse_core::linear::blocks::{self, Blocks};
use fastsparse_core::linear::indexed::{self, Column, Indexed};
use fastsparse_core::matrix::Matrix;
use fastsparse_core::parallel::Exec;
use numpy::PyUntypedArrayMethods;
use pyo3::prelude::*;

use crate::array::{self, Input, shape_text};
use crate::errors;
use crate::linear::{Call, by_floats, check_dtype};
use crate::ops::{Array, Parts, check_parts, checked_view, int64s, int64s_mut, mask_bits, without_gil};
use crate::runtime;

/// Values, columns, steps and starts.
type Layout<'py> = (Array<'py>, Array<'py>, Array<'py>, Array<'py>);

/// Runs `$body` with `$T` the first type where the condition holds and the second where not.
macro_rules! by_condition {
    ($condition:expr, $First:ty, $Second:ty, $T:ident => $body:expr) => {
        if $condition {
            type $T = $First;
            $body
        } else {
            type $T = $Second;
            $body
        }
    };
}

/// Runs `$body` with `$W` the word of a float dtype.
macro_rules! by_word {
    ($dtype:expr, $W:ident => $body:expr) => { by_condition!($dtype == DType::F32, u32, u16, $W => $body) };
}

/// Runs `$body` with `$C` the type of column indices.
macro_rules! by_column {
    ($in_bytes:expr, $C:ident => $body:expr) => { by_condition!($in_bytes, u8, u16, $C => $body) };
}

/// Whether column indices compute faster than the mask.
#[pyfunction]
pub fn prefers_indices(values: &Bound<'_, PyAny>, shape: Vec<usize>, batch: usize) -> PyResult<bool> {
    let py = values.py();
    let (values, exec) = (Input::new(values, "values")?, runtime::exec(py, None)?);
    Ok(indexed::pays(exec.isa, values.dtype, checked_view(py, &shape)?, values.array.len(), batch))
}

/// The layout by column indices of one byte or two; if it is not said, what computes faster here.
#[pyfunction]
#[pyo3(signature = (values, bitmask, row_offsets, shape, in_bytes=None))]
pub fn index<'py>(
    py: Python<'py>,
    values: &Bound<'py, PyAny>,
    bitmask: &Array<'py>,
    row_offsets: &Array<'py>,
    shape: Vec<usize>,
    in_bytes: Option<bool>,
) -> PyResult<Layout<'py>> {
    let exec = runtime::exec(py, None)?;
    let values = Input::new(values, "values")?;
    check_dtype(&values, "s")?;
    let view = checked_view(py, &shape)?;
    let bits = mask_bits(bitmask, "bitmask", view)?;
    let (mask, offsets) = (array::words::<u8>(&bits), int64s(row_offsets, view)?);
    let in_bytes = in_bytes.unwrap_or(indexed::in_bytes(exec.isa, values.dtype));
    by_word!(values.dtype, W => by_column!(in_bytes, C => lay::<W, C>(py, &values, view, mask, offsets, exec)))?
        .map_err(|error| errors::kernel(py, error, "bitmask", &shape))
}

/// The layout that belongs to a type of columns.
fn lay<'py, W: Word, C: Column + numpy::Element>(
    py: Python<'py>,
    values: &Input<'py>,
    view: Matrix,
    mask: &[u8],
    offsets: &[i64],
    exec: Exec,
) -> PyResult<Result<Layout<'py>>> {
    let grid = indexed::grid::<C>(view);
    let steps = array::empty_words::<u16>(py, &[grid.rows, grid.cols])?;
    let starts = array::empty_words::<i64>(py, &[grid.rows + 1])?;
    // SAFETY: fresh.
    let (to, begins) = unsafe { (array::words_mut::<u16>(&steps), int64s_mut(&starts)) };
    without_gil(py, view.len(), || indexed::count::<C>(view, mask, exec, to, begins));
    let size = [begins[grid.rows] as usize, C::SLOTS];
    let (laid, columns) = (array::empty(values.array.dtype(), &size)?, array::empty_words::<C>(py, &size)?);
    let weights = Weights { shape: view, values: array::words::<W>(&values.array), mask, offsets, groups: None };
    // SAFETY: fresh.
    let (out, indices) = unsafe { (array::words_mut::<W>(&laid), array::words_mut::<C>(&columns)) };
    let done = without_gil(py, view.len(), || indexed::index(weights, to, begins, exec, out, indices));
    [&laid, &columns, &steps, &starts].into_iter().for_each(array::freeze);
    Ok(done.map(|()| (laid, columns, steps, starts)))
}

/// Parts of a layout, of lengths that agree.
struct Checked<'a, 'py> {
    view: Matrix,
    values: Input<'py>,
    columns: &'a Array<'py>,
    in_bytes: bool,
    steps: &'a [u16],
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
        let values = Input::new(values, "values")?;
        check_dtype(&values, "s")?;
        let in_bytes = array::is_plain::<u8>(columns);
        let (grid, slots) =
            if in_bytes { (indexed::grid::<u8>(view), u8::SLOTS) } else { (indexed::grid::<u16>(view), u16::SLOTS) };
        let laid = values.shape().len() == 2 && values.shape()[1] == slots && columns.shape() == values.shape();
        let typed = in_bytes || array::is_plain::<u16>(columns);
        if !laid || !typed || !array::is_plain::<u16>(steps) || steps.shape() != [grid.rows, grid.cols] {
            let message = format!("columns: not those of weights of shape {}", shape_text(shape));
            return Err(errors::format(py, message));
        }
        let starts = int64s(starts, Matrix { rows: grid.rows, cols: 0 })?;
        Ok(Checked { view, values, columns, in_bytes, steps: array::words(steps), starts })
    }

    fn layout<W: Word, C: Column>(&self) -> Indexed<'_, W, C> {
        let Checked { view, ref values, columns, steps, starts, .. } = *self;
        Indexed { shape: view, values: array::words(&values.array), columns: array::words(columns), steps, starts }
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
    let packed = PackedForm::new(&checked.values, checked.view, kept)?;
    by_word!(checked.values.dtype, W => by_column!(checked.in_bytes, C => {
        let layout = checked.layout::<W, C>();
        packed.write(py, |values, mask| indexed::unindex(layout, values, mask))
    }))
    .map_err(|error| errors::kernel(py, error, "columns", &shape))?;
    check_parts(py, packed.values.as_any(), packed.bits.as_any(), shape)
}

/// Fresh memory for the packed form of a layout.
struct PackedForm<'py> {
    values: Array<'py>,
    bits: Array<'py>,
}

impl<'py> PackedForm<'py> {
    /// For `kept` of the layout's values.
    fn new(laid: &Input<'py>, view: Matrix, kept: usize) -> PyResult<Self> {
        let py = laid.array.py();
        if kept > laid.array.len() {
            return Err(errors::format(py, format!("kept: at most {}, got {kept}", laid.array.len())));
        }
        let values = array::empty(laid.array.dtype(), &[kept])?;
        Ok(PackedForm { values, bits: array::empty_words::<u8>(py, &[view.rows, view.row_bytes()])? })
    }

    /// Has values and mask written.
    fn write<W: Word>(
        &self,
        py: Python<'py>,
        unlay: impl FnOnce(&mut [W], &mut [u8]) -> Result<()> + Send,
    ) -> Result<()> {
        // SAFETY: fresh, and this is the only place that refers to the elements.
        let (values, mask) = unsafe { (array::words_mut(&self.values), array::words_mut(&self.bits)) };
        without_gil(py, 8 * mask.len(), || unlay(values, mask))
    }
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
    by_floats!(checked.values.dtype, call.x.dtype, E, X => by_column!(checked.in_bytes, C => {
        let weights = checked.layout::<_, C>();
        call.compute(py, |x, bias, out| indexed::linear_indexed::<E, X, C>(weights, x, bias, exec, out))
    }))
    .map_err(|error| errors::kernel(py, error, "columns", &shape))?;
    Ok(call.output.array().clone())
}

/// Panels, numbers of blocks, and where bands begin.
type BlockLayout<'py> = (Array<'py>, Array<'py>, Array<'py>);

/// Whether blocks of this shape compute faster than the mask.
#[pyfunction]
pub fn prefers_blocks(
    values: &Bound<'_, PyAny>,
    shape: Vec<usize>,
    block: (usize, usize),
    batch: usize,
) -> PyResult<bool> {
    let py = values.py();
    let (values, exec, view) = (Input::new(values, "values")?, runtime::exec(py, None)?, checked_view(py, &shape)?);
    let block = Matrix { rows: block.0, cols: block.1 };
    Ok(blocks::pays(exec.isa, values.dtype, view, block, values.array.len(), batch))
}

/// The shape of the layout's blocks.
fn cut_block(py: Python<'_>, view: Matrix, (rows, cols): (usize, usize)) -> PyResult<Matrix> {
    blocks::block_for(view, Matrix { rows, cols })
        .ok_or_else(|| errors::format(py, format!("block: no layout of {rows} × {cols} for {} columns", view.cols)))
}

/// The layout by blocks of weights that keep or drop whole blocks of this shape.
#[pyfunction]
pub fn lay_blocks<'py>(
    py: Python<'py>,
    values: &Bound<'py, PyAny>,
    bitmask: &Array<'py>,
    row_offsets: &Array<'py>,
    shape: Vec<usize>,
    block: (usize, usize),
) -> PyResult<BlockLayout<'py>> {
    let exec = runtime::exec(py, None)?;
    let values = Input::new(values, "values")?;
    check_dtype(&values, "s")?;
    let view = checked_view(py, &shape)?;
    let block = cut_block(py, view, block)?;
    let bits = mask_bits(bitmask, "bitmask", view)?;
    let (mask, offsets) = (array::words::<u8>(&bits), int64s(row_offsets, view)?);
    let starts = array::empty_words::<i64>(py, &[blocks::bands(view, block) + 1])?;
    // SAFETY: fresh.
    let begins = unsafe { int64s_mut(&starts) };
    without_gil(py, view.len(), || blocks::count(view, block, mask, begins));
    let all = begins[begins.len() - 1] as usize;
    let panels = [all * block.cols / blocks::PANEL, block.rows, blocks::PANEL];
    let (laid, index) = (array::empty(values.array.dtype(), &panels)?, array::empty_words::<u16>(py, &[all])?);
    // SAFETY: fresh.
    let numbers = unsafe { array::words_mut::<u16>(&index) };
    by_word!(values.dtype, W => {
        let weights = Weights { shape: view, values: array::words::<W>(&values.array), mask, offsets, groups: None };
        // SAFETY: fresh.
        let out = unsafe { array::words_mut::<W>(&laid) };
        without_gil(py, view.len(), || blocks::lay(weights, block, begins, exec, out, numbers))
    })
    .map_err(|error| errors::kernel(py, error, "bitmask", &shape))?;
    [&laid, &index, &starts].into_iter().for_each(array::freeze);
    Ok((laid, index, starts))
}

/// Parts of a layout by blocks, of lengths that agree.
struct CheckedBlocks<'a, 'py> {
    view: Matrix,
    block: Matrix,
    values: Input<'py>,
    index: &'a [u16],
    starts: &'a [i64],
}

impl<'a, 'py> CheckedBlocks<'a, 'py> {
    fn new(
        values: &Bound<'py, PyAny>,
        index: &'a Array<'py>,
        starts: &'a Array<'py>,
        shape: &[usize],
        block: (usize, usize),
    ) -> PyResult<Self> {
        let py = values.py();
        let view = checked_view(py, shape)?;
        let block = cut_block(py, view, block)?;
        let values = Input::new(values, "values")?;
        check_dtype(&values, "s")?;
        let panels = index.len().checked_mul(block.cols).map(|columns| columns / blocks::PANEL);
        let laid = panels.is_some_and(|panels| values.shape() == [panels, block.rows, blocks::PANEL]);
        let whole = index.len() * block.cols % blocks::PANEL == 0;
        if !laid || !whole || !array::is_plain::<u16>(index) || index.shape().len() != 1 {
            let message = format!("index: not that of weights of shape {}", shape_text(shape));
            return Err(errors::format(py, message));
        }
        let starts = int64s(starts, Matrix { rows: blocks::bands(view, block), cols: 0 })?;
        Ok(CheckedBlocks { view, block, values, index: array::words(index), starts })
    }

    fn layout<W: Word>(&self) -> Blocks<'_, W> {
        let CheckedBlocks { view, block, ref values, index, starts } = *self;
        Blocks { shape: view, block, values: array::words(&values.array), index, starts }
    }
}

/// The packed form of a layout by blocks, with `kept` values.
#[pyfunction]
pub fn unlay_blocks<'py>(
    py: Python<'py>,
    values: &Bound<'py, PyAny>,
    index: &Array<'py>,
    starts: &Array<'py>,
    shape: Vec<usize>,
    block: (usize, usize),
    kept: usize,
) -> PyResult<Parts<'py>> {
    let checked = CheckedBlocks::new(values, index, starts, &shape, block)?;
    let packed = PackedForm::new(&checked.values, checked.view, kept)?;
    by_word!(checked.values.dtype, W => {
        let layout = checked.layout::<W>();
        packed.write(py, |values, mask| blocks::unlay(layout, values, mask))
    })
    .map_err(|error| errors::kernel(py, error, "index", &shape))?;
    check_parts(py, packed.values.as_any(), packed.bits.as_any(), shape)
}

/// `x @ weights.T + bias` by blocks.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "the interface that both backends have")]
pub fn linear_blocks<'py>(
    py: Python<'py>,
    values: &Bound<'py, PyAny>,
    index: &Array<'py>,
    starts: &Array<'py>,
    shape: Vec<usize>,
    block: (usize, usize),
    x: &Bound<'py, PyAny>,
    bias: Option<&Bound<'py, PyAny>>,
    out: Option<&Bound<'py, PyAny>>,
) -> PyResult<Array<'py>> {
    let exec = runtime::exec(py, None)?;
    let checked = CheckedBlocks::new(values, index, starts, &shape, block)?;
    let parts = [("values", &checked.values.given), ("index", index), ("starts", starts)];
    let call = Call::new(&checked.values, checked.view, x, bias, None, out, &parts)?;
    by_floats!(checked.values.dtype, call.x.dtype, E, X => {
        let weights = checked.layout();
        call.compute(py, |x, bias, out| blocks::linear_blocks::<E, X>(weights, x, bias, exec, out))
    })
    .map_err(|error| errors::kernel(py, error, "index", &shape))?;
    Ok(call.output.array().clone())
}
