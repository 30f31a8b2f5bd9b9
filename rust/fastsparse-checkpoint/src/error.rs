//! Everything that can go wrong with a file.

use std::path::PathBuf;

/// What an [`Error`] is about, for whoever maps it to exceptions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The bytes of a file are not what the format demands.
    Format,
    /// A request that this crate declines.
    Refused,
    /// The operating system's refusal.
    Io,
}

/// The error of every operation of this crate. Messages do not hold the path: the caller knows it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Less than the eight bytes of the header's length.
    #[error("{size} bytes are too few for a safetensors file")]
    TooShort {
        /// Size of the file.
        size: u64,
    },
    /// The header is said to be longer than the file, or than any header may be.
    #[error("the header claims {length} bytes, the file has room for {limit}")]
    HeaderLength {
        /// What the first eight bytes say.
        length: u64,
        /// The most that it may be.
        limit: u64,
    },
    /// The header is not the JSON object that the format demands.
    #[error("the header is not valid: {0}")]
    Header(String),
    /// A name occurs twice.
    #[error("tensor {0:?} occurs twice")]
    Duplicate(String),
    /// The product of the dimensions, in bits, does not fit.
    #[error("tensor {0:?}: the shape is too large")]
    ShapeOverflow(String),
    /// Elements below eight bits that do not fill their last byte.
    #[error("tensor {0:?}: the elements do not end on a byte")]
    PartialByte(String),
    /// The data's length is not what shape and dtype ask for.
    #[error("tensor {name:?}: shape and dtype ask for {expected} bytes, there are {found}")]
    Size {
        /// The tensor.
        name: String,
        /// Bytes that shape and dtype ask for.
        expected: u64,
        /// Bytes found.
        found: u64,
    },
    /// A range that runs backwards.
    #[error("tensor {0:?}: its data ends before it starts")]
    Backwards(String),
    /// A range that starts inside of the one before it.
    #[error("tensor {0:?}: its data overlaps that of another tensor")]
    Overlap(String),
    /// Bytes that belong to no tensor.
    #[error("tensor {name:?}: {bytes} bytes before its data belong to no tensor")]
    Hole {
        /// The tensor after the hole.
        name: String,
        /// Size of the hole.
        bytes: u64,
    },
    /// A range beyond the end of the file.
    #[error("tensor {0:?}: its data lies beyond the end of the file, which is cut short or damaged: fetch it again")]
    BeyondEnd(String),
    /// Bytes after the last tensor.
    #[error("{0} bytes after the last tensor")]
    Trailing(u64),
    /// The file became shorter after it was opened.
    #[error("the file was cut short while it was read")]
    CutShort,
    /// Not a regular file.
    #[error("not a regular file")]
    NotAFile,
    /// Neither a folder nor something that may give way to one.
    #[error("it exists and is no folder")]
    NotAFolder,
    /// Something else has the temporary name.
    #[error("{} is in the way, the temporary name of its target, and no {expected}; move or remove it", path.display())]
    InTheWay {
        /// The temporary name.
        path: PathBuf,
        /// What may have it.
        expected: &'static str,
    },
    /// Something of another user has the temporary name.
    #[error("{} is in the way, the temporary name of its target, and belongs to another user; move or remove it", path.display())]
    NotOurs {
        /// The temporary name.
        path: PathBuf,
    },
    /// A forked child has what its parent is writing.
    #[error("another process began to write it")]
    OtherProcess,
    /// No tensor of this index.
    #[error("there is no tensor number {0}")]
    NoTensor(usize),
    /// More data than fits was handed to the writer.
    #[error("tensor {name:?}: {found} bytes to write, its place has {expected} left")]
    WriteLength {
        /// The tensor.
        name: String,
        /// What is left of its place.
        expected: u64,
        /// Bytes handed over.
        found: u64,
    },
    /// Finishing while data is missing.
    #[error("tensor {0:?} was not written to its end")]
    Unwritten(String),
    /// The target exists and may not be replaced.
    #[error("it exists already; overwrite=True replaces it")]
    Exists,
    /// Another writer is at work on the same target.
    #[error("another run is writing it")]
    Busy,
    /// The operating system's refusal.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

impl Error {
    /// What it is about.
    pub fn kind(&self) -> Kind {
        match self {
            Error::Io(_) => Kind::Io,
            Error::NotAFile
            | Error::NotAFolder
            | Error::InTheWay { .. }
            | Error::NotOurs { .. }
            | Error::OtherProcess
            | Error::NoTensor(_)
            | Error::WriteLength { .. }
            | Error::Unwritten(_)
            | Error::Exists
            | Error::Busy => Kind::Refused,
            _ => Kind::Format,
        }
    }
}

/// Result of an operation of this crate.
pub type Result<T> = std::result::Result<T, Error>;
