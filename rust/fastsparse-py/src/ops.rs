//! The operations: arrays in, kernels run without the GIL, arrays out.

use fastsparse_core::element::{DType, Element, Elements};
use fastsparse_core::element::{F16, F32};
use fastsparse_core::error::Error;
use fastsparse_core::keys::{ColumnScale, Ranking};
use fastsparse_core::matrix::{self, Matrix};
use fastsparse_core::parallel::Exec;
use fastsparse_core::select as selection;
use fastsparse_core::unpack::RowOffsets;
use fastsparse_core::{block, dispatch, nm, pack as packing, unpack as unpacking, with_keys};
use numpy::{PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyTuple};

use crate::array::{self, Input, Output, dtype_text, shape_text};
use crate::errors;
use crate::runtime;
use crate::spec::{self, Spec};

pub(crate) type Array<'py> = Bound<'py, PyUntypedArray>;
type Mask<'py> = (Bound<'py, PyTuple>, Array<'py>, usize);
pub(crate) type Parts<'py> = (Bound<'py, PyTuple>, Array<'py>, Array<'py>, Array<'py>);

/// Below this many elements a call keeps the GIL: releasing and taking it costs more than it gives
/// others.
const RELEASE_GIL: usize = 1 << 15;

pub(crate) fn without_gil<T: Send>(py: Python<'_>, elements: usize, work: impl FnOnce() -> T + Send) -> T {
    if elements < RELEASE_GIL { work() } else { py.detach(work) }
}

/// Runs `$body` with `$W` the word of a dtype's size.
macro_rules! by_size {
    ($dtype:expr, $W:ident => $body:expr) => {
        match $dtype.size() {
            1 => {
                type $W = u8;
                $body
            }
            2 => {
                type $W = u16;
                $body
            }
            4 => {
                type $W = u32;
                $body
            }
            _ => {
                type $W = u64;
                $body
            }
        }
    };
}

/// What a call ranks by, checked.
pub(crate) struct Ranked<'py> {
    pub(crate) weights: Input<'py>,
    scores: Option<Input<'py>>,
    scale: Option<Scale<'py>>,
}

struct Scale<'py> {
    values: Array<'py>,
    given: Array<'py>,
    cols: usize,
    repeat: usize,
}

impl<'py> Ranked<'py> {
    pub(crate) fn new(
        w: &Bound<'py, PyAny>,
        scores: Option<&Bound<'py, PyAny>>,
        column_scale: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Ranked<'py>> {
        let py = w.py();
        let weights = Input::new(w, "w")?;
        if scores.is_some() && column_scale.is_some() {
            return Err(errors::general(py, "column_scale: cannot be combined with scores".into()));
        }
        let scores = scores.map(|scores| Input::new(scores, "scores")).transpose()?;
        if let Some(scores) = &scores
            && scores.shape() != weights.shape()
        {
            let (got, want) = (shape_text(scores.shape()), shape_text(weights.shape()));
            return Err(errors::general(py, format!("scores: shape {got} does not match w's shape {want}")));
        }
        let scale = column_scale.map(|scale| Scale::new(scale, &weights)).transpose()?;
        Ok(Ranked { weights, scores, scale })
    }

    pub(crate) fn ranking(&self) -> Ranking<'_> {
        match (&self.scores, &self.scale) {
            (Some(scores), _) => Ranking::Scores(scores.elements()),
            (_, None) => Ranking::Magnitude(self.weights.elements()),
            (_, Some(Scale { values, cols, repeat, .. })) => match self.weights.elements() {
                Elements::F64(weights) => {
                    let values = f64s(array::words(values));
                    Ranking::Scaled64(weights, ColumnScale { values, cols: *cols, repeat: *repeat })
                }
                weights => {
                    let values = f32s(array::words(values));
                    Ranking::Scaled32(weights, ColumnScale { values, cols: *cols, repeat: *repeat })
                }
            },
        }
    }

    /// The exception for an error of the selection.
    pub(crate) fn error(&self, py: Python<'_>, error: Error, shape: &[usize]) -> PyErr {
        let name = if self.scores.is_some() { "scores" } else { "w" };
        if let (Error::Nan { index }, Some(_)) = (error, &self.scale)
            && !dispatch!(self.weights.elements(), E, data => E::to_f64(data[index]).is_nan())
        {
            let at = errors::index_text(index, shape);
            return errors::general(py, format!("w · column_scale is NaN at index {at}: inf times 0"));
        }
        errors::kernel(py, error, name, shape)
    }
}

pub(crate) fn f32s(words: &[u32]) -> &[f32] {
    // SAFETY: same size and alignment, and every bit pattern is a float.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), words.len()) }
}

fn f64s(words: &[u64]) -> &[f64] {
    // SAFETY: same size and alignment, and every bit pattern is a float.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), words.len()) }
}

/// `array.astype(dtype)` without a warning of numbers that it does not hold.
fn cast<'py>(array: &Array<'py>, dtype: &str) -> PyResult<Array<'py>> {
    let py = array.py();
    let ignore = [("over", "ignore")].into_py_dict(py)?;
    let quiet = py.import(intern!(py, "numpy"))?.call_method(intern!(py, "errstate"), (), Some(&ignore))?;
    quiet.call_method0(intern!(py, "__enter__"))?;
    let cast = array.call_method1(intern!(py, "astype"), (dtype,));
    quiet.call_method1(intern!(py, "__exit__"), (py.None(), py.None(), py.None()))?;
    Ok(cast?.cast_into()?)
}

impl<'py> Scale<'py> {
    fn new(object: &Bound<'py, PyAny>, weights: &Input<'py>) -> PyResult<Scale<'py>> {
        let py = object.py();
        let given = array::as_array(object, "column_scale")?;
        let (shape, cols) = (weights.shape(), spec::matrix(weights.shape()).cols);
        let channels = shape.get(1).copied().unwrap_or(cols);
        let repeat = match given.shape() {
            [len] if *len == cols => 1,
            [len] if *len == channels => cols / channels.max(1),
            other => {
                let allowed =
                    if channels == cols { format!("({cols},)") } else { format!("({cols},) or ({channels},)") };
                let message = format!("column_scale: expected shape {allowed}, got {}", shape_text(other));
                return Err(errors::general(py, message));
            }
        };
        let kind: String = given.dtype().getattr(intern!(py, "kind"))?.extract()?;
        let known = Input::new(given.as_any(), "column_scale").is_ok();
        if !known && !matches!(kind.as_str(), "f" | "i" | "u") {
            let message = format!("column_scale: expected real numbers, got dtype {}", dtype_text(&given.dtype())?);
            return Err(errors::general(py, message));
        }
        let target = if weights.dtype == DType::F64 { "float64" } else { "float32" };
        let values = array::contiguous(cast(&given, target)?)?;
        let fits = |x: f64| x >= 0.0 && x.is_finite();
        let bad = if weights.dtype == DType::F64 {
            f64s(array::words(&values)).iter().position(|&x| !fits(x))
        } else {
            f32s(array::words(&values)).iter().position(|&x| !fits(x.into()))
        };
        if let Some(at) = bad {
            let value = given.get_item(at)?;
            let number: f64 = value.call_method0("__float__")?.extract()?;
            let hint = if fits(number) {
                format!(": more than {target} holds")
            } else if number == f64::INFINITY && dtype_text(&given.dtype())? == "float16" {
                "; float16 holds at most 65504: compute norms in float32".to_string()
            } else {
                String::new()
            };
            let message = format!("column_scale: expected finite numbers ≥ 0, got {value} at index {at}{hint}");
            return Err(errors::general(py, message));
        }
        Ok(Scale { values, given, cols, repeat })
    }
}

/// Runs the selection of `spec`; `bits` is the mask to write. Returns the number of bits set.
fn run_select(ranking: Ranking<'_>, view: Matrix, spec: &Spec, exec: Exec, bits: &mut [u8]) -> Result<usize, Error> {
    match *spec {
        Spec::Tensor { zeros } => with_keys!(ranking, keys => selection::smallest(&keys, view, zeros, exec, bits)?),
        Spec::Rows { zeros } => {
            with_keys!(ranking, keys => selection::smallest_per_row(&keys, view, zeros, exec, bits)?)
        }
        Spec::Groups { axis, groups } => {
            with_keys!(ranking, keys => nm::select(&keys, view, axis, groups, exec, bits)?)
        }
        Spec::Blocks { blocks, norm, zeros } => block::select(ranking, view, blocks, norm, zeros, exec, bits)?,
        Spec::Threshold(value) => {
            with_keys!(ranking, keys => selection::above_value(&keys, view, value, exec, bits)?)
        }
        Spec::Nonzero => with_keys!(ranking, keys => selection::nonzero(&keys, view, exec, bits)?),
    }
    let expected = match *spec {
        Spec::Tensor { zeros } => Some(view.len() - zeros),
        Spec::Rows { zeros } => Some(view.rows * (view.cols - zeros)),
        Spec::Groups { axis, groups } => Some(groups.kept(axis)),
        Spec::Blocks { .. } | Spec::Threshold(_) | Spec::Nonzero => None,
    };
    let count = matrix::count_ones(bits, exec);
    // Weights that another thread writes to meanwhile give any mask.
    if expected.is_some_and(|expected| expected != count) { Err(Error::Changed) } else { Ok(count) }
}

/// Selects into a fresh mask.
fn select_bits<'py>(
    py: Python<'py>,
    ranked: &Ranked<'py>,
    spec: &Bound<'py, PyTuple>,
    exec: Exec,
) -> PyResult<(Array<'py>, usize)> {
    let shape = ranked.weights.shape();
    let view = spec::matrix(shape);
    let spec = Spec::new(spec, shape)?;
    if matches!(spec, Spec::Nonzero) && (ranked.scores.is_some() || ranked.scale.is_some()) {
        let name = if ranked.scores.is_some() { "scores" } else { "column_scale" };
        return Err(errors::general(py, format!("{name}: the nonzero pattern does not rank")));
    }
    let bits = array::empty_words::<u8>(py, &[view.rows, view.row_bytes()])?;
    // SAFETY: fresh, nobody else has it.
    let bytes = unsafe { array::words_mut::<u8>(&bits) };
    let ranking = ranked.ranking();
    let count = without_gil(py, view.len(), || run_select(ranking, view, &spec, exec, bytes))
        .map_err(|error| ranked.error(py, error, shape))?;
    array::freeze(&bits);
    Ok((bits, count))
}

pub(crate) fn shape_tuple<'py>(py: Python<'py>, shape: &[usize]) -> PyResult<Bound<'py, PyTuple>> {
    PyTuple::new(py, shape)
}

/// The mask that `spec` gives for `w`.
#[pyfunction]
pub fn select<'py>(
    py: Python<'py>,
    w: &Bound<'py, PyAny>,
    spec: &Bound<'py, PyTuple>,
    scores: Option<&Bound<'py, PyAny>>,
    column_scale: Option<&Bound<'py, PyAny>>,
    threads: Option<&Bound<'py, PyAny>>,
) -> PyResult<Mask<'py>> {
    let exec = runtime::exec(py, threads)?;
    let ranked = Ranked::new(w, scores, column_scale)?;
    let (bits, count) = select_bits(py, &ranked, spec, exec)?;
    Ok((shape_tuple(py, ranked.weights.shape())?, bits, count))
}

/// A mask argument: its bits, checked to be of the view's shape.
pub(crate) fn mask_bits<'py>(bits: &Array<'py>, name: &str, view: Matrix) -> PyResult<Array<'py>> {
    let py = bits.py();
    let want = [view.rows, view.row_bytes()];
    if bits.shape() != want || bits.dtype().num() != numpy::dtype::<u8>(py).num() {
        let message = format!(
            "{name}: expected uint8 of shape {}, got {} of shape {}",
            shape_text(&want),
            dtype_text(&bits.dtype())?,
            shape_text(bits.shape())
        );
        return Err(errors::format(py, message));
    }
    array::contiguous(bits.clone())
}

pub(crate) fn check_shape(py: Python<'_>, name: &str, got: &[usize], want: &[usize]) -> PyResult<()> {
    if got == want {
        return Ok(());
    }
    let message = format!("{name}: shape {} does not match w's shape {}", shape_text(got), shape_text(want));
    Err(errors::general(py, message))
}

/// Writes `weights` under the mask to `output`.
fn mask_into(py: Python<'_>, weights: &Input<'_>, view: Matrix, mask: &[u8], output: &Output<'_>, exec: Exec) {
    by_size!(weights.dtype, W => {
        // SAFETY: fresh, or the caller's array that `Output::new` found writeable and apart from
        // every input; in place the input is not read through another reference.
        let out = unsafe { array::words_mut::<W>(output.array()) };
        if matches!(output, Output::InPlace(_)) {
            without_gil(py, view.len(), || packing::apply_mask_in_place(out, view, mask, exec));
        } else {
            let weights = array::words::<W>(&weights.array);
            without_gil(py, view.len(), || packing::apply_mask(weights, view, mask, exec, out));
        }
    });
}

/// `w` with zeros where the mask has none.
#[pyfunction]
pub fn apply_mask<'py>(
    py: Python<'py>,
    w: &Bound<'py, PyAny>,
    shape: Vec<usize>,
    bits: &Array<'py>,
    out: Option<&Bound<'py, PyAny>>,
) -> PyResult<Array<'py>> {
    let exec = runtime::exec(py, None)?;
    let weights = Input::new(w, "w")?;
    check_shape(py, "mask", &shape, weights.shape())?;
    let view = spec::matrix(&shape);
    let bits = mask_bits(bits, "bits", view)?;
    let output = Output::new(out, weights.array.dtype(), &shape, true, &[("w", &weights.given), ("mask", &bits)])?;
    mask_into(py, &weights, view, array::words(&bits), &output, exec);
    Ok(output.array().clone())
}

/// Select and mask in one call.
#[pyfunction]
pub fn prune<'py>(
    py: Python<'py>,
    w: &Bound<'py, PyAny>,
    spec: &Bound<'py, PyTuple>,
    out: Option<&Bound<'py, PyAny>>,
    scores: Option<&Bound<'py, PyAny>>,
    column_scale: Option<&Bound<'py, PyAny>>,
    threads: Option<&Bound<'py, PyAny>>,
) -> PyResult<Array<'py>> {
    let exec = runtime::exec(py, threads)?;
    let ranked = Ranked::new(w, scores, column_scale)?;
    let weights = &ranked.weights;
    let mut inputs = vec![("w", &weights.given)];
    inputs.extend(ranked.scores.iter().map(|scores| ("scores", &scores.given)));
    inputs.extend(ranked.scale.iter().map(|scale| ("column_scale", &scale.given)));
    let output = Output::new(out, weights.array.dtype(), weights.shape(), true, &inputs)?;
    let (bits, _) = select_bits(py, &ranked, spec, exec)?;
    mask_into(py, weights, spec::matrix(weights.shape()), array::words(&bits), &output, exec);
    Ok(output.array().clone())
}

/// Packs the elements under a mask whose number of set bits need not be known.
fn pack_bits<'py>(py: Python<'py>, weights: &Input<'py>, bits: Array<'py>, exec: Exec) -> PyResult<Parts<'py>> {
    let view = spec::matrix(weights.shape());
    let mask = array::words::<u8>(&bits);
    let offsets = array::empty_words::<i64>(py, &[view.rows + 1])?;
    // SAFETY: fresh, nobody else has it.
    let rows = unsafe { int64s_mut(&offsets) };
    let nnz = without_gil(py, view.len(), || packing::offsets(view, mask, exec, rows));
    let values = array::empty(weights.array.dtype(), &[nnz])?;
    by_size!(weights.dtype, W => {
        let data = array::words::<W>(&weights.array);
        // SAFETY: fresh, nobody else has it.
        let kept = unsafe { array::words_mut::<W>(&values) };
        without_gil(py, view.len(), || {
            packing::pack(data, view, mask, RowOffsets::new(rows, view, nnz, exec)?, exec, kept)
        })
    })
    .map_err(|error| errors::kernel(py, error, "mask", weights.shape()))?;
    frozen(weights, values, bits, offsets)
}

fn frozen<'py>(
    weights: &Input<'py>,
    values: Array<'py>,
    bits: Array<'py>,
    offsets: Array<'py>,
) -> PyResult<Parts<'py>> {
    for part in [&values, &bits, &offsets] {
        array::freeze(part);
    }
    Ok((shape_tuple(values.py(), weights.shape())?, values, bits, offsets))
}

/// Packs the elements that are not zero.
fn pack_nonzero<'py>(py: Python<'py>, weights: &Input<'py>, exec: Exec) -> PyResult<Parts<'py>> {
    let view = spec::matrix(weights.shape());
    let bits = array::empty_words::<u8>(py, &[view.rows, view.row_bytes()])?;
    let offsets = array::empty_words::<i64>(py, &[view.rows + 1])?;
    let values = array::empty(weights.array.dtype(), &[view.len()])?;
    // SAFETY: fresh, nobody else has them.
    let (mask, rows) = unsafe { (array::words_mut::<u8>(&bits), int64s_mut(&offsets)) };
    let kept = dispatch!(weights.elements(), E, data => {
        // SAFETY: as above.
        let kept = unsafe { array::words_mut::<<E as Element>::Bits>(&values) };
        without_gil(py, view.len(), || packing::pack_nonzero::<E>(data, view, exec, mask, rows, kept))
    });
    array::shorten(&values, kept)?;
    frozen(weights, values, bits, offsets)
}

/// Packs what a mask keeps or, without one, what is not zero.
#[pyfunction]
pub fn pack<'py>(
    py: Python<'py>,
    w: &Bound<'py, PyAny>,
    shape: Option<Vec<usize>>,
    bits: Option<&Array<'py>>,
) -> PyResult<Parts<'py>> {
    let exec = runtime::exec(py, None)?;
    let weights = Input::new(w, "w")?;
    let (shape, bits) = match (shape, bits) {
        (Some(shape), Some(bits)) => (shape, bits),
        (None, None) => return pack_nonzero(py, &weights, exec),
        _ => return Err(errors::general(py, "mask: expected shape and bits, or neither".into())),
    };
    check_shape(py, "mask", &shape, weights.shape())?;
    let bits = mask_bits(bits, "bits", spec::matrix(weights.shape()))?;
    pack_bits(py, &weights, bits, exec)
}

/// Select and pack in one call.
#[pyfunction]
pub fn compress<'py>(
    py: Python<'py>,
    w: &Bound<'py, PyAny>,
    spec: &Bound<'py, PyTuple>,
    scores: Option<&Bound<'py, PyAny>>,
    column_scale: Option<&Bound<'py, PyAny>>,
    threads: Option<&Bound<'py, PyAny>>,
) -> PyResult<Parts<'py>> {
    let exec = runtime::exec(py, threads)?;
    let ranked = Ranked::new(w, scores, column_scale)?;
    let (bits, _) = select_bits(py, &ranked, spec, exec)?;
    pack_bits(py, &ranked.weights, bits, exec)
}

/// # Safety
/// The array is fresh and nobody else has it.
#[expect(clippy::mut_from_ref, reason = "the elements belong to NumPy, not to the borrowed handle")]
pub(crate) unsafe fn int64s_mut<'a>(array: &'a Array<'_>) -> &'a mut [i64] {
    // SAFETY: the caller's promise; int64 and u64 have one size, and i64 takes every bit pattern.
    unsafe {
        let words = array::words_mut::<u64>(array);
        std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len())
    }
}

pub(crate) fn int64s<'a>(offsets: &'a Array<'_>, view: Matrix) -> PyResult<&'a [i64]> {
    let py = offsets.py();
    if offsets.shape() != [view.rows + 1] || !array::is_plain::<i64>(offsets) {
        let message = format!(
            "row_offsets: expected contiguous, aligned int64 of shape ({},), got {} of shape {}",
            view.rows + 1,
            dtype_text(&offsets.dtype())?,
            shape_text(offsets.shape())
        );
        return Err(errors::format(py, message));
    }
    let words = array::words::<u64>(offsets);
    // SAFETY: one size and alignment, and i64 takes every bit pattern.
    Ok(unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), words.len()) })
}

/// The dense tensor.
#[pyfunction]
pub fn unpack<'py>(
    py: Python<'py>,
    values: &Bound<'py, PyAny>,
    bitmask: &Array<'py>,
    row_offsets: &Array<'py>,
    shape: Vec<usize>,
    out: Option<&Bound<'py, PyAny>>,
) -> PyResult<Array<'py>> {
    let exec = runtime::exec(py, None)?;
    let values = Input::new(values, "values")?;
    let view = checked_view(py, &shape)?;
    let bits = mask_bits(bitmask, "bitmask", view)?;
    let offsets = int64s(row_offsets, view)?;
    let inputs = [("values", &values.given), ("bitmask", bitmask), ("row_offsets", row_offsets)];
    let output = Output::new(out, values.array.dtype(), &shape, false, &inputs)?;
    by_size!(values.dtype, W => {
        let (kept, mask) = (array::words::<W>(&values.array), array::words::<u8>(&bits));
        // SAFETY: fresh, or the caller's array that `Output::new` found writeable and apart from
        // every input.
        let dense = unsafe { array::words_mut::<W>(output.array()) };
        without_gil(py, view.len(), || {
            unpacking::unpack(kept, view, mask, RowOffsets::new(offsets, view, kept.len(), exec)?, exec, dense)
        })
    })
    .map_err(|error| errors::kernel(py, error, "bitmask", &shape))?;
    Ok(output.array().clone())
}

/// The matrix view of a shape from outside, whose product may overflow.
pub(crate) fn checked_view(py: Python<'_>, shape: &[usize]) -> PyResult<Matrix> {
    let product = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    // Zero sizes hide an overflow of the others from the product, not from the view.
    let cols = shape.iter().skip(1).try_fold(1usize, |product, &size| product.checked_mul(size));
    if product.is_none_or(|n| n > isize::MAX as usize / 8) || cols.is_none() || shape.len() > 64 {
        return Err(errors::format(py, format!("shape: {} is too large", shape_text(shape))));
    }
    Ok(spec::matrix(shape))
}

/// Checks a mask from outside.
#[pyfunction]
pub fn check_bits<'py>(py: Python<'py>, bits: &Bound<'py, PyAny>, shape: Vec<usize>) -> PyResult<Mask<'py>> {
    let exec = runtime::exec(py, None)?;
    let view = checked_view(py, &shape)?;
    let bits = array::frozen_view(&mask_bits(&array::as_array(bits, "bits")?, "bits", view)?)?;
    let mask = array::words(&bits);
    matrix::check_padding(view, mask).map_err(|error| errors::check(py, error, "bits"))?;
    let count = matrix::count_ones(mask, exec);
    Ok((shape_tuple(py, &shape)?, bits, count))
}

/// Checks parts from outside and computes the offsets.
#[pyfunction]
pub fn check_parts<'py>(
    py: Python<'py>,
    values: &Bound<'py, PyAny>,
    bitmask: &Bound<'py, PyAny>,
    shape: Vec<usize>,
) -> PyResult<Parts<'py>> {
    let exec = runtime::exec(py, None)?;
    let view = checked_view(py, &shape)?;
    let values = Input::part(values, "values")?;
    if values.shape().len() != 1 {
        let message = format!("values: expected one dimension, got shape {}", shape_text(values.shape()));
        return Err(errors::format(py, message));
    }
    let bits = mask_bits(&array::as_array(bitmask, "bitmask")?, "bitmask", view)?;
    let mask = array::words::<u8>(&bits);
    let offsets = array::empty_words::<i64>(py, &[view.rows + 1])?;
    // SAFETY: fresh, nobody else has it.
    let rows = unsafe { int64s_mut(&offsets) };
    let expected = values.array.len();
    let found = without_gil(py, view.len(), || {
        matrix::check_padding(view, mask)?;
        match packing::offsets(view, mask, exec, rows) {
            found if found == expected => Ok(()),
            found => Err(Error::ValueCount { found, expected }),
        }
    });
    found.map_err(|error| errors::check(py, error, "bitmask"))?;
    array::freeze(&offsets);
    let (values, bits) = (array::frozen_view(&values.array)?, array::frozen_view(&bits)?);
    Ok((shape_tuple(py, &shape)?, values, bits, offsets))
}

/// Checks that a mask is one that a structured pattern could have given.
#[pyfunction]
pub fn check_pattern(py: Python<'_>, shape: Vec<usize>, bits: &Array<'_>, spec: &Bound<'_, PyTuple>) -> PyResult<()> {
    let exec = runtime::exec(py, None)?;
    let view = checked_view(py, &shape)?;
    let bits = mask_bits(bits, "bits", view)?;
    let mask = array::words(&bits);
    match Spec::new(spec, &shape)? {
        Spec::Groups { axis, groups } => without_gil(py, view.len(), || nm::verify(view, axis, groups, mask, exec)),
        Spec::Blocks { blocks, zeros, .. } => {
            without_gil(py, view.len(), || block::verify(view, blocks, zeros, mask, exec))
        }
        _ => {
            let kind = spec.get_item(0)?;
            return Err(errors::general(py, format!("pattern: expected an n:m, top-k or block pattern, got {kind}")));
        }
    }
    .map_err(|error| errors::check(py, error, "pattern"))
}

/// The mask of a bool array.
#[pyfunction]
pub fn from_bool<'py>(py: Python<'py>, mask: &Bound<'py, PyAny>) -> PyResult<Mask<'py>> {
    let exec = runtime::exec(py, None)?;
    let mask = array::as_array(mask, "mask")?;
    if mask.dtype().num() != numpy::dtype::<bool>(py).num() {
        let message = format!("mask: expected dtype bool, got {}", dtype_text(&mask.dtype())?);
        return Err(errors::general(py, message));
    }
    let mask = array::contiguous(mask)?;
    let view = spec::matrix(mask.shape());
    let bits = array::empty_words::<u8>(py, &[view.rows, view.row_bytes()])?;
    let bools = array::words::<u8>(&mask);
    // SAFETY: fresh, nobody else has it.
    let bytes = unsafe { array::words_mut::<u8>(&bits) };
    let count = without_gil(py, view.len(), || {
        matrix::from_bool(view, bools, exec, bytes);
        matrix::count_ones(bytes, exec)
    });
    array::freeze(&bits);
    Ok((shape_tuple(py, mask.shape())?, bits, count))
}

/// The bool array of a mask.
#[pyfunction]
pub fn to_bool<'py>(py: Python<'py>, shape: Vec<usize>, bits: &Array<'py>) -> PyResult<Array<'py>> {
    let exec = runtime::exec(py, None)?;
    let view = checked_view(py, &shape)?;
    let bits = mask_bits(bits, "bits", view)?;
    let bools = array::empty_words::<bool>(py, &shape)?;
    // SAFETY: fresh; a kernel that writes 0 and 1 only.
    let bytes = unsafe { array::words_mut::<u8>(&bools) };
    let mask = array::words(&bits);
    without_gil(py, view.len(), || matrix::to_bool(view, mask, exec, bytes));
    Ok(bools)
}

/// `axis` of a tensor of this shape, cut into blocks of `length`.
fn runs(py: Python<'_>, shape: &[usize], length: usize, axis: usize) -> PyResult<block::Blocks> {
    if length == 0 {
        return Err(errors::general(py, "length: expected at least 1, got 0".into()));
    }
    if axis >= shape.len() {
        let message = format!("axis: {axis} is out of range for a tensor with {} dimensions", shape.len());
        return Err(errors::general(py, message));
    }
    Ok(block::Blocks { axis: spec::axis_of(py, shape, axis as isize)?, tall: length, wide: 1 })
}

/// The l2 norms of blocks along an axis as NumPy computes them in float32 or float16, as float32.
#[pyfunction]
pub fn block_norms<'py>(py: Python<'py>, w: &Bound<'py, PyAny>, length: usize, axis: usize) -> PyResult<Array<'py>> {
    let exec = runtime::exec(py, None)?;
    let input = Input::new(w, "w")?;
    let mut shape = input.shape().to_vec();
    let blocks = runs(py, &shape, length, axis)?;
    shape[axis] = shape[axis].div_ceil(length);
    let norms = array::empty_words::<f32>(py, &shape)?;
    // SAFETY: fresh, nobody else has it, and every bit pattern is a float.
    let out = unsafe { array::words_mut::<u32>(&norms) };
    // SAFETY: same size and alignment.
    let out = unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr().cast::<f32>(), out.len()) };
    let axis = blocks.axis;
    match input.elements() {
        Elements::F32(w) => without_gil(py, w.len(), || block::l2_like_numpy::<F32>(w, axis, length, exec, out)),
        Elements::F16(w) => without_gil(py, w.len(), || block::l2_like_numpy::<F16>(w, axis, length, exec, out)),
        _ => {
            let found = dtype_text(&input.array.dtype())?;
            return Err(errors::general(py, format!("w: expected float32 or float16, got {found}")));
        }
    }
    .map_err(|error| errors::kernel(py, error, "w", input.shape()))?;
    Ok(norms)
}

/// The mask of the blocks whose norm is above a value.
#[pyfunction]
pub fn blocks_above<'py>(
    py: Python<'py>,
    norms: &Bound<'py, PyAny>,
    shape: Vec<usize>,
    value: f64,
    length: usize,
    axis: usize,
) -> PyResult<Mask<'py>> {
    let exec = runtime::exec(py, None)?;
    let norms = Input::new(norms, "norms")?;
    let (view, blocks) = (checked_view(py, &shape)?, runs(py, &shape, length, axis)?);
    let Elements::F32(words) = norms.elements() else {
        let found = dtype_text(&norms.array.dtype())?;
        return Err(errors::general(py, format!("norms: expected float32, got {found}")));
    };
    let mut expected = shape.clone();
    expected[axis] = shape[axis].div_ceil(length);
    if norms.shape() != expected {
        let (got, want) = (shape_text(norms.shape()), shape_text(&expected));
        return Err(errors::general(py, format!("norms: expected shape {want}, got {got}")));
    }
    let bits = array::empty_words::<u8>(py, &[view.rows, view.row_bytes()])?;
    // SAFETY: fresh, nobody else has it.
    let bytes = unsafe { array::words_mut::<u8>(&bits) };
    without_gil(py, view.len(), || block::above_value(words, view, blocks, value, exec, bytes))
        .map_err(|error| errors::kernel(py, error, "norms", norms.shape()))?;
    array::freeze(&bits);
    let count = matrix::count_ones(array::words(&bits), exec);
    Ok((shape_tuple(py, &shape)?, bits, count))
}
