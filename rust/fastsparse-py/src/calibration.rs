//! Calibrated pruning: the sweep over a block of columns, the steps that refine kept weights.

use fastsparse_core::calibration::{self as kernels, Choice, Columns, Groups, Refinement};
use fastsparse_core::element::DType;
use numpy::PyUntypedArrayMethods;
use pyo3::prelude::*;

use crate::array::{self, Input, shape_text};
use crate::errors;
use crate::ops::{Array, f32s, mask_bits, without_gil};
use crate::runtime;
use crate::spec;

/// An argument of float32 and a certain shape, contiguous.
fn floats<'py>(object: &Bound<'py, PyAny>, name: &str, shape: &[usize]) -> PyResult<Array<'py>> {
    let input = Input::new(object, name)?;
    if input.dtype == DType::F32 && input.shape() == shape {
        return Ok(input.array);
    }
    let message = format!("{name}: expected float32 of shape {}", shape_text(shape));
    Err(errors::general(object.py(), message))
}

/// Prunes columns from left to right; each makes those after it take over what it loses.
#[pyfunction]
pub fn prune_columns<'py>(
    py: Python<'py>,
    w: &Bound<'py, PyAny>,
    inverse: &Bound<'py, PyAny>,
    scale: &Bound<'py, PyAny>,
    bits: Option<&Array<'py>>,
    groups: Option<(usize, usize, usize)>,
) -> PyResult<(Array<'py>, Array<'py>)> {
    let exec = runtime::exec(py, None)?;
    let given = Input::new(w, "w")?;
    let &[rows, cols] = given.shape() else {
        return Err(errors::general(py, format!("w: expected a matrix, got shape {}", shape_text(given.shape()))));
    };
    let view = spec::matrix(given.shape());
    let weights = floats(w, "w", &[rows, cols])?;
    let (inverse, scale) = (floats(inverse, "inverse", &[cols, cols])?, floats(scale, "scale", &[cols])?);
    let mask = bits.map(|bits| mask_bits(bits, "bits", view)).transpose()?;
    let choice = match (&mask, groups) {
        (Some(mask), None) => Choice::Mask(array::words(mask)),
        (None, Some((zeros, of, zeros_at_end))) if of > 0 => Choice::Groups(Groups { zeros, of, zeros_at_end }),
        _ => return Err(errors::general(py, "groups: expected them or bits, of at least one column".into())),
    };
    let columns = Columns {
        shape: view,
        weights: f32s(array::words(&weights)),
        inverse: f32s(array::words(&inverse)),
        scale: f32s(array::words(&scale)),
    };
    let out = array::empty_words::<f32>(py, &[rows, cols])?;
    let kept = array::empty_words::<u8>(py, &[rows, view.row_bytes()])?;
    // SAFETY: fresh, nobody else has them.
    let (numbers, bytes) = unsafe { (floats_mut(&out), array::words_mut::<u8>(&kept)) };
    without_gil(py, view.len(), || kernels::prune_columns(columns, choice, exec, numbers, bytes))
        .map_err(|error| errors::kernel(py, error, "w", given.shape()))?;
    array::freeze(&kept);
    Ok((out, kept))
}

/// One step of conjugate gradients for each row on its own, in place.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "the interface that both backends have")]
pub fn refine_step<'py>(
    py: Python<'py>,
    x: &Array<'py>,
    residual: &Array<'py>,
    direction: &Array<'py>,
    product: Option<&Bound<'py, PyAny>>,
    scale: &Bound<'py, PyAny>,
    bits: &Array<'py>,
    energy: &Array<'py>,
) -> PyResult<()> {
    let exec = runtime::exec(py, None)?;
    let &[rows, cols] = x.shape() else {
        return Err(errors::general(py, format!("x: expected a matrix, got shape {}", shape_text(x.shape()))));
    };
    let view = spec::matrix(x.shape());
    let (f32s_of, f64s_of) = (numpy::dtype::<f32>(py), numpy::dtype::<f64>(py));
    let owned = [("x", x), ("residual", residual), ("direction", direction), ("energy", energy)];
    let product = product.map(|product| floats(product, "product", &[rows, cols])).transpose()?;
    let (scale, bits) = (floats(scale, "scale", &[cols])?, mask_bits(bits, "bits", view)?);
    for (i, (name, array)) in owned.iter().enumerate() {
        let (shape, dtype): (&[usize], _) = if i < 3 { (&[rows, cols], &f32s_of) } else { (&[rows], &f64s_of) };
        // What is written to overlaps nothing: neither what is read nor each other.
        let mut others: Vec<_> = owned[..i].to_vec();
        others.extend(product.iter().map(|product| ("product", product)));
        others.extend([("scale", &scale), ("bits", &bits)]);
        array::Output::new(Some(array.as_any()), dtype.clone(), shape, false, &others)
            .map_err(|error| errors::general(py, format!("{name}: {}", error.value(py))))?;
    }
    // SAFETY: writeable, contiguous and apart from each other and from what is read, as was
    // checked; the caller made them.
    let all = unsafe {
        Refinement {
            shape: view,
            x: floats_mut(x),
            residual: floats_mut(residual),
            direction: floats_mut(direction),
            energy: doubles_mut(energy),
        }
    };
    let product = product.as_ref().map(|product| f32s(array::words(product)));
    let (scale, bits) = (f32s(array::words(&scale)), array::words(&bits));
    without_gil(py, view.len(), || kernels::refine_step(all, product, scale, bits, exec));
    Ok(())
}

/// # Safety
/// As for [`array::words_mut`].
#[expect(clippy::mut_from_ref, reason = "the elements belong to NumPy, not to the borrowed handle")]
unsafe fn floats_mut<'a>(array: &'a Array<'_>) -> &'a mut [f32] {
    // SAFETY: the caller's promise.
    let words = unsafe { array::words_mut::<u32>(array) };
    // SAFETY: same size and alignment, and every bit pattern is a float.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len()) }
}

/// # Safety
/// As for [`array::words_mut`].
#[expect(clippy::mut_from_ref, reason = "the elements belong to NumPy, not to the borrowed handle")]
unsafe fn doubles_mut<'a>(array: &'a Array<'_>) -> &'a mut [f64] {
    // SAFETY: the caller's promise.
    let words = unsafe { array::words_mut::<u64>(array) };
    // SAFETY: same size and alignment, and every bit pattern is a float.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len()) }
}
