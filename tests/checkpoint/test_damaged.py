"""Files that are damaged, or made to do harm: an error that says where, or a valid reading; never anything else."""

import json

import numpy as np
import pytest
import raw_safetensors
from raw_safetensors import file

import fastsparse as fs
from fastsparse import checkpoint


def parts(prefix="m", **changes):
    """The keys of the vector of docs/format.md, with changes; None leaves a key out."""
    keys = {
        "shape": np.int64([2, 10]),
        "compressed": np.float32([7, 56.3, 1, 2]),
        "bitmask": np.uint8([[0x82, 0x02], [0x00, 0x02]]),
        "row_offsets": np.int64([0, 3]),
    }
    keys.update(changes)
    return {f"{prefix}.{part}": array for part, array in keys.items() if array is not None}


def record(**changes):
    fields = {
        "prefix": "m",
        "shape": [2, 10],
        "dtype": "F32",
        "pattern": "80%",
        "exact": True,
        "density": 0.2,
    }
    fields.update(changes)
    return {"format": 1, "packed": {"m.weight": {key: field for key, field in fields.items() if field is not ...}}}


def read(path, **options):
    opened = checkpoint.open(path, **options)
    return {
        name: tensor.to_dense() if isinstance(tensor, fs.BitmaskArray) else tensor for name, tensor in opened.items()
    }


def save(path, tensors, record=None):
    text = record if isinstance(record, str) else json.dumps(record)
    return raw_safetensors.write(path, tensors, None if record is None else {"fastsparse": text})


@pytest.fixture(params=[True, False], ids=["record", "names"])
def small(request, tmp_path):
    """A small packed file, with a record or by names only."""
    path = tmp_path / "small"
    w = np.arange(1, 31, dtype=np.float32).reshape(3, 10)
    if request.param:
        checkpoint.save({"m.weight": fs.compress(w, "50%/row"), "b": np.float16([1, 2])}, path)
        return path
    packed = fs.compress(w, "50%/row")
    return save(
        path,
        parts(
            shape=np.int64([3, 10]),
            compressed=packed.values,
            bitmask=packed.bitmask,
            row_offsets=packed.row_offsets[:-1],
        ),
    )


def test_a_file_cut_anywhere_is_an_error(small, tmp_path):
    content = small.read_bytes()
    assert len(read(small)) >= 1
    for size in range(len(content)):
        (tmp_path / "cut").write_bytes(content[:size])
        for mmap in (True, False):
            with pytest.raises(fs.FormatError, match="cut: "):
                read(tmp_path / "cut", mmap=mmap)


@pytest.mark.filterwarnings("ignore:.*is stale:UserWarning")
def test_a_flipped_bit_is_an_error_or_another_valid_file(small, tmp_path):
    content = bytearray(small.read_bytes())
    errors = 0
    for at in range(len(content)):
        for bit in (at % 8, 5):
            content[at] ^= 1 << bit
            (tmp_path / "flipped").write_bytes(content)
            content[at] ^= 1 << bit
            try:
                read(tmp_path / "flipped")
                checkpoint.verify(tmp_path / "flipped")
            except fs.FastSparseError:
                errors += 1
    assert errors > len(content)


def test_a_byte_more_is_an_error(small):
    small.write_bytes(small.read_bytes() + b"\0")
    with pytest.raises(fs.FormatError, match="1 bytes after the last tensor"):
        read(small)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"bitmask": np.uint8([[0x82, 0x02], [0x00, 0x03]])}, "values"),
        ({"bitmask": np.uint8([[0x82, 0x02], [0x02, 0x00]])}, None),
        ({"bitmask": np.uint8([[0x82, 0x00], [0x02, 0x02]])}, "row offsets"),
        ({"bitmask": np.uint8([[0x82, 0x04], [0x00, 0x02]])}, "padding"),
        ({"bitmask": np.uint8([[0x82, 0x02, 0x00, 0x02]])}, "expected U8"),
        ({"bitmask": np.int8([[-126, 2], [0, 2]])}, "expected U8"),
        ({"row_offsets": np.int64([0, 2])}, "row offsets"),
        ({"row_offsets": np.int64([3, 0])}, "row offsets"),
        ({"row_offsets": np.int64([0, -1])}, "row offsets"),
        ({"row_offsets": np.int64([0, 2**62])}, "row offsets"),
        ({"row_offsets": np.int64([0, 3, 4])}, "expected I64"),
        ({"row_offsets": np.int32([0, 3])}, "expected I64"),
        ({"row_offsets": None}, "groups of 4|missing"),
        ({"compressed": np.float32([[7, 56.3], [1, 2]])}, "expected F32"),
        ({"compressed": np.float32([7, 56.3, 1])}, "values|density"),
        ({"compressed": np.int64([7, 5, 1, 2])}, "I64"),
        ({"shape": np.int64([2, 17])}, "expected|holds"),
        ({"shape": np.int64([2, -10])}, "no shape"),
        ({"shape": np.int64([2**62, 2**62])}, "expected|holds"),
        ({"shape": np.int32([2, 10])}, "expected I64"),
        ({"shape": np.int64([1] * 70)}, "no shape|expected"),
        ({"shape": np.int64([])}, "expected"),
    ],
)
@pytest.mark.parametrize("recorded", [True, False])
def test_parts_that_contradict_each_other(tmp_path, changes, why, recorded):
    path = save(tmp_path / "x", parts(**changes), record(pattern=None, exact=False) if recorded else None)
    if why is None:
        assert list(read(path)) == ["m.weight"]
        return
    with pytest.raises(fs.FormatError, match=rf"x: .*m\.?.*({why})"):
        read(path)
    with pytest.raises(fs.FormatError):
        checkpoint.verify(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"format": 1}',
        '{"format": 4, "packed": {}}',
        '{"format": 0, "packed": {}}',
        '{"format": true, "packed": {}}',
        '{"format": 1, "packed": []}',
        '{"format": 1, "packed": {"m.weight": null}}',
        '{"format": 1, "packed": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"format": ' + "1" * 5000 + "}",
        record(prefix=...),
        record(pattern=...),
        record(prefix="n"),
        record(prefix="\ud800"),
        record(prefix=7),
        record(shape=[10, 2]),
        record(shape=[2, 10.0]),
        record(shape=[2, True]),
        record(shape=[-2, -10]),
        record(shape=[2**70, 0]),
        record(shape=[2, 10**4000, 10**4000]),
        record(shape=[1] * 65),
        record(shape="2x10"),
        record(dtype="I64"),
        record(dtype="X"),
        record(pattern="50 percent"),
        record(pattern=7),
        record(pattern="2:4"),
        record(pattern="2:4@axis=7"),
        record(pattern="50%/4x1"),
        record(exact=1),
        record(calibrated=1),
        record(density=0.21),
        record(density=1),
        {"format": 1, "packed": {name: record()["packed"]["m.weight"] for name in ("a", "b")}},
    ],
)
def test_records_that_do_not_fit(tmp_path, text):
    with pytest.raises(fs.FormatError, match="x: "):
        read(save(tmp_path / "x", parts(), text))


@pytest.mark.parametrize(
    "pruned",
    [
        [],
        {"m.weight": {"pattern": "80%", "density": 0.2}},
        {"b": None},
        {"b": {"pattern": "80%"}},
        {"b": {"pattern": "80%", "density": 1}},
        {"b": {"density": 0.5}},
        {"b": {"pattern": "80 percent", "density": 0.5}},
        {"b": {"pattern": "80%", "density": 0.5, "calibrated": None}},
    ],
)
def test_records_of_dense_tensors_that_do_not_fit(tmp_path, pruned):
    tensors = {**parts(), "b": np.float32([0, 1])}
    fits = {"b": {"pattern": "50%", "density": 0.5}}
    assert len(read(save(tmp_path / "x", tensors, {**record(), "pruned": fits}))) == 2
    checkpoint.verify(tmp_path / "x")
    with pytest.raises(fs.FormatError, match="x: "):
        read(save(tmp_path / "x", tensors, {**record(), "pruned": pruned}))


def test_a_record_that_fits_is_read(tmp_path):
    assert list(read(save(tmp_path / "x", parts(), record()))) == ["m.weight"]


def test_one_name_is_one_tensor(tmp_path):
    w = np.ones((2, 2), np.float32)
    for tensors in ({**parts(), "m.weight": w}, {**parts("m"), **parts("m.weight")}):
        with pytest.raises(fs.FormatError, match=r"'m.weight' occurs twice"):
            read(save(tmp_path / "x", tensors))
    with pytest.raises(fs.FormatError, match="occurs twice"):
        read(save(tmp_path / "x", {**parts(), "m.weight": w}, record()))


def test_some_keys_of_a_packed_tensor_are_just_tensors(tmp_path):
    tensors = {"a.compressed": np.ones(3, "f"), "b.bitmask": np.uint8([1]), "c.row_offsets": np.int64([1])}
    assert set(read(save(tmp_path / "x", tensors))) == set(tensors)


def test_a_shape_without_data_claims_no_memory(tmp_path):
    tensors = {
        "m.shape": {"dtype": "I64", "shape": [3], "data_offsets": [0, 24]},
        "m.compressed": {"dtype": "F32", "shape": [0], "data_offsets": [24, 24]},
        "m.bitmask": {"dtype": "U8", "shape": [2**40, 0, 1], "data_offsets": [24, 24]},
        "m.row_offsets": {"dtype": "I64", "shape": [2**40, 0], "data_offsets": [24, 24]},
    }
    (tmp_path / "x").write_bytes(file(tensors, np.int64([2**40, 0, 8]).tobytes()))
    with pytest.raises(fs.FormatError, match="more rows than its parts have bytes"):
        read(tmp_path / "x")


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xef\xbb\xbf{}",
        b"{}}",
        b'{"a":' * 5000,
        b'{"a":1}',
        b'{"__metadata__":{"a":"1","a":"2"}}',
        b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"U8","shape":[4294967296,4294967296,4],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"U8","shape":[0,18446744073709551615],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[18446744073709551615,0]}}',
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[5,6]}}',
        b'{"\xff":{}}',
    ],
)
def test_headers_that_lie(tmp_path, header):
    (tmp_path / "x").write_bytes(file(header))
    with pytest.raises(fs.FormatError, match="x: "):
        checkpoint.open(tmp_path / "x")


def test_a_header_length_beyond_the_file_is_not_allocated(tmp_path):
    for length in (2**20, 2**60, 2**64 - 1):
        (tmp_path / "x").write_bytes(length.to_bytes(8, "little") + b"{}")
        with pytest.raises(fs.FormatError, match=f"{length} bytes"):
            checkpoint.open(tmp_path / "x")


def test_more_dimensions_than_numpy_has(tmp_path):
    header = {"a": {"dtype": "U8", "shape": [1] * 100, "data_offsets": [0, 1]}}
    (tmp_path / "x").write_bytes(file(header, b"\0"))
    with pytest.raises(fs.FormatError, match="more than 64 dimensions"):
        read(tmp_path / "x")


def test_what_cannot_be_stored_is_refused(tmp_path):
    for tensors, why in (
        ({"a": np.array(["x"])}, "no dtype for <U1"),
        ({"a": np.arange(3).astype(">i4")}, "no dtype for >i4"),
        ({"a": np.ones(2, "complex128")}, "complex128"),
        ({"a.weight": fs.pack(np.ones((2, 2), "f")), "a.shape": np.ones(1), "a.weight.shape": np.ones(1)}, "parts"),
        ({"__metadata__": np.ones(2)}, "__metadata__"),
    ):
        with pytest.raises(fs.FastSparseError, match=why):
            checkpoint.save(tensors, tmp_path / "x")
    assert not list(tmp_path.iterdir())
