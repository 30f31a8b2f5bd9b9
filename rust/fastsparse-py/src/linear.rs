//! Linear layers.

use fastsparse_core::element::{BF16, DType, F16, F32, Word};
use fastsparse_core::error::Result;
use fastsparse_core::linear::{Groups, Scaled, Weights, linear as kernel, linear_int8, linear_of_int8};
use fastsparse_core::matrix::Matrix;
use numpy::PyUntypedArrayMethods;
use pyo3::intern;
use pyo3::prelude::*;

use crate::array::{self, Input, Output, shape_text};
use crate::errors;
use crate::ops::{Array, checked_view, f32s, int64s, mask_bits, without_gil};
use crate::runtime;

/// `x @ weights.T + bias`; int8 weights times a scale. `groups` are (kept, of): so many of those
/// neighbours of a row at most.
#[pyfunction]
#[pyo3(signature = (values, bitmask, row_offsets, shape, x, bias, weight_scale, out, groups=None))]
#[expect(clippy::too_many_arguments, reason = "the interface that both backends have")]
pub fn linear<'py>(
    py: Python<'py>,
    values: &Bound<'py, PyAny>,
    bitmask: &Array<'py>,
    row_offsets: &Array<'py>,
    shape: Vec<usize>,
    x: &Bound<'py, PyAny>,
    bias: Option<&Bound<'py, PyAny>>,
    weight_scale: Option<&Bound<'py, PyAny>>,
    out: Option<&Bound<'py, PyAny>>,
    groups: Option<(usize, usize)>,
) -> PyResult<Array<'py>> {
    let exec = runtime::exec(py, None)?;
    let values = Input::new(values, "values")?;
    let view = checked_view(py, &shape)?;
    let bits = mask_bits(bitmask, "bitmask", view)?;
    let offsets = int64s(row_offsets, view)?;
    let parts = [("values", &values.given), ("bitmask", bitmask), ("row_offsets", row_offsets)];
    let call = Call::new(&values, view, x, bias, weight_scale, out, &parts)?;
    let (mask, kept) = (array::words::<u8>(&bits), values.array.len());
    let groups = groups.and_then(|(keep, of)| Groups::equal(keep, of, view, kept));
    if values.dtype == DType::I8 {
        let weights = Weights { shape: view, values: array::words(&values.array), mask, offsets, groups };
        let layer = Scaled { weights, scale: call.scale() };
        match call.x.dtype {
            DType::I8 => call.compute(py, |x, bias, out| linear_of_int8(layer, x, bias, exec, out)),
            DType::F16 => call.compute(py, |x, bias, out| linear_int8::<F16>(layer, x, bias, exec, out)),
            DType::BF16 => call.compute(py, |x, bias, out| linear_int8::<BF16>(layer, x, bias, exec, out)),
            _ => call.compute(py, |x, bias, out| linear_int8::<F32>(layer, x, bias, exec, out)),
        }
    } else {
        by_floats!(values.dtype, call.x.dtype, E, X => {
            let weights = Weights { shape: view, values: array::words(&values.array), mask, offsets, groups };
            call.compute(py, |x, bias, out| kernel::<E, X>(weights, x, bias, exec, out))
        })
    }
    .map_err(|error| errors::kernel(py, error, "bitmask", &shape))?;
    Ok(call.output.array().clone())
}

/// Runs `$body` with `$E` and `$X` the element types of weights and activations, both of them
/// floats.
macro_rules! by_floats {
    (@ $E:ident = $Weights:ty, $X:ident = $Activations:ty, $body:expr) => {{
        type $E = $Weights;
        type $X = $Activations;
        $body
    }};
    ($weights:expr, $x:expr, $E:ident, $X:ident => $body:expr) => {
        match ($weights, $x) {
            (DType::F16, DType::F16) => by_floats!(@ $E = F16, $X = F16, $body),
            (DType::BF16, DType::BF16) => by_floats!(@ $E = BF16, $X = BF16, $body),
            (DType::F16, _) => by_floats!(@ $E = F16, $X = F32, $body),
            (DType::BF16, _) => by_floats!(@ $E = BF16, $X = F32, $body),
            _ => by_floats!(@ $E = F32, $X = F32, $body),
        }
    };
}
pub(crate) use by_floats;

/// The arguments of a call, checked against the weights and each other.
pub(crate) struct Call<'py> {
    pub x: Input<'py>,
    bias: Option<PerRow<'py>>,
    scale: Option<PerRow<'py>>,
    pub output: Output<'py>,
    /// About how much there is to do.
    work: usize,
}

impl<'py> Call<'py> {
    /// `parts` are those of the weights, which `out` must not overlap.
    pub fn new(
        values: &Input<'py>,
        view: Matrix,
        x: &Bound<'py, PyAny>,
        bias: Option<&Bound<'py, PyAny>>,
        scale: Option<&Bound<'py, PyAny>>,
        out: Option<&Bound<'py, PyAny>>,
        parts: &[(&str, &Array<'py>)],
    ) -> PyResult<Call<'py>> {
        let py = x.py();
        let scale = check_weights(values, scale, view.rows)?;
        let x = activations(x, values)?;
        let mut result = x.shape().to_vec();
        match result.last_mut() {
            Some(last) if *last == view.cols => *last = view.rows,
            _ => {
                let message = format!("x: expected {} columns, got shape {}", view.cols, shape_text(x.shape()));
                return Err(errors::general(py, message));
            }
        }
        let bias = bias.map(|bias| PerRow::new(bias, "bias", view.rows)).transpose()?;
        let mut inputs = parts.to_vec();
        inputs.push(("x", &x.given));
        inputs.extend(bias.iter().map(|bias| ("bias", &bias.given)));
        inputs.extend(scale.iter().map(|scale| ("weight_scale", &scale.given)));
        let dtype = if x.dtype == DType::I8 { numpy::dtype::<f32>(py) } else { x.array.dtype() };
        let output = Output::new(out, dtype, &result, false, &inputs)?;
        let work = view.len().saturating_mul(output.array().len() / view.rows.max(1));
        Ok(Call { x, bias, scale, output, work })
    }

    /// Runs `product` with the words of the activations, the bias, and the words of the results.
    pub fn compute<X: Word, Y: Word>(
        &self,
        py: Python<'py>,
        product: impl FnOnce(&[X], Option<&[f32]>, &mut [Y]) -> Result<()> + Send,
    ) -> Result<()> {
        let (x, bias) = (array::words(&self.x.array), self.bias.as_ref().map(PerRow::numbers));
        // SAFETY: fresh, or the caller's array that `Output::new` found writeable and apart from
        // every input.
        let out = unsafe { array::words_mut(self.output.array()) };
        without_gil(py, self.work, || product(x, bias, out))
    }

    /// The scales of int8 weights.
    fn scale(&self) -> &[f32] {
        self.scale.as_ref().map_or(&[], PerRow::numbers)
    }
}

pub(crate) fn check_dtype(input: &Input<'_>, name: &str) -> PyResult<()> {
    if matches!(input.dtype, DType::F32 | DType::F16 | DType::BF16) {
        return Ok(());
    }
    let found = input.array.dtype().getattr("name")?;
    let message = format!("{name}: linear takes float32, float16 or bfloat16, got {found}");
    Err(errors::general(input.array.py(), message))
}

/// The weights: int8 with a scale, float without.
fn check_weights<'py>(
    values: &Input<'py>,
    scale: Option<&Bound<'py, PyAny>>,
    rows: usize,
) -> PyResult<Option<PerRow<'py>>> {
    let py = values.array.py();
    match (values.dtype, scale) {
        (DType::I8, Some(scale)) => PerRow::new(scale, "weight_scale", rows).map(Some),
        (DType::F32 | DType::F16 | DType::BF16, None) => Ok(None),
        (DType::F32 | DType::F16 | DType::BF16, Some(_)) => {
            let found = values.array.dtype().getattr("name")?;
            Err(errors::general(py, format!("weight_scale: only int8 weights take one, these are {found}")))
        }
        _ => {
            let found = values.array.dtype().getattr("name")?;
            let message = "linear takes float32, float16, bfloat16, or int8 with weight_scale";
            Err(errors::general(py, format!("s: {message}, got {found}")))
        }
    }
}

/// The activations: float32 or what the weights are; with int8 weights any float.
fn activations<'py>(x: &Bound<'py, PyAny>, values: &Input<'py>) -> PyResult<Input<'py>> {
    let input = Input::new(x, "x")?;
    let float = matches!(input.dtype, DType::F16 | DType::BF16) && values.dtype == DType::I8;
    if input.dtype == DType::F32 || input.dtype == values.dtype || float {
        return Ok(input);
    }
    let (weights, found) = (values.array.dtype().getattr("name")?, input.array.dtype().getattr("name")?);
    let allowed = match values.dtype {
        DType::F32 => "float32".to_string(),
        DType::I8 => "float32, float16, bfloat16 or int8".to_string(),
        _ => format!("float32 or {weights}"),
    };
    Err(errors::general(x.py(), format!("x: expected dtype {allowed} with weights of {weights}, got {found}")))
}

/// A float32 for each row: the bias, or the scales.
struct PerRow<'py> {
    values: Array<'py>,
    given: Array<'py>,
}

impl<'py> PerRow<'py> {
    fn new(object: &Bound<'py, PyAny>, name: &str, rows: usize) -> PyResult<PerRow<'py>> {
        let py = object.py();
        let input = Input::new(object, name)?;
        let scalar = name == "weight_scale" && input.shape().is_empty();
        if !scalar || input.dtype != DType::F64 {
            check_dtype(&input, name)?;
        }
        if !scalar && input.shape() != [rows] {
            let message = format!("{name}: expected shape ({rows},), got {}", shape_text(input.shape()));
            return Err(errors::general(py, message));
        }
        let mut values = input.array;
        if input.dtype != DType::F32 {
            values = values.call_method1(intern!(py, "astype"), ("float32",))?.cast_into()?;
        }
        if scalar {
            values = py.import("numpy")?.call_method1(intern!(py, "full"), (rows, values))?.cast_into()?;
        }
        Ok(PerRow { values, given: input.given })
    }

    fn numbers(&self) -> &[f32] {
        f32s(array::words(&self.values))
    }
}
