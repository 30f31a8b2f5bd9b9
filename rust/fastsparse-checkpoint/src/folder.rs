//! Writing a folder: filled under a temporary name, then renamed, in exchange for an older one
//! where that is asked for.
//!
//! The temporary folder is `.NAME.partial` beside the target and locked while its [`Folder`] lives.
//! What a killed run leaves behind is therefore not locked, and the next run finds it: what it has
//! no use for goes with [`Folder::retain`]. It is for this user only, so that nobody else had a
//! hand in what is found there, and belongs to the process that made it: a forked child can neither
//! rename nor remove it.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::system;

/// A folder under construction. Dropped before [`Folder::finish`] it removes what is in it.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    lock: File,
    target: PathBuf,
    overwrite: bool,
    mode: u32,
    process: u32,
    renamed: bool,
}

impl Folder {
    /// Makes the temporary folder, or takes over what a killed run of this user left; where others
    /// could enter that, nothing in it is kept. An existing `target` is an error unless `overwrite`
    /// and a folder, and stays as it is until [`Folder::finish`], which gives the folder its `mode`
    /// (as of Unix).
    pub fn create(target: &Path, overwrite: bool, mode: u32) -> Result<Folder> {
        match std::fs::symlink_metadata(target) {
            Ok(_) if !overwrite => return Err(Error::Exists),
            Ok(found) if !found.is_dir() => return Err(Error::NotAFolder),
            _ => {}
        }
        let path = system::partial(target).ok_or(Error::NotAFolder)?;
        loop {
            match system::create_folder(&path) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(Error::Io(error)),
                Err(_) => match std::fs::symlink_metadata(&path) {
                    Ok(found) if !found.is_dir() => return Err(Error::InTheWay { path, expected: "folder" }),
                    Ok(found) if !system::is_ours(&found) => return Err(Error::NotOurs { path }),
                    _ => {}
                },
                Ok(()) => {}
            }
            let lock = match system::lock_folder(&path) {
                // The run that held the lock has just renamed or removed it.
                Err(Error::Io(error)) if error.kind() == ErrorKind::NotFound => continue,
                locked => locked?,
            };
            if system::is_at(&lock, &path)? {
                let process = std::process::id();
                let folder = Folder { path, lock, target: target.to_owned(), overwrite, mode, process, renamed: false };
                folder.make_private()?;
                return Ok(folder);
            }
        }
    }

    /// Shuts others out, and removes everything if they could come in.
    fn make_private(&self) -> Result<()> {
        let found = std::fs::symlink_metadata(&self.path)?;
        if !system::is_ours(&found) {
            return Err(Error::NotOurs { path: self.path.clone() });
        }
        if !system::is_private(&found) {
            system::set_mode(&self.lock, 0o700)?;
            self.retain(&HashSet::new())?;
        }
        Ok(())
    }

    /// The temporary folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes everything but the files of these names.
    pub fn retain(&self, names: &HashSet<OsString>) -> Result<()> {
        system::check_process(self.process)?;
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                std::fs::remove_dir_all(entry.path())?;
            } else if !names.contains(&entry.file_name()) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Gives the folder its mode and its name, in one step for whoever looks at the target. The
    /// files in it have been flushed by who wrote them.
    pub fn finish(mut self) -> Result<()> {
        system::check_process(self.process)?;
        sync_tree(&self.path)?;
        system::set_mode(&self.lock, self.mode)?;
        match system::rename_new(&self.path, &self.target) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists && self.overwrite => self.replace()?,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Err(Error::Exists),
            done => done?,
        }
        self.renamed = true;
        Ok(system::sync_folder(&self.target)?)
    }

    /// Exchanges the folder with the target and removes the older one, unless another run has taken
    /// that over already.
    fn replace(&mut self) -> Result<()> {
        system::exchange(&self.path, &self.target)?;
        self.renamed = true;
        match system::lock_folder(&self.path) {
            Ok(lock) if system::is_at(&lock, &self.path)? => Ok(std::fs::remove_dir_all(&self.path)?),
            Ok(_) | Err(Error::Busy) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Flushes a folder and all folders in it: the names of their files.
fn sync_tree(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        }
    }
    Ok(system::sync_folder(&folder.join("any file"))?)
}

impl Drop for Folder {
    fn drop(&mut self) {
        let ours = system::check_process(self.process).is_ok();
        if !self.renamed && ours && system::is_at(&self.lock, &self.path).unwrap_or(false) {
            // Nothing can be done about a failure here, and the next run finds the folder.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}
