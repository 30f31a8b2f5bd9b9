//! Patterns as they cross from Python: the tuples of `Pattern._spec`, resolved against a tensor's
//! shape.

use fastsparse_core::block::{Blocks, Norm};
use fastsparse_core::matrix::Matrix;
use fastsparse_core::nm::{Axis, Groups, Tail};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::errors;

/// A pattern, resolved.
pub enum Spec {
    /// That many zeros over the tensor.
    Tensor {
        /// Number of zeros.
        zeros: usize,
    },
    /// That many zeros in each row.
    Rows {
        /// Number of zeros.
        zeros: usize,
    },
    /// n:m and top-k.
    Groups {
        /// The axis.
        axis: Axis,
        /// The groups along it.
        groups: Groups,
    },
    /// Blocks.
    Blocks {
        /// Their geometry.
        blocks: Blocks,
        /// What they are ranked by.
        norm: Norm,
        /// How many are pruned.
        zeros: usize,
    },
    /// Zero where the ranked value is at most this.
    Threshold(f64),
    /// Keep what is not zero.
    Nonzero,
}

/// The matrix view of a shape.
pub fn matrix(shape: &[usize]) -> Matrix {
    match shape {
        [] => Matrix { rows: 1, cols: 1 },
        [cols] => Matrix { rows: 1, cols: *cols },
        [rows, rest @ ..] => Matrix { rows: *rows, cols: rest.iter().product() },
    }
}

impl Spec {
    /// Reads a tuple for a tensor of this shape.
    pub fn new(spec: &Bound<'_, PyTuple>, shape: &[usize]) -> PyResult<Spec> {
        use fastsparse_core::select::zeros_of;
        let view = matrix(shape);
        let kind = spec.get_item(0)?;
        Ok(match kind.cast::<pyo3::types::PyString>()?.to_str()? {
            "unstructured" => {
                let (_, sparsity, per): (Bound<'_, PyAny>, f64, Bound<'_, PyAny>) = spec.extract()?;
                match per.extract::<&str>()? {
                    "tensor" => Spec::Tensor { zeros: zeros_of(sparsity, view.len()) },
                    _ => Spec::Rows { zeros: zeros_of(sparsity, view.cols) },
                }
            }
            "exact" => {
                let zeros: usize = spec.get_item(1)?.extract()?;
                if zeros > view.len() {
                    let message = format!("zeros: {zeros} of {} elements cannot be dropped", view.len());
                    return Err(errors::general(spec.py(), message));
                }
                Spec::Tensor { zeros }
            }
            "nm" => {
                let (_, zeros, of, axis, tail): (Bound<'_, PyAny>, usize, usize, isize, Bound<'_, PyAny>) =
                    spec.extract()?;
                Spec::Groups { axis: axis_of(spec.py(), shape, axis)?, groups: groups(spec, zeros, of, &tail)? }
            }
            "topk" => {
                let (_, keep, of, axis, tail): (Bound<'_, PyAny>, usize, usize, isize, Bound<'_, PyAny>) =
                    spec.extract()?;
                // More than there are is refused like more zeros than there are.
                let zeros = of.checked_sub(keep).unwrap_or(usize::MAX);
                Spec::Groups { axis: axis_of(spec.py(), shape, axis)?, groups: groups(spec, zeros, of, &tail)? }
            }
            "block" => {
                let (_, size, sparsity, axis, norm): (
                    Bound<'_, PyAny>,
                    Bound<'_, PyAny>,
                    f64,
                    isize,
                    Bound<'_, PyAny>,
                ) = spec.extract()?;
                let norm = match norm.extract::<&str>()? {
                    "l1" => Norm::L1,
                    "l2" => Norm::L2,
                    _ => Norm::Max,
                };
                let blocks = match size.extract::<usize>() {
                    Ok(run) => Blocks { axis: axis_of(spec.py(), shape, axis)?, tall: run, wide: 1 },
                    Err(_) => {
                        let (tall, wide) = size.extract()?;
                        Blocks { axis: Axis { outer: 1, len: view.rows, inner: view.cols }, tall, wide }
                    }
                };
                if blocks.tall == 0 || blocks.wide == 0 {
                    return Err(unusable(spec));
                }
                Spec::Blocks { blocks, norm, zeros: zeros_of(sparsity, blocks.grid().len()) }
            }
            "threshold" => Spec::Threshold(spec.get_item(1)?.extract()?),
            "nonzero" => Spec::Nonzero,
            other => return Err(PyValueError::new_err(format!("spec: unknown kind {other:?}"))),
        })
    }
}

/// n:m groups, of which none may lose more than it has.
fn groups(spec: &Bound<'_, PyTuple>, zeros: usize, of: usize, tail: &Bound<'_, PyAny>) -> PyResult<Groups> {
    if of == 0 || zeros > of {
        return Err(unusable(spec));
    }
    Ok(Groups { zeros, of, tail: tail_of(tail)? })
}

/// No pattern of `fastsparse.patterns` gives such a tuple.
fn unusable(spec: &Bound<'_, PyTuple>) -> PyErr {
    errors::general(spec.py(), format!("spec: {spec} is no pattern"))
}

fn tail_of(tail: &Bound<'_, PyAny>) -> PyResult<Tail> {
    Ok(match tail.extract::<&str>()? {
        "proportional" => Tail::Proportional,
        "keep" => Tail::Keep,
        _ => Tail::Error,
    })
}

/// The tensor seen along an axis. A 0-d tensor counts as one of shape (1,).
pub fn axis_of(py: Python<'_>, shape: &[usize], axis: isize) -> PyResult<Axis> {
    let ndim = shape.len().max(1) as isize;
    if axis < -ndim || axis >= ndim {
        let message = format!("axis: {axis} is out of range for w with {} dimensions", shape.len());
        return Err(errors::general(py, message));
    }
    let at = axis.rem_euclid(ndim) as usize;
    Ok(Axis {
        outer: shape.iter().take(at).product(),
        len: shape.get(at).copied().unwrap_or(1),
        inner: shape.iter().skip(at + 1).product(),
    })
}
