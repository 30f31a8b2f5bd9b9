//! The one place where errors become Python exceptions.

use fastsparse_core::error::Error;
use pyo3::exceptions::PyMemoryError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

use crate::array::shape_text;

fn class(py: Python<'_>, name: &'static str, cell: &'static PyOnceLock<Py<PyType>>, message: String) -> PyErr {
    match cell.import(py, "fastsparse._errors", name) {
        Ok(class) => PyErr::from_type(class.clone(), (message,)),
        Err(error) => error,
    }
}

/// `FastSparseError`.
pub fn general(py: Python<'_>, message: String) -> PyErr {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    class(py, "FastSparseError", &CLASS, message)
}

/// `FormatError`.
pub fn format(py: Python<'_>, message: String) -> PyErr {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    class(py, "FormatError", &CLASS, message)
}

/// The exception for an error of a kernel that ranked argument `name` of this shape.
pub fn kernel(py: Python<'_>, error: Error, name: &str, shape: &[usize]) -> PyErr {
    match error {
        Error::Nan { index } => general(py, format!("{name} contains NaN at index {}", index_text(index, shape))),
        Error::BlockNan { block } => general(py, format!("{name}: the mean of block {block} is NaN (inf − inf)")),
        Error::Tail { len, groups } => general(
            py,
            format!(
                "w: axis of length {len} is not a multiple of {}; tail=\"error\" forbids a shorter group of {groups}",
                groups.of
            ),
        ),
        Error::Changed => general(py, format!("{name} was changed by another thread during the call")),
        Error::OutOfMemory { .. } => PyMemoryError::new_err(error.to_string()),
        other => format(py, other.to_string()),
    }
}

/// The exception for an error of a check of argument `name`.
pub fn check(py: Python<'_>, error: Error, name: &str) -> PyErr {
    match error {
        Error::OutOfMemory { .. } => PyMemoryError::new_err(error.to_string()),
        other => format(py, format!("{name}: {other}")),
    }
}

/// The multi-index of a flat, row-major one, as Python prints it.
pub fn index_text(mut index: usize, shape: &[usize]) -> String {
    let mut indices = vec![0; shape.len()];
    for (at, &size) in indices.iter_mut().zip(shape).rev() {
        *at = index % size;
        index /= size;
    }
    shape_text(&indices)
}
