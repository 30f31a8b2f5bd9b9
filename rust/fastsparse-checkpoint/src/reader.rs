//! Reading: the bytes of one tensor at a time, from a memory map or by plain reads.

use std::fs::File;
use std::io::ErrorKind;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use crate::error::{Error, Result};
use crate::header::{Header, PREFIX, Tensor};
use crate::system;

/// An open file whose header was checked.
#[derive(Debug)]
pub struct Reader {
    header: Header,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Map(Arc<Mmap>),
    File(File),
}

/// The bytes of a tensor: a part of the map, which they keep alive, or a copy.
#[derive(Debug)]
pub struct Bytes(Storage);

#[derive(Debug)]
enum Storage {
    Mapped { map: Arc<Mmap>, start: usize, end: usize },
    Owned(Vec<u8>),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Storage::Mapped { map, start, end } => &map[*start..*end],
            Storage::Owned(bytes) => bytes,
        }
    }
}

impl Reader {
    /// Opens a file and checks its header. With `mmap` the tensors are parts of a memory map, and
    /// somebody who cuts the file short meanwhile ends the process (SIGBUS); without, every tensor
    /// is read when asked for and that is an error.
    pub fn open(path: &Path, mmap: bool) -> Result<Reader> {
        // Before opening: to open a pipe would wait for its writer.
        if !std::fs::metadata(path)?.is_file() {
            return Err(Error::NotAFile);
        }
        let file = File::open(path)?;
        let size = file.metadata()?.len();
        if size < PREFIX {
            return Err(Error::TooShort { size });
        }
        let mut prefix = [0; PREFIX as usize];
        read_at(&file, &mut prefix, 0)?;
        let json = read_range(&file, PREFIX, Header::length(prefix, size)?)?;
        let header = Header::parse(&json, size)?;
        let source = if mmap {
            // SAFETY: the map is private and read-only, and is only handed out as bytes, of which
            // every value is valid. A file that another process changes meanwhile changes these
            // bytes; that this is undefined for a `&[u8]` is the price of every memory map, and
            // `mmap = false` is there for files that others may touch.
            Source::Map(Arc::new(unsafe { Mmap::map(&file)? }))
        } else {
            Source::File(file)
        };
        if let Source::Map(map) = &source
            && (map.len() as u64) < header.file_size
        {
            return Err(Error::CutShort);
        }
        Ok(Reader { header, source })
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    fn tensor(&self, index: usize) -> Result<&Tensor> {
        self.header.tensors.get(index).ok_or(Error::NoTensor(index))
    }

    /// The bytes of the tensor with this index in the header.
    pub fn bytes(&self, index: usize) -> Result<Bytes> {
        let range = &self.tensor(index)?.range;
        Ok(Bytes(match &self.source {
            Source::Map(map) => {
                Storage::Mapped { map: map.clone(), start: range.start as usize, end: range.end as usize }
            }
            Source::File(file) => Storage::Owned(read_range(file, range.start, range.end - range.start)?),
        }))
    }

    /// Gives the memory of a tensor's mapped pages back; whoever touches them again reads them
    /// again. Systems without such a call (Windows) take it back by themselves when they need it.
    pub fn release(&self, index: usize) -> Result<()> {
        let range = &self.tensor(index)?.range;
        #[cfg(unix)]
        if let Source::Map(map) = &self.source
            && !range.is_empty()
        {
            let (start, len) = (range.start as usize, (range.end - range.start) as usize);
            // SAFETY: the map is private, read-only and backed by a file, so dropped pages come
            // back with the same content.
            unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, len)? };
        }
        #[cfg(not(unix))]
        let _ = range;
        Ok(())
    }
}

/// `len` bytes from `start`; the caller has held both against the size of the file.
fn read_range(file: &File, start: u64, len: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len as usize).map_err(|_| Error::Io(ErrorKind::OutOfMemory.into()))?;
    bytes.resize(len as usize, 0);
    read_at(file, &mut bytes, start)?;
    Ok(bytes)
}

fn read_at(file: &File, bytes: &mut [u8], start: u64) -> Result<()> {
    system::read_exact_at(file, bytes, start).map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => Error::CutShort,
        _ => Error::Io(error),
    })
}
