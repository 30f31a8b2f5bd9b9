//! Checkpoint files: the reader and the writers as Python classes, and the sums and counts that
//! pruning them needs. The GIL is released wherever a file is touched.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{OsString, c_int};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock};

use fastsparse_checkpoint::{Bytes, Entry, Error, Folder, Kind, Reader, Tensor, Writer, dtype};
use fastsparse_core::{dispatch, energy, histogram};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyOSError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::array::{self, Input};
use crate::errors;
use crate::ops::{Array, int64s_mut};
use crate::runtime;

/// The exception for what went wrong with the file of this path.
fn exception(py: Python<'_>, path: &Path, error: Error) -> PyErr {
    let message = format!("{}: {error}", path.display());
    match (error.kind(), error) {
        (Kind::Format, _) => errors::format(py, message),
        (Kind::Io, Error::Io(error)) => match error.raw_os_error() {
            // With the number Python chooses the subclass, FileNotFoundError for example.
            Some(code) => match py.import("os").and_then(|os| os.call_method1("strerror", (code,))) {
                Ok(text) => PyOSError::new_err((code, text.unbind(), path.as_os_str().to_owned())),
                Err(error) => error,
            },
            None => PyOSError::new_err(message),
        },
        _ => errors::general(py, message),
    }
}

/// Σ w² in float64.
#[pyfunction]
pub fn sum_of_squares(py: Python<'_>, w: &Bound<'_, PyAny>) -> PyResult<f64> {
    let input = Input::new(w, "w")?;
    let exec = runtime::exec(py, None)?;
    let elements = input.elements();
    Ok(py.detach(|| dispatch!(elements, E, weights => energy::sum_of_squares::<E>(weights, exec))))
}

/// The digest of contiguous bytes.
#[pyfunction]
pub fn digest(py: Python<'_>, data: PyBuffer<u8>) -> PyResult<String> {
    let bytes = contiguous(py, &data, "data")?;
    Ok(format!("{:032x}", py.detach(|| fastsparse_checkpoint::digest(bytes))))
}

/// The bytes of a buffer.
fn contiguous<'a>(py: Python<'_>, data: &'a PyBuffer<u8>, name: &str) -> PyResult<&'a [u8]> {
    if !data.is_c_contiguous() {
        return Err(errors::general(py, format!("{name}: expected contiguous bytes")));
    }
    Ok(if data.len_bytes() == 0 {
        &[]
    } else {
        // SAFETY: the buffer is contiguous and outlives the slice. Another thread may change what
        // is in it; every value is a valid byte, and nothing depends on reading the same one twice.
        unsafe { std::slice::from_raw_parts(data.buf_ptr() as *const u8, data.len_bytes()) }
    })
}

/// Elements below the window, the bins that are not empty, and the elements of each.
type Counted<'py> = (u64, Array<'py>, Array<'py>);

/// Counts |w| in the window that starts at the float64 bits `low`, with bins of `1 << shift` of
/// them.
#[pyfunction]
pub fn count_magnitudes<'py>(py: Python<'py>, w: &Bound<'py, PyAny>, low: u64, shift: u32) -> PyResult<Counted<'py>> {
    if shift >= u64::BITS {
        return Err(errors::general(py, format!("shift: expected less than 64, got {shift}")));
    }
    let input = Input::new(w, "w")?;
    let exec = runtime::exec(py, None)?;
    let elements = input.elements();
    let counts = py
        .detach(|| dispatch!(elements, E, weights => histogram::count::<E>(weights, low, shift, exec)))
        .map_err(|error| errors::kernel(py, error, "w", input.shape()))?;
    let found = counts.bins.len();
    let (bins, elements) = (array::empty_words::<i64>(py, &[found])?, array::empty_words::<i64>(py, &[found])?);
    // SAFETY: fresh, nobody else has them.
    let (to_bins, to_elements) = unsafe { (int64s_mut(&bins), int64s_mut(&elements)) };
    for ((to_bin, to_count), (bin, count)) in to_bins.iter_mut().zip(to_elements).zip(counts.bins) {
        (*to_bin, *to_count) = (bin as i64, count as i64);
    }
    Ok((counts.below, bins, elements))
}

/// How many |w| are below the number whose float64 has the bits `low`, how many equal it, and how
/// many are zero.
#[pyfunction]
pub fn rank_magnitudes(py: Python<'_>, w: &Bound<'_, PyAny>, low: u64) -> PyResult<(u64, u64, u64)> {
    let input = Input::new(w, "w")?;
    let exec = runtime::exec(py, None)?;
    let elements = input.elements();
    let rank = py
        .detach(|| dispatch!(elements, E, weights => histogram::rank::<E>(weights, low, exec)))
        .map_err(|error| errors::kernel(py, error, "w", input.shape()))?;
    Ok((rank.below, rank.equal, rank.zero))
}

/// An open file whose header was checked.
#[pyclass(frozen, module = "fastsparse._core")]
pub struct CheckpointReader {
    reader: Reader,
    path: PathBuf,
}

/// Name, dtype, shape and size in bytes.
type Described<'a, 'py> = (&'a str, String, Bound<'py, PyTuple>, u64);

#[pymethods]
impl CheckpointReader {
    #[new]
    fn new(py: Python<'_>, path: PathBuf, mmap: bool) -> PyResult<Self> {
        match py.detach(|| Reader::open(&path, mmap)) {
            Ok(reader) => Ok(CheckpointReader { reader, path }),
            Err(error) => Err(exception(py, &path, error)),
        }
    }

    #[getter]
    fn metadata(&self) -> BTreeMap<String, String> {
        self.reader.header().metadata.clone()
    }

    #[getter]
    fn tensors<'py>(&self, py: Python<'py>) -> PyResult<Vec<Described<'_, 'py>>> {
        let tensors = self.reader.header().tensors.iter();
        tensors
            .map(|Tensor { entry, range }| {
                let shape = PyTuple::new(py, &entry.shape)?;
                Ok((entry.name.as_str(), entry.dtype.to_string(), shape, range.end - range.start))
            })
            .collect()
    }

    fn bytes(&self, py: Python<'_>, index: usize) -> PyResult<TensorBytes> {
        py.detach(|| self.reader.bytes(index)).map(TensorBytes).map_err(|error| exception(py, &self.path, error))
    }

    fn release(&self, py: Python<'_>, index: usize) -> PyResult<()> {
        py.detach(|| self.reader.release(index)).map_err(|error| exception(py, &self.path, error))
    }
}

/// The bytes of a tensor, read-only, through the buffer protocol.
#[pyclass(frozen, module = "fastsparse._core")]
pub struct TensorBytes(Bytes);

#[pymethods]
impl TensorBytes {
    /// # Safety
    /// Called by Python only, with a `view` to fill.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let bytes: &[u8] = &slf.get().0;
        // SAFETY: `view` is Python's. The bytes live as long as the object, which never changes and
        // to which the view then holds a reference; the view is read-only, a request to write is
        // refused in this call.
        let filled = unsafe {
            ffi::PyBuffer_FillInfo(view, slf.as_ptr(), bytes.as_ptr() as *mut _, bytes.len() as isize, 1, flags)
        };
        if filled == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}

/// A file under construction.
#[pyclass(frozen, module = "fastsparse._core")]
pub struct CheckpointWriter {
    /// None once it is finished or aborted.
    writer: RwLock<Option<Writer>>,
    index: HashMap<String, usize>,
    path: PathBuf,
}

#[pymethods]
impl CheckpointWriter {
    #[new]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        entries: Vec<(String, String, Vec<usize>)>,
        metadata: BTreeMap<String, String>,
        overwrite: bool,
        mode: Option<u32>,
    ) -> PyResult<Self> {
        let mut found = Vec::with_capacity(entries.len());
        for (name, kind, shape) in entries {
            let Some(dtype) = dtype(&kind) else {
                return Err(errors::general(py, format!("tensor {name:?}: unknown dtype {kind:?}")));
            };
            found.push(Entry { name, dtype, shape });
        }
        match py.detach(|| Writer::create(&path, found, metadata, overwrite, mode)) {
            Ok(writer) => {
                let tensors = writer.header().tensors.iter().enumerate();
                let index = tensors.map(|(index, tensor)| (tensor.entry.name.clone(), index)).collect();
                Ok(CheckpointWriter { writer: RwLock::new(Some(writer)), index, path })
            }
            Err(error) => Err(exception(py, &path, error)),
        }
    }

    fn write(&self, py: Python<'_>, name: &str, data: PyBuffer<u8>) -> PyResult<()> {
        let Some(&index) = self.index.get(name) else {
            return Err(errors::general(py, format!("{}: there is no tensor {name:?}", self.path.display())));
        };
        let bytes = contiguous(py, &data, name)?;
        let written = py.detach(|| match &*self.writer.read().unwrap_or_else(PoisonError::into_inner) {
            Some(writer) => writer.write(index, bytes).map(Some),
            None => Ok(None),
        });
        self.alive(py, written)
    }

    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        let flushed = py.detach(|| match &*self.writer.read().unwrap_or_else(PoisonError::into_inner) {
            Some(writer) => writer.flush().map(Some),
            None => Ok(None),
        });
        self.alive(py, flushed)
    }

    fn finish(&self, py: Python<'_>) -> PyResult<()> {
        let finished = py.detach(|| match self.take() {
            Some(writer) => writer.finish().map(Some),
            None => Ok(None),
        });
        self.alive(py, finished)
    }

    /// Does not wait for the disk, even where another thread flushes.
    fn abort(&self, py: Python<'_>) {
        py.detach(|| {
            if let Some(writer) = &*self.writer.read().unwrap_or_else(PoisonError::into_inner) {
                writer.discard();
            }
            drop(self.take());
        });
    }
}

impl CheckpointWriter {
    fn take(&self) -> Option<Writer> {
        self.writer.write().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The result of a call on the writer; None says that there was none left.
    fn alive(&self, py: Python<'_>, result: Result<Option<()>, Error>) -> PyResult<()> {
        match result {
            Ok(Some(())) => Ok(()),
            Ok(None) => Err(errors::general(py, format!("{}: the writer is closed", self.path.display()))),
            Err(error) => Err(exception(py, &self.path, error)),
        }
    }
}

/// A folder under construction.
#[pyclass(frozen, module = "fastsparse._core")]
pub struct CheckpointFolder {
    /// None once it is finished or aborted.
    folder: Mutex<Option<Folder>>,
    partial: PathBuf,
    path: PathBuf,
}

#[pymethods]
impl CheckpointFolder {
    #[new]
    fn new(py: Python<'_>, path: PathBuf, overwrite: bool, mode: u32) -> PyResult<Self> {
        match py.detach(|| Folder::create(&path, overwrite, mode)) {
            Ok(folder) => {
                let partial = folder.path().to_owned();
                Ok(CheckpointFolder { folder: Mutex::new(Some(folder)), partial, path })
            }
            Err(error) => Err(exception(py, &path, error)),
        }
    }

    /// Where to write.
    #[getter]
    fn partial(&self) -> &Path {
        &self.partial
    }

    /// Removes everything but the files of these names.
    fn retain(&self, py: Python<'_>, names: HashSet<OsString>) -> PyResult<()> {
        let retained = py.detach(|| match &*self.folder.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(folder) => folder.retain(&names).map(Some),
            None => Ok(None),
        });
        match retained {
            Ok(Some(())) => Ok(()),
            Ok(None) => Err(self.closed(py)),
            Err(error) => Err(exception(py, &self.partial, error)),
        }
    }

    fn finish(&self, py: Python<'_>) -> PyResult<()> {
        let folder = self.take();
        match py.detach(|| folder.map(Folder::finish)) {
            Some(finished) => finished.map_err(|error| exception(py, &self.path, error)),
            None => Err(self.closed(py)),
        }
    }

    fn abort(&self, py: Python<'_>) {
        let folder = self.take();
        py.detach(|| drop(folder));
    }
}

impl CheckpointFolder {
    fn closed(&self, py: Python<'_>) -> PyErr {
        errors::general(py, format!("{}: the folder is closed", self.path.display()))
    }

    fn take(&self) -> Option<Folder> {
        self.folder.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
