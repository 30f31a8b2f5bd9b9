//! Reading and writing files: round trips, and files that somebody made to do harm.

use std::collections::BTreeMap;
use std::path::Path;

use fastsparse_checkpoint::{Dtype, Entry, Error, Header, Kind, Reader, Writer};
use proptest::prelude::*;

fn entry(name: &str, dtype: Dtype, shape: &[usize]) -> Entry {
    Entry { name: name.into(), dtype, shape: shape.to_vec() }
}

fn file(json: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}

fn open(bytes: &[u8]) -> Result<Reader, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    std::fs::write(&path, bytes).unwrap();
    let mapped = Reader::open(&path, true);
    let plain = Reader::open(&path, false);
    assert_eq!(mapped.as_ref().map(Reader::header).ok(), plain.as_ref().map(Reader::header).ok());
    mapped
}

fn refused(json: &str, data: &[u8]) -> Error {
    let error = open(&file(json, data)).expect_err(json);
    assert_eq!(error.kind(), Kind::Format, "{error}");
    error
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_is_written_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let entries =
        vec![entry("bytes", Dtype::U8, &[3]), entry("empty", Dtype::F32, &[0, 7]), entry("words", Dtype::I64, &[2])];
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let writer = Writer::create(&path, entries, metadata.clone(), false, None).unwrap();
    let order: Vec<_> = writer.header().tensors.iter().map(|t| t.entry.name.clone()).collect();
    assert_eq!(order, ["words", "empty", "bytes"]);
    assert_eq!(names(folder.path()), [".x.safetensors.partial"]);
    writer.write(2, &[1, 2, 3]).unwrap();
    writer.write(0, &[9; 12]).unwrap();
    writer.write(0, &[8; 4]).unwrap();
    writer.finish().unwrap();
    assert_eq!(names(folder.path()), ["x.safetensors"]);

    for mmap in [true, false] {
        let reader = Reader::open(&path, mmap).unwrap();
        assert_eq!(reader.header().metadata, metadata);
        assert_eq!(&*reader.bytes(0).unwrap(), [[9; 4], [9; 4], [9; 4], [8; 4]].as_flattened());
        assert_eq!(reader.bytes(1).unwrap().len(), 0);
        let bytes = reader.bytes(2).unwrap();
        reader.release(2).unwrap();
        assert_eq!(&*bytes, &[1, 2, 3]);
        assert!(matches!(reader.bytes(3), Err(Error::NoTensor(3))));
        drop(reader);
        assert_eq!(&*bytes, &[1, 2, 3], "the bytes outlive the reader");
    }
    let content = std::fs::read(&path).unwrap();
    let peer = safetensors::SafeTensors::deserialize(&content).unwrap();
    assert_eq!(peer.tensor("bytes").unwrap().data(), &[1, 2, 3]);
}

#[test]
fn the_golden_file_of_each_version_is_read() {
    for (version, keys) in [(1, 10), (2, 11)] {
        let golden = format!("../../tests/data/format{version}.safetensors");
        let reader = Reader::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join(golden), true).unwrap();
        let tensors = &reader.header().tensors;
        let described: Vec<_> =
            tensors.iter().map(|t| (t.entry.name.as_str(), t.entry.dtype, t.entry.shape.as_slice())).collect();
        assert_eq!(described.len(), keys);
        assert_eq!(described[0], ("fc.row_offsets", Dtype::I64, &[4][..]));
        assert_eq!(described[keys - 1], ("head.bitmask", Dtype::U8, &[2, 4][..]));
        assert_eq!(described.contains(&("head", Dtype::BF16, &[0][..])), version == 2);
        assert_eq!(tensors[0].range.start % 64, 0);
        let offsets: Vec<_> = [0u64, 6, 12, 18].iter().flat_map(|offset| offset.to_le_bytes()).collect();
        assert_eq!(&*reader.bytes(0).unwrap(), offsets);
        assert!(reader.header().metadata["fastsparse"].starts_with(&format!("{{\"format\": {version}")));
    }
}

#[test]
fn headers_that_lie_are_refused() {
    let tensor = |range: &str| format!(r#"{{"dtype":"U8","shape":[4],"data_offsets":{range}}}"#);
    let (low, high) = (tensor("[0,4]"), tensor("[4,8]"));
    assert!(open(&file(&format!(r#"{{"a":{low},"b":{high}}}"#), &[0; 8])).is_ok());

    let error = refused(&format!(r#"{{"a":{low},"b":{}}}"#, tensor("[2,6]")), &[0; 6]);
    assert!(matches!(error, Error::Overlap(name) if name == "b"));
    let error = refused(&format!(r#"{{"a":{low},"b":{low}}}"#), &[0; 4]);
    assert!(matches!(error, Error::Overlap(_)));
    let error = refused(&format!(r#"{{"a":{low},"b":{}}}"#, tensor("[5,9]")), &[0; 9]);
    assert!(matches!(error, Error::Hole { bytes: 1, .. }));
    assert!(matches!(refused(&format!(r#"{{"a":{low}}}"#), &[0; 5]), Error::Trailing(1)));
    assert!(matches!(refused(&format!(r#"{{"a":{low}}}"#), &[0; 3]), Error::BeyondEnd(_)));
    assert!(matches!(refused(&format!(r#"{{"a":{}}}"#, tensor("[4,0]")), &[0; 4]), Error::Backwards(_)));
    assert!(matches!(refused(&format!(r#"{{"a":{}}}"#, tensor("[0,3]")), &[0; 3]), Error::Size { expected: 4, .. }));
    let far = tensor("[9223372036854775807,9223372036854775811]");
    assert!(matches!(refused(&format!(r#"{{"a":{far}}}"#), &[0; 4]), Error::BeyondEnd(_)));
    assert!(matches!(refused("{}", &[0; 1]), Error::Trailing(1)));
}

#[test]
fn shapes_that_overflow_are_refused() {
    let shape = |dtype: &str, shape: &str, end: usize| {
        refused(&format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{end}]}}}}"#), &vec![0; end])
    };
    assert!(matches!(shape("F32", "[4294967296,4294967296]", 0), Error::ShapeOverflow(_)));
    assert!(matches!(shape("F64", "[2305843009213693952]", 0), Error::ShapeOverflow(_)));
    assert!(matches!(shape("U8", "[0,9223372036854775808,2]", 0), Error::ShapeOverflow(_)));
    assert!(matches!(shape("F4", "[3]", 2), Error::PartialByte(_)));
    assert!(matches!(shape("U8", "[-1]", 0), Error::Header(_)));
    assert!(matches!(shape("U8", "[18446744073709551616]", 0), Error::Header(_)));
}

#[test]
fn json_that_is_not_a_header_is_refused() {
    let low = r#"{"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#;
    for json in [
        "".to_owned(),
        "\u{feff}{}".to_owned(),
        "[]".to_owned(),
        "{} {}".to_owned(),
        format!(r#"{{"a":{low},"a":{low}}}"#),
        format!(r#"{{"a":{low},"\u0061":{low}}}"#),
        r#"{"__metadata__":{"a":"1","a":"2"}}"#.to_owned(),
        r#"{"__metadata__":{},"__metadata__":{}}"#.to_owned(),
        r#"{"__metadata__":{"a":1}}"#.to_owned(),
        r#"{"a":{"dtype":"F3","shape":[0],"data_offsets":[0,0]}}"#.to_owned(),
        r#"{"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#.to_owned(),
        r#"{"a":{"dtype":"U8","shape":[0]}}"#.to_owned(),
        r#"{"\ud800":null}"#.to_owned(),
        format!(r#"{{"a":{}{}}}"#, r#"{"x":"#.repeat(100_000), "}".repeat(100_000)),
        "{".repeat(100_000),
    ] {
        refused(&json, &[]);
    }
    let mut bytes = file(r#"{"__metadata__":{"a":"x"}}"#, &[]);
    let at = bytes.len() - 4;
    bytes[at] = 0xff;
    assert_eq!(open(&bytes).unwrap_err().kind(), Kind::Format, "not UTF-8");
}

#[test]
fn what_the_reference_implementation_reads_is_read() {
    let x = r#""x":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#;
    for json in [
        format!("{{{x}}}"),
        format!(" \n\t{{{x}}} \r\n"),
        format!(r#"{{"__metadata__":null,{x}}}"#),
        format!(r#"{{"__metadata__":{{}},{x}}}"#),
        format!(r#"{{"y":{{"shape":[0],"more":[1],"dtype":"F4","data_offsets":[0,0]}},{x}}}"#),
        r#"{"x":["U8",[4],[0,4]]}"#.to_owned(),
    ] {
        let reader = open(&file(&json, &[1, 2, 3, 4])).expect(&json);
        assert!(reader.header().metadata.is_empty());
        let index = reader.header().tensors.iter().position(|tensor| tensor.entry.name == "x").unwrap();
        assert_eq!(*reader.bytes(index).unwrap(), [1, 2, 3, 4]);
        let theirs = file(&json, &[1, 2, 3, 4]);
        assert_eq!(*safetensors::SafeTensors::deserialize(&theirs).unwrap().tensor("x").unwrap().data(), [1, 2, 3, 4]);
    }
}

/// Millions of dimensions fit in a short header; 64 are as many as arrays may have.
#[test]
fn shapes_of_more_than_64_dimensions_are_refused_while_parsing() {
    let header = |dimensions: usize| {
        format!(r#"{{"x":{{"dtype":"U8","shape":[1{}],"data_offsets":[0,1]}}}}"#, ",1".repeat(dimensions - 1))
    };
    assert_eq!(open(&file(&header(64), &[7])).unwrap().header().tensors[0].entry.shape.len(), 64);
    for dimensions in [65, 1 << 20] {
        let error = refused(&header(dimensions), &[7]).to_string();
        assert!(error.contains("a shape of more than 64 dimensions"), "{error}");
        // Not at the end of the shape: where the 65th stands.
        assert!(error.ends_with("column 158"), "{error}");
    }
}

#[test]
fn header_lengths_are_held_against_the_file() {
    for length in [3, 1 << 32, 1 << 60, u64::MAX] {
        let mut bytes = u64::to_le_bytes(length).to_vec();
        bytes.extend_from_slice(b"{}");
        assert!(matches!(open(&bytes).unwrap_err(), Error::HeaderLength { limit: 2, .. }));
    }
    assert!(matches!(open(&[0; 7]).unwrap_err(), Error::TooShort { size: 7 }));
    assert!(matches!(open(&[]).unwrap_err(), Error::TooShort { size: 0 }));
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(Reader::open(folder.path(), true).unwrap_err(), Error::NotAFile));
    assert!(matches!(Reader::open(&folder.path().join("none"), true).unwrap_err(), Error::Io(_)));
}

#[test]
fn a_file_cut_short_after_opening_is_an_error_without_a_map() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    std::fs::write(&path, file(r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#, &[7; 4])).unwrap();
    let reader = Reader::open(&path, false).unwrap();
    let size = std::fs::metadata(&path).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(size - 1).unwrap();
    assert!(matches!(reader.bytes(0).unwrap_err(), Error::CutShort));
}

#[test]
fn the_target_changes_only_when_all_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    std::fs::write(&path, "old").unwrap();
    let create = |overwrite| Writer::create(&path, vec![entry("a", Dtype::U8, &[2])], BTreeMap::new(), overwrite, None);
    assert!(matches!(create(false).unwrap_err(), Error::Exists));
    assert_eq!(names(folder.path()), ["x"]);

    let writer = create(true).unwrap();
    assert!(matches!(create(true).unwrap_err(), Error::Busy), "two writers of one target");
    assert!(matches!(writer.write(1, &[]), Err(Error::NoTensor(1))));
    writer.write(0, &[1]).unwrap();
    assert!(matches!(writer.write(0, &[2, 3]), Err(Error::WriteLength { expected: 1, found: 2, .. })));
    assert!(matches!(writer.finish().unwrap_err(), Error::Unwritten(name) if name == "a"));
    assert_eq!(names(folder.path()), ["x"]);
    assert_eq!(std::fs::read(&path).unwrap(), b"old");

    let writer = create(true).unwrap();
    writer.write(0, &[1, 2]).unwrap();
    assert!(matches!(writer.write(0, &[1, 2]), Err(Error::WriteLength { expected: 0, found: 2, .. })));
    writer.finish().unwrap();
    assert_eq!(names(folder.path()), ["x"]);
    assert_eq!(&*Reader::open(&path, true).unwrap().bytes(0).unwrap(), &[1, 2]);
}

#[test]
fn what_is_discarded_keeps_nothing_from_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    let writer = Writer::create(&path, vec![entry("a", Dtype::U8, &[1 << 20])], BTreeMap::new(), false, None).unwrap();
    writer.write(0, &vec![1; 1 << 20]).unwrap();
    writer.discard();
    assert_eq!(std::fs::metadata(folder.path().join(".x.partial")).unwrap().len(), 0);
    writer.flush().unwrap();
    drop(writer);
    assert!(names(folder.path()).is_empty());
}

#[test]
fn a_target_that_appears_meanwhile_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    let writer = Writer::create(&path, vec![], BTreeMap::new(), false, None).unwrap();
    std::fs::write(&path, "theirs").unwrap();
    assert!(matches!(writer.finish().unwrap_err(), Error::Exists));
    assert_eq!(std::fs::read(&path).unwrap(), b"theirs");
    assert_eq!(names(folder.path()), ["x"]);
}

#[test]
fn what_a_killed_run_left_is_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    std::fs::write(folder.path().join(".x.partial"), [7; 1000]).unwrap();
    let writer = Writer::create(&path, vec![entry("a", Dtype::U8, &[1])], BTreeMap::new(), false, None).unwrap();
    writer.write(0, &[5]).unwrap();
    writer.finish().unwrap();
    assert_eq!(names(folder.path()), ["x"]);
    assert_eq!(&*Reader::open(&path, true).unwrap().bytes(0).unwrap(), &[5]);
}

#[cfg(unix)]
#[test]
fn a_file_with_a_mode_is_private_until_it_is_finished_and_what_was_left_keeps_its_content() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let (path, left) = (folder.path().join("x"), folder.path().join(".x.partial"));
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    std::fs::write(folder.path().join("other"), "theirs").unwrap();
    std::fs::hard_link(folder.path().join("other"), &left).unwrap();
    let writer = Writer::create(&path, vec![], BTreeMap::new(), false, Some(0o640)).unwrap();
    assert_eq!(mode(&left), 0o600);
    writer.finish().unwrap();
    assert_eq!(mode(&path), 0o640);
    assert_eq!(std::fs::read(folder.path().join("other")).unwrap(), b"theirs");
}

#[test]
fn a_link_under_the_temporary_name_is_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("victim"), "theirs").unwrap();
    std::os::unix::fs::symlink("victim", folder.path().join(".x.partial")).unwrap();
    let created = Writer::create(&folder.path().join("x"), vec![], BTreeMap::new(), false, None);
    assert!(matches!(created, Err(Error::InTheWay { .. })));
    assert_eq!(std::fs::read(folder.path().join("victim")).unwrap(), b"theirs");
    std::fs::create_dir(folder.path().join(".y.partial")).unwrap();
    let created = Writer::create(&folder.path().join("y"), vec![], BTreeMap::new(), false, None);
    assert!(matches!(created, Err(Error::InTheWay { .. })));
}

#[test]
fn names_that_clash_are_refused() {
    let twice = vec![entry("a", Dtype::U8, &[1]), entry("a", Dtype::F32, &[1])];
    assert!(matches!(Header::lay_out(twice, BTreeMap::new()), Err(Error::Duplicate(name)) if name == "a"));
    let reserved = vec![entry("__metadata__", Dtype::U8, &[1])];
    assert!(matches!(Header::lay_out(reserved, BTreeMap::new()), Err(Error::Duplicate(_))));
}

const DTYPES: [Dtype; 6] = [Dtype::F4, Dtype::BOOL, Dtype::BF16, Dtype::F32, Dtype::C64, Dtype::I64];

proptest! {
    #[test]
    fn layouts_are_read_back_and_aligned(
        tensors in proptest::collection::btree_map(".*", (0..6usize, proptest::collection::vec(0..5usize, 0..4)), 0..12),
        metadata in proptest::collection::btree_map(".*", ".*", 0..4),
    ) {
        let entries: Vec<_> = tensors
            .iter()
            .filter(|(name, (dtype, shape))| {
                *name != "__metadata__" && (*dtype > 0 || shape.iter().product::<usize>() % 2 == 0)
            })
            .map(|(name, (dtype, shape))| entry(name, DTYPES[*dtype], shape))
            .collect();
        let (header, bytes) = Header::lay_out(entries.clone(), metadata).unwrap();
        prop_assert_eq!(bytes.len() % 64, 0);
        prop_assert_eq!(header.tensors.len(), entries.len());
        for tensor in &header.tensors {
            prop_assert_eq!(tensor.range.start as usize % tensor.entry.dtype.bitsize().div_ceil(8), 0);
        }
        prop_assert_eq!(&Header::parse(&bytes[8..], header.file_size).unwrap(), &header);
        prop_assert!(Header::parse(&bytes[8..], header.file_size + 1).is_err());
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Header::parse(&bytes, bytes.len() as u64 + 8);
    }
}
