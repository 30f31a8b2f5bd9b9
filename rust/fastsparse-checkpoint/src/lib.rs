//! Checkpoint files: reading by memory map, writing at offsets. No Python, no kernel.
//!
//! The container is safetensors: eight bytes with the length of a JSON header, the header, the
//! tensors without a gap. The header comes from strangers, so [`header::Header::parse`] trusts
//! nothing in it before it was held against the file's size.

pub mod digest;
pub mod error;
pub mod folder;
pub mod header;
pub mod reader;
mod system;
pub mod writer;

pub use digest::digest;
pub use error::{Error, Kind, Result};
pub use folder::Folder;
pub use header::{Entry, Header, Tensor, dtype};
pub use reader::{Bytes, Reader};
pub use safetensors::Dtype;
pub use writer::Writer;
