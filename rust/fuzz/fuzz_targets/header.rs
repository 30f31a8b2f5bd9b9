//! The header of a safetensors file: what passes describes every byte of the file once, and can be
//! written again.

#![no_main]

use fastsparse_checkpoint::header::{Header, PREFIX};
use libfuzzer_sys::fuzz_target;

// The first byte is the size of the data, in sixteens; the rest is the JSON.
fuzz_target!(|data: &[u8]| {
    let Some((&data_size, json)) = data.split_first() else { return };
    let start = PREFIX + json.len() as u64;
    let file_size = start + 16 * data_size as u64;
    let _ = Header::length(json.first_chunk().copied().unwrap_or_default(), file_size);
    let Ok(header) = Header::parse(json, file_size) else { return };
    let mut end = start;
    for tensor in &header.tensors {
        assert_eq!(tensor.range.start, end);
        assert!(tensor.range.end >= end);
        end = tensor.range.end;
    }
    assert_eq!(end, file_size);

    let entries: Vec<_> = header.tensors.iter().map(|tensor| tensor.entry.clone()).collect();
    let (laid, bytes) = Header::lay_out(entries, header.metadata.clone()).expect("what was read can be written");
    let length = Header::length(*bytes.first_chunk().unwrap(), laid.file_size).unwrap();
    assert_eq!(length, bytes.len() as u64 - PREFIX);
    assert_eq!(Header::parse(&bytes[PREFIX as usize..], laid.file_size).unwrap(), laid);
});
