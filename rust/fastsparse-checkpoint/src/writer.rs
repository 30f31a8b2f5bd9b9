//! Writing: a file of known size under a temporary name, tensors at their final places in any
//! order, each in as many pieces as its writer likes, then one rename.
//!
//! The temporary file is `.NAME.partial` beside the target and locked while its writer lives. What
//! a killed run leaves behind is therefore not locked, and the next run replaces it. It belongs to
//! the process that made it: a forked child, which has the same open file, can neither write nor
//! remove it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::header::{Entry, Header};
use crate::system;

/// A file under construction. Dropped before [`Writer::finish`] it removes what it has written.
#[derive(Debug)]
pub struct Writer {
    header: Header,
    /// Bytes of each tensor that are there.
    written: Vec<AtomicU64>,
    partial: Partial,
    target: PathBuf,
    overwrite: bool,
}

impl Writer {
    /// Lays the tensors out, claims the space for all of them and writes the header. An existing
    /// `target` is an error unless `overwrite`, and stays as it is until [`Writer::finish`]. With a
    /// `mode` (as of Unix) the file is for this user only until it is finished, and then gets that
    /// mode; without, it has the mode of every new file.
    pub fn create(
        target: &Path,
        entries: Vec<Entry>,
        metadata: BTreeMap<String, String>,
        overwrite: bool,
        mode: Option<u32>,
    ) -> Result<Writer> {
        let (header, start) = Header::lay_out(entries, metadata)?;
        match std::fs::symlink_metadata(target) {
            // Nor does anything take the place of a pipe or a device.
            Ok(found) if !found.is_file() && !found.is_symlink() => return Err(Error::NotAFile),
            Ok(_) if !overwrite => return Err(Error::Exists),
            _ => {}
        }
        let partial = Partial::create(target, mode)?;
        system::claim(&partial.file, header.file_size)?;
        system::write_all_at(&partial.file, &start, 0)?;
        let written = header.tensors.iter().map(|_| AtomicU64::new(0)).collect();
        Ok(Writer { header, written, partial, target: target.to_owned(), overwrite })
    }

    /// The header: tensors have other indices here than they had when they were handed over.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Writes the next bytes of the tensor with this index in the header. Any thread, tensors in
    /// any order.
    pub fn write(&self, index: usize, bytes: &[u8]) -> Result<()> {
        system::check_process(self.partial.process)?;
        let tensor = self.header.tensors.get(index).ok_or(Error::NoTensor(index))?;
        let (size, found) = (tensor.range.end - tensor.range.start, bytes.len() as u64);
        let claimed = self.written[index].fetch_update(Ordering::Relaxed, Ordering::Relaxed, |written| {
            written.checked_add(found).filter(|&end| end <= size)
        });
        match claimed {
            Ok(written) => Ok(system::write_all_at(&self.partial.file, bytes, tensor.range.start + written)?),
            Err(written) => {
                Err(Error::WriteLength { name: tensor.entry.name.clone(), expected: size - written, found })
            }
        }
    }

    /// Hands what was written so far to the disk, so that [`Writer::finish`] waits for little. Any
    /// thread, beside writes.
    pub fn flush(&self) -> Result<()> {
        Ok(self.partial.file.sync_data()?)
    }

    /// Empties the file that will never be finished, so that a flush under way on another thread
    /// ends: what is still in memory need not go to the disk.
    pub fn discard(&self) {
        if system::check_process(self.partial.process).is_ok() {
            // Dropping the writer removes the file whether or not this worked.
            let _ = self.partial.file.set_len(0);
        }
    }

    /// Flushes the file and gives it its name, in one step for whoever looks at the target.
    pub fn finish(mut self) -> Result<()> {
        system::check_process(self.partial.process)?;
        for (tensor, written) in self.header.tensors.iter().zip(&self.written) {
            if written.load(Ordering::Relaxed) != tensor.range.end - tensor.range.start {
                return Err(Error::Unwritten(tensor.entry.name.clone()));
            }
        }
        if let Some(mode) = self.partial.mode {
            system::set_mode(&self.partial.file, mode)?;
        }
        self.partial.file.sync_all()?;
        self.partial.rename_to(&self.target, self.overwrite)?;
        Ok(system::sync_folder(&self.target)?)
    }
}

/// The temporary file; removed on drop unless it got its final name.
#[derive(Debug)]
struct Partial {
    path: PathBuf,
    file: File,
    mode: Option<u32>,
    process: u32,
    renamed: bool,
}

impl Partial {
    /// Makes and locks the temporary file of `target`. One that a killed run of this user left is
    /// removed: others may have it open, or know it by another name.
    fn create(target: &Path, mode: Option<u32>) -> Result<Partial> {
        let path = system::partial(target).ok_or(Error::NotAFile)?;
        let process = std::process::id();
        loop {
            match system::create_file(&path, mode.is_some()) {
                Ok(file) => {
                    system::lock(&file)?;
                    // Before it was locked, another run may have taken it for one that was left.
                    if system::is_at(&file, &path)? {
                        return Ok(Partial { path, file, mode, process, renamed: false });
                    }
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Partial::remove_old(&path)?,
                Err(error) => return Err(Error::Io(error)),
            }
        }
    }

    /// Removes what a killed run left, if it is still there.
    fn remove_old(path: &Path) -> Result<()> {
        let removed = || -> Result<()> {
            let found = std::fs::symlink_metadata(path)?;
            if !found.is_file() {
                return Err(Error::InTheWay { path: path.to_owned(), expected: "file" });
            }
            if !system::is_ours(&found) {
                return Err(Error::NotOurs { path: path.to_owned() });
            }
            let file = system::open_old(path)?;
            system::lock(&file)?;
            // Between opening and locking, the run that held the lock may have renamed or removed
            // this file: then the path leads elsewhere, and the lock is one on somebody's finished
            // work.
            if system::is_at(&file, path)? { Ok(std::fs::remove_file(path)?) } else { Ok(()) }
        };
        match removed() {
            Err(Error::Io(error)) if error.kind() == ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    fn rename_to(&mut self, target: &Path, overwrite: bool) -> Result<()> {
        if overwrite {
            std::fs::rename(&self.path, target)?;
        } else {
            system::rename_new(&self.path, target).map_err(|error| match error.kind() {
                ErrorKind::AlreadyExists => Error::Exists,
                _ => Error::Io(error),
            })?;
        }
        self.renamed = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.renamed && system::check_process(self.process).is_ok() {
            // Nothing can be done about a failure here, and the next run removes the file.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
