//! What patterns would keep, and which of them a tensor obeys already.

use fastsparse_core::pack::mask_nonzero;
use fastsparse_core::{block, dispatch, nm, sweep, with_keys};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::array::{self, Input};
use crate::errors;
use crate::ops::{Array, Ranked, check_shape, checked_view, int64s_mut, mask_bits, shape_tuple, without_gil};
use crate::runtime;
use crate::spec::{self, Spec};

/// The energy of all but the smallest `n` elements, for each `n` of `zeros`.
#[pyfunction]
pub fn energies_of_largest(
    py: Python<'_>,
    w: &Bound<'_, PyAny>,
    zeros: Vec<usize>,
    column_scale: Option<&Bound<'_, PyAny>>,
    threads: Option<&Bound<'_, PyAny>>,
) -> PyResult<Vec<f64>> {
    let exec = runtime::exec(py, threads)?;
    let ranked = Ranked::new(w, None, column_scale)?;
    let (ranking, shape) = (ranked.ranking(), ranked.weights.shape());
    if let Some(zeros) = zeros.iter().find(|&&zeros| zeros > ranking.len()) {
        return Err(errors::general(py, format!("zeros: {zeros} of {} elements cannot be dropped", ranking.len())));
    }
    without_gil(py, ranking.len(), || with_keys!(ranking, keys => sweep::of_largest(&keys, &zeros, exec)))
        .map_err(|error| ranked.error(py, error, shape))
}

/// The energy of the elements of each rank within groups along an axis, of full groups and of
/// shorter ones.
#[pyfunction]
pub fn energies_by_rank(
    py: Python<'_>,
    w: &Bound<'_, PyAny>,
    of: usize,
    axis: isize,
    column_scale: Option<&Bound<'_, PyAny>>,
    threads: Option<&Bound<'_, PyAny>>,
) -> PyResult<(Vec<f64>, Vec<f64>)> {
    let exec = runtime::exec(py, threads)?;
    check_group(py, of)?;
    let ranked = Ranked::new(w, None, column_scale)?;
    let (ranking, shape) = (ranked.ranking(), ranked.weights.shape());
    let axis = spec::axis_of(py, shape, axis)?;
    without_gil(py, ranking.len(), || with_keys!(ranking, keys => sweep::by_rank(&keys, axis, of, exec)))
        .map_err(|error| ranked.error(py, error, shape))
}

/// Fails for groups that are too long for the kernels.
fn check_group(py: Python<'_>, of: usize) -> PyResult<()> {
    match of {
        1..=sweep::LARGEST_GROUP => Ok(()),
        _ => Err(errors::general(py, format!("of: expected 1 to {}, got {of}", sweep::LARGEST_GROUP))),
    }
}

/// The energy of the elements that a mask keeps.
#[pyfunction]
pub fn energy_of_mask(
    py: Python<'_>,
    w: &Bound<'_, PyAny>,
    shape: Vec<usize>,
    bits: &Array<'_>,
    column_scale: Option<&Bound<'_, PyAny>>,
    threads: Option<&Bound<'_, PyAny>>,
) -> PyResult<f64> {
    let exec = runtime::exec(py, threads)?;
    let ranked = Ranked::new(w, None, column_scale)?;
    let ranking = ranked.ranking();
    check_shape(py, "mask", &shape, ranked.weights.shape())?;
    let view = spec::matrix(&shape);
    let bits = mask_bits(bits, "bits", view)?;
    let mask = array::words(&bits);
    without_gil(py, ranking.len(), || with_keys!(ranking, keys => sweep::of_mask(&keys, view, mask, exec)))
        .map_err(|error| ranked.error(py, error, &shape))
}

/// Shape, mask and row offsets of what is not zero; NaN is not.
#[pyfunction]
pub fn nonzero<'py>(py: Python<'py>, w: &Bound<'py, PyAny>) -> PyResult<(Bound<'py, PyTuple>, Array<'py>, Array<'py>)> {
    let exec = runtime::exec(py, None)?;
    let weights = Input::new(w, "w")?;
    let view = spec::matrix(weights.shape());
    let bits = array::empty_words::<u8>(py, &[view.rows, view.row_bytes()])?;
    let offsets = array::empty_words::<i64>(py, &[view.rows + 1])?;
    // SAFETY: fresh, nobody else has them.
    let (mask, rows) = unsafe { (array::words_mut::<u8>(&bits), int64s_mut(&offsets)) };
    dispatch!(weights.elements(), E, data => {
        without_gil(py, view.len(), || mask_nonzero::<E>(data, view, exec, mask, rows))
    });
    array::freeze(&bits);
    array::freeze(&offsets);
    Ok((shape_tuple(py, weights.shape())?, bits, offsets))
}

/// The zeros that groups along an axis have in common, if they are `least` or more: of a full group,
/// and the least of a shorter one.
#[pyfunction]
pub fn common_zeros(
    py: Python<'_>,
    shape: Vec<usize>,
    bits: &Array<'_>,
    of: usize,
    axis: isize,
    least: usize,
) -> PyResult<Option<(usize, Option<usize>)>> {
    let exec = runtime::exec(py, None)?;
    check_group(py, of)?;
    if !(1..=of).contains(&least) {
        return Err(errors::general(py, format!("least: expected 1 to {of}, got {least}")));
    }
    let view = checked_view(py, &shape)?;
    let bits = mask_bits(bits, "bits", view)?;
    let mask = array::words(&bits);
    let axis = spec::axis_of(py, &shape, axis)?;
    if axis.len < of {
        return Ok(None);
    }
    let found = without_gil(py, view.len(), || nm::common_zeros(view, axis, of, least, mask, exec));
    Ok(found.map(|found| (found.zeros, found.in_tail)))
}

/// How many blocks a mask drops as a whole, how many it keeps as a whole, and how many there are.
/// None where of those that are not dropped more than a quarter are mixed.
#[pyfunction]
pub fn uniform_blocks(
    py: Python<'_>,
    shape: Vec<usize>,
    bits: &Array<'_>,
    spec: &Bound<'_, PyTuple>,
) -> PyResult<Option<(usize, usize, usize)>> {
    let exec = runtime::exec(py, None)?;
    let view = checked_view(py, &shape)?;
    let bits = mask_bits(bits, "bits", view)?;
    let mask = array::words(&bits);
    let Spec::Blocks { blocks, .. } = Spec::new(spec, &shape)? else {
        return Err(errors::general(py, format!("spec: {spec} is no block pattern")));
    };
    let found = without_gil(py, view.len(), || block::uniform(view, blocks, mask, exec));
    Ok(found.map(|(none, all)| (none, all, blocks.grid().len())))
}
