//! What systems do differently: reading and writing at offsets, claiming space, locking, renaming
//! without replacing or in exchange.

use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Result};
use std::path::{Path, PathBuf};

#[cfg(unix)]
pub use unix::{
    claim, create_file, create_folder, exchange, is_at, is_ours, is_private, lock_folder, open_old, read_exact_at,
    rename_new, set_mode, sync_folder, write_all_at,
};
#[cfg(windows)]
pub use windows::{
    claim, create_file, create_folder, exchange, is_at, is_ours, is_private, lock_folder, open_old, read_exact_at,
    rename_new, set_mode, sync_folder, write_all_at,
};

use crate::error::Error;

/// The temporary name of a target, beside it; None where the target has no name.
pub fn partial(target: &Path) -> Option<PathBuf> {
    let mut name = OsString::from(".");
    name.push(target.file_name()?);
    name.push(".partial");
    Some(target.with_file_name(name))
}

/// Refuses a process that is not the one with this id: a forked child, which has its parent's open
/// files and must not write, rename or remove them.
pub fn check_process(id: u32) -> std::result::Result<(), Error> {
    if id == std::process::id() { Ok(()) } else { Err(Error::OtherProcess) }
}

/// Locks a file as long as it is open, or says that somebody else does.
pub fn lock(file: &File) -> std::result::Result<(), Error> {
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => Error::Busy,
        TryLockError::Error(error) => Error::Io(error),
    })
}

/// Gives each of two folders the other's name, in two steps: between them `to` does not exist.
fn exchange_slowly(from: &Path, to: &Path) -> Result<()> {
    let mut aside = from.as_os_str().to_owned();
    aside.push(".old");
    std::fs::rename(to, &aside)?;
    std::fs::rename(from, to)?;
    std::fs::rename(&aside, from)
}

/// Renames by a hard link, which refuses an existing name; folders, and files where there are no
/// links, by a placeholder.
fn link_new(from: &Path, to: &Path) -> Result<()> {
    if !from.is_dir() {
        match std::fs::hard_link(from, to) {
            Ok(()) => return std::fs::remove_file(from),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Err(error),
            Err(_) => {}
        }
    }
    replace_placeholder(from, to)
}

/// Takes the name with something empty, which refuses an existing one, and renames over that.
fn replace_placeholder(from: &Path, to: &Path) -> Result<()> {
    if from.is_dir() {
        std::fs::create_dir(to)?;
        // Windows renames no folder over another one.
        if cfg!(windows) {
            std::fs::remove_dir(to)?;
        }
    } else {
        File::create_new(to)?;
    }
    std::fs::rename(from, to)
}

#[cfg(unix)]
mod unix {
    use std::fs::{DirBuilder, Metadata, OpenOptions, Permissions};
    use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};

    use rustix::fs::OFlags;
    use rustix::io::Errno;

    use super::{Error, File, Path, Result, exchange_slowly, link_new, lock};

    /// Fills `bytes` from `offset` on.
    pub fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> Result<()> {
        file.read_exact_at(bytes, offset)
    }

    /// Writes `bytes` from `offset` on.
    pub fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> Result<()> {
        file.write_all_at(bytes, offset)
    }

    /// Makes a file, an error where the name is taken; a `private` one is for this user only,
    /// whatever the umask allows.
    pub fn create_file(path: &Path, private: bool) -> Result<File> {
        let mode = if private { 0o600 } else { 0o666 };
        OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(path)
    }

    /// Opens what has a name already; a symbolic link is not followed.
    pub fn open_old(path: &Path) -> Result<File> {
        OpenOptions::new().read(true).custom_flags(OFlags::NOFOLLOW.bits() as i32).open(path)
    }

    /// Makes a folder for this user only.
    pub fn create_folder(path: &Path) -> Result<()> {
        DirBuilder::new().mode(0o700).create(path)
    }

    /// Whether a file or folder belongs to this user.
    pub fn is_ours(found: &Metadata) -> bool {
        found.uid() == rustix::process::geteuid().as_raw()
    }

    /// Whether nobody but its owner can read, write or enter it.
    pub fn is_private(found: &Metadata) -> bool {
        found.mode() & 0o077 == 0
    }

    /// Sets who may do what.
    pub fn set_mode(file: &File, mode: u32) -> Result<()> {
        file.set_permissions(Permissions::from_mode(mode & 0o777))
    }

    /// Locks a folder as long as the result lives; a symbolic link is not followed.
    pub fn lock_folder(path: &Path) -> std::result::Result<File, Error> {
        let flags = (OFlags::NOFOLLOW | OFlags::DIRECTORY).bits() as i32;
        let folder = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        lock(&folder)?;
        Ok(folder)
    }

    /// Whether the path still leads to this open file or folder.
    pub fn is_at(file: &File, path: &Path) -> Result<bool> {
        let here = file.metadata()?;
        Ok(std::fs::symlink_metadata(path).is_ok_and(|there| (there.dev(), there.ino()) == (here.dev(), here.ino())))
    }

    /// Claims the whole size at once, so that a full disk shows now; some file systems can only set
    /// the length.
    #[cfg(target_os = "linux")]
    pub fn claim(file: &File, size: u64) -> Result<()> {
        match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, size) {
            Err(Errno::OPNOTSUPP) => file.set_len(size),
            done => Ok(done?),
        }
    }

    /// Sets the size; a full disk shows when the tensors are written.
    #[cfg(not(target_os = "linux"))]
    pub fn claim(file: &File, size: u64) -> Result<()> {
        file.set_len(size)
    }

    /// Renames in one step, an error where `to` exists.
    #[cfg(any(target_os = "linux", target_vendor = "apple"))]
    pub fn rename_new(from: &Path, to: &Path) -> Result<()> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            // File systems and kernels that know no flags.
            Err(Errno::INVAL | Errno::NOTSUP | Errno::NOSYS) => link_new(from, to),
            done => Ok(done?),
        }
    }

    /// As above, in two steps.
    #[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
    pub fn rename_new(from: &Path, to: &Path) -> Result<()> {
        link_new(from, to)
    }

    /// Gives each of two folders the other's name, in one step.
    #[cfg(any(target_os = "linux", target_vendor = "apple"))]
    pub fn exchange(from: &Path, to: &Path) -> Result<()> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match renameat_with(CWD, from, CWD, to, RenameFlags::EXCHANGE) {
            // File systems and kernels that know no flags.
            Err(Errno::INVAL | Errno::NOTSUP | Errno::NOSYS) => exchange_slowly(from, to),
            done => Ok(done?),
        }
    }

    /// As above, in steps.
    #[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
    pub fn exchange(from: &Path, to: &Path) -> Result<()> {
        exchange_slowly(from, to)
    }

    /// A new name is safe on disk only when its folder is.
    pub fn sync_folder(path: &Path) -> Result<()> {
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()
    }
}

#[cfg(windows)]
mod windows {
    use std::fs::{Metadata, OpenOptions};
    use std::io::{Error, ErrorKind};
    use std::os::windows::fs::{FileExt, OpenOptionsExt};

    use super::{Error as Failure, File, Path, Result, exchange_slowly, link_new};

    /// Fills `bytes` from `offset` on.
    pub fn read_exact_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> Result<()> {
        while !bytes.is_empty() {
            match file.seek_read(bytes, offset)? {
                0 => return Err(Error::from(ErrorKind::UnexpectedEof)),
                read => {
                    bytes = &mut bytes[read..];
                    offset += read as u64;
                }
            }
        }
        Ok(())
    }

    /// Writes `bytes` from `offset` on.
    pub fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> Result<()> {
        while !bytes.is_empty() {
            match file.seek_write(bytes, offset)? {
                0 => return Err(Error::from(ErrorKind::WriteZero)),
                written => {
                    bytes = &bytes[written..];
                    offset += written as u64;
                }
            }
        }
        Ok(())
    }

    /// Makes a file, an error where the name is taken. Who may read it is what the folder says.
    pub fn create_file(path: &Path, _: bool) -> Result<File> {
        File::create_new(path)
    }

    /// Opens what has a name already.
    pub fn open_old(path: &Path) -> Result<File> {
        File::open(path)
    }

    /// Makes a folder.
    pub fn create_folder(path: &Path) -> Result<()> {
        std::fs::create_dir(path)
    }

    /// Owners are not asked for here: the folder says who may write in it.
    pub fn is_ours(_: &Metadata) -> bool {
        true
    }

    /// As above.
    pub fn is_private(_: &Metadata) -> bool {
        true
    }

    /// There is nothing to set.
    pub fn set_mode(_: &File, _: u32) -> Result<()> {
        Ok(())
    }

    /// Locks a folder as long as the result lives. Folders cannot be locked here, so a file beside
    /// it that nobody else may open is the lock; the system removes it with its handle.
    pub fn lock_folder(path: &Path) -> std::result::Result<File, Failure> {
        const DELETE_ON_CLOSE: u32 = 0x0400_0000;
        const SHARING_VIOLATION: i32 = 32;
        let name = path.with_extension("lock");
        let options = OpenOptions::new().write(true).create(true).share_mode(0).custom_flags(DELETE_ON_CLOSE).clone();
        options.open(name).map_err(|error| match error.raw_os_error() {
            Some(SHARING_VIOLATION) => Failure::Busy,
            _ => Failure::Io(error),
        })
    }

    /// Whether the path still leads to this open file. It is locked, and a locked file stays where
    /// it is.
    pub fn is_at(_: &File, path: &Path) -> Result<bool> {
        Ok(path.exists())
    }

    /// Sets the size.
    pub fn claim(file: &File, size: u64) -> Result<()> {
        file.set_len(size)
    }

    /// Renames, an error where `to` exists.
    pub fn rename_new(from: &Path, to: &Path) -> Result<()> {
        link_new(from, to)
    }

    /// Gives each of two folders the other's name, in steps.
    pub fn exchange(from: &Path, to: &Path) -> Result<()> {
        exchange_slowly(from, to)
    }

    /// Folders cannot be flushed here.
    pub fn sync_folder(_: &Path) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placeholder_is_replaced_and_an_existing_name_is_not() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        std::fs::write(at("file"), "content").unwrap();
        std::fs::create_dir(at("folder")).unwrap();
        std::fs::write(at("folder").join("inner"), "").unwrap();
        for name in ["file", "folder"] {
            let taken = replace_placeholder(&at(name), &at(if name == "file" { "folder" } else { "file" }));
            assert_eq!(taken.unwrap_err().kind(), ErrorKind::AlreadyExists);
            replace_placeholder(&at(name), &at(&format!("{name} 2"))).unwrap();
            assert!(!at(name).exists());
            if name == "file" {
                std::fs::write(at("file"), "other").unwrap();
            }
        }
        assert_eq!(std::fs::read_to_string(at("file 2")).unwrap(), "content");
        assert!(at("folder 2").join("inner").exists());
    }
}
