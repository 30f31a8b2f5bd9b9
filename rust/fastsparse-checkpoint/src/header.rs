//! The header of a safetensors file: strict parsing, layout, writing.
//!
//! What is refused beyond invalid JSON: names that occur twice, shapes of more than 64 dimensions
//! or whose size overflows, data that disagrees with shape and dtype, overlaps, holes, bytes after
//! the last tensor. What passes describes every byte of the file exactly once.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::Range;

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::de::value::StrDeserializer;
use serde::de::{Deserialize, Deserializer, Error as _, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::error::{Error, Result};

/// Bytes in front of the header: its length, little-endian.
pub const PREFIX: u64 = 8;

/// The longest header, the same limit as in the reference implementation.
pub const MAX_HEADER: u64 = 100_000_000;

/// The data starts on a multiple of this, and tensors are sorted by the size of their elements:
/// with a header that is padded with spaces every tensor is aligned for its type, and the first for
/// whole vectors.
const ALIGNMENT: u64 = 64;

/// The most dimensions that a tensor may have, as in NumPy and torch. Held while parsing: a short
/// header could claim millions.
const MAX_DIMENSIONS: usize = 64;

const METADATA: &str = "__metadata__";

/// The dtype of this name, as headers spell it.
pub fn dtype(name: &str) -> Option<Dtype> {
    let name: StrDeserializer<'_, serde::de::value::Error> = name.into_deserializer();
    Dtype::deserialize(name).ok()
}

/// A tensor to be laid out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Name, unique in its file.
    pub name: String,
    /// Type of the elements.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: Vec<usize>,
}

impl Entry {
    /// Bytes of the data. The dimensions that are not zero have to fit too: nobody could make an
    /// array of such a shape.
    fn size(&self) -> Result<u64> {
        let mut filled = self.shape.iter().filter(|&&dim| dim != 0);
        let bits = filled
            .try_fold(self.dtype.bitsize() as u64, |bits, &dim| bits.checked_mul(dim as u64))
            .filter(|&bits| bits <= i64::MAX as u64)
            .ok_or_else(|| Error::ShapeOverflow(self.name.clone()))?;
        let bits = if self.shape.contains(&0) { 0 } else { bits };
        if bits % 8 != 0 {
            return Err(Error::PartialByte(self.name.clone()));
        }
        Ok(bits / 8)
    }
}

/// A tensor and where its data is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Name, dtype and shape.
    pub entry: Entry,
    /// Its bytes in the file.
    pub range: Range<u64>,
}

/// A header that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The `__metadata__` of the file.
    pub metadata: BTreeMap<String, String>,
    /// The tensors, in the order of their data.
    pub tensors: Vec<Tensor>,
    /// Size of the whole file.
    pub file_size: u64,
}

impl Header {
    /// The length of the header, from the first eight bytes of a file of this size.
    pub fn length(prefix: [u8; PREFIX as usize], file_size: u64) -> Result<u64> {
        let length = u64::from_le_bytes(prefix);
        let limit = file_size.saturating_sub(PREFIX).min(MAX_HEADER);
        if length > limit {
            return Err(Error::HeaderLength { length, limit });
        }
        Ok(length)
    }

    /// Parses the JSON of a file of this size and checks it.
    pub fn parse(json: &[u8], file_size: u64) -> Result<Header> {
        let text = std::str::from_utf8(json).map_err(|error| Error::Header(error.to_string()))?;
        let raw: RawHeader = serde_json::from_str(text).map_err(|error| Error::Header(error.to_string()))?;
        let data_start = PREFIX + json.len() as u64;
        let data_size = file_size.checked_sub(data_start).ok_or(Error::CutShort)?;
        let tensors = locate(raw.tensors, data_start, data_size)?;
        Ok(Header { metadata: raw.metadata.into_iter().collect(), tensors, file_size })
    }

    /// Gives every tensor its place, largest elements first, then by name. Returns the header and
    /// the bytes that a file starts with.
    pub fn lay_out(mut entries: Vec<Entry>, metadata: BTreeMap<String, String>) -> Result<(Header, Vec<u8>)> {
        entries.sort_by(|a, b| b.dtype.bitsize().cmp(&a.dtype.bitsize()).then_with(|| a.name.cmp(&b.name)));
        let mut names = HashSet::new();
        let mut tensors = Vec::with_capacity(entries.len());
        let mut end = 0u64;
        for entry in entries {
            if entry.name == METADATA || !names.insert(entry.name.clone()) {
                return Err(Error::Duplicate(entry.name));
            }
            let start = end;
            end = start.checked_add(entry.size()?).ok_or_else(|| Error::ShapeOverflow(entry.name.clone()))?;
            tensors.push(Tensor { entry, range: start..end });
        }
        let mut header = Header { metadata, tensors, file_size: 0 };
        let mut bytes = vec![0; PREFIX as usize];
        serde_json::to_writer(&mut bytes, &header).map_err(|error| Error::Header(error.to_string()))?;
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT as usize), b' ');
        let data_start = bytes.len() as u64;
        let length = data_start - PREFIX;
        if length > MAX_HEADER {
            return Err(Error::HeaderLength { length, limit: MAX_HEADER });
        }
        bytes[..PREFIX as usize].copy_from_slice(&length.to_le_bytes());
        for tensor in &mut header.tensors {
            tensor.range = tensor.range.start + data_start..tensor.range.end + data_start;
        }
        header.file_size = data_start + end;
        Ok((header, bytes))
    }
}

/// Turns the offsets of a header into ranges of the file, in order; every byte of the data belongs
/// to exactly one tensor.
fn locate(tensors: Vec<(String, Info)>, data_start: u64, data_size: u64) -> Result<Vec<Tensor>> {
    let mut found = Vec::with_capacity(tensors.len());
    for (name, info) in tensors {
        let (start, end) = info.data_offsets;
        if end < start {
            return Err(Error::Backwards(name));
        }
        if end > data_size {
            return Err(Error::BeyondEnd(name));
        }
        let entry = Entry { name, dtype: info.dtype, shape: info.shape.0 };
        let expected = entry.size()?;
        if end - start != expected {
            return Err(Error::Size { name: entry.name, expected, found: end - start });
        }
        found.push(Tensor { entry, range: start..end });
    }
    found.sort_by_key(|tensor| (tensor.range.start, tensor.range.end));
    let mut covered = 0;
    for tensor in &mut found {
        if tensor.range.start < covered {
            return Err(Error::Overlap(tensor.entry.name.clone()));
        }
        if tensor.range.start > covered {
            return Err(Error::Hole { name: tensor.entry.name.clone(), bytes: tensor.range.start - covered });
        }
        covered = tensor.range.end;
        tensor.range = tensor.range.start + data_start..tensor.range.end + data_start;
    }
    if covered != data_size {
        return Err(Error::Trailing(data_size - covered));
    }
    Ok(found)
}

/// Before the layout is final the ranges are relative to the data, as the format stores them.
impl Serialize for Header {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if !self.metadata.is_empty() {
            map.serialize_entry(METADATA, &self.metadata)?;
        }
        for Tensor { entry, range } in &self.tensors {
            let info = TensorInfo {
                dtype: entry.dtype,
                shape: entry.shape.clone(),
                data_offsets: (range.start as usize, range.end as usize),
            };
            map.serialize_entry(&entry.name, &info)?;
        }
        map.end()
    }
}

/// The JSON object as it stands, names unique.
struct RawHeader {
    metadata: Vec<(String, String)>,
    tensors: Vec<(String, Info)>,
}

/// A tensor as it stands in a header.
#[derive(serde::Deserialize)]
struct Info {
    dtype: Dtype,
    shape: Shape,
    data_offsets: (u64, u64),
}

/// Dimensions, no more than [`MAX_DIMENSIONS`].
struct Shape(Vec<usize>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_seq(ShapeVisitor)
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("an array of dimensions")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Shape, A::Error> {
        let mut shape = Vec::new();
        while let Some(dimension) = seq.next_element()? {
            if shape.len() == MAX_DIMENSIONS {
                return Err(A::Error::custom(format_args!("a shape of more than {MAX_DIMENSIONS} dimensions")));
            }
            shape.push(dimension);
        }
        Ok(Shape(shape))
    }
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<RawHeader, A::Error> {
        let mut names = HashSet::new();
        let mut raw = RawHeader { metadata: Vec::new(), tensors: Vec::new() };
        while let Some(name) = map.next_key::<String>()? {
            if !names.insert(name.clone()) {
                return Err(A::Error::custom(format_args!("{name:?} occurs twice")));
            }
            if name == METADATA {
                raw.metadata = map.next_value::<Option<UniqueStrings>>()?.map_or_else(Vec::new, |found| found.0);
            } else {
                raw.tensors.push((name, map.next_value()?));
            }
        }
        Ok(raw)
    }
}

/// An object of strings, names unique.
struct UniqueStrings(Vec<(String, String)>);

impl<'de> Deserialize<'de> for UniqueStrings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(StringsVisitor)
    }
}

struct StringsVisitor;

impl<'de> Visitor<'de> for StringsVisitor {
    type Value = UniqueStrings;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<UniqueStrings, A::Error> {
        let mut names = HashSet::new();
        let mut strings = Vec::new();
        while let Some((name, value)) = map.next_entry::<String, String>()? {
            if !names.insert(name.clone()) {
                return Err(A::Error::custom(format_args!("metadata key {name:?} occurs twice")));
            }
            strings.push((name, value));
        }
        Ok(UniqueStrings(strings))
    }
}
