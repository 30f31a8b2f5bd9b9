"""The layouts of compressed-tensors: what its versions wrote is read, and each layout becomes each other.

`tests/data/compressed_tensors` holds folders that 0.3.3, 0.8.1 and 0.14.0.1 wrote; `golden.py` knows what is in them.
"""

import json
from pathlib import Path
from typing import ClassVar

import golden
import ml_dtypes
import numpy as np
import pytest
import raw_safetensors
from oracle import same_bits

import fastsparse as fs
from fastsparse import checkpoint, compressed_tensors
from fastsparse.checkpoint._format import Packed
from fastsparse.cli import main

DATA = Path(__file__).parents[1] / "data" / "compressed_tensors"
FOLDERS = ["0.3.3-sparse-bitmask", "0.8.1-sparse-bitmask", "0.14.0.1-sparse-bitmask", "0.14.0.1-sparse-24-bitmask"]


def dense(array):
    return array.to_dense() if isinstance(array, fs.BitmaskArray) else array


def assert_golden(found, names):
    assert set(found) == set(names)
    for name in names:
        wanted = golden.weights(name).astype(ml_dtypes.bfloat16)
        array = dense(found[name])
        assert (array.dtype, array.shape) == (wanted.dtype, wanted.shape)
        assert same_bits(array, wanted), name


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_each_version_wrote_is_read(folder):
    opened = checkpoint.open(DATA / folder)
    assert_golden(opened, golden.SHAPES)
    checkpoint.verify(DATA / folder)
    for name, array in opened.items():
        packed = golden.pruned(name) or folder.startswith("0.3")
        assert isinstance(array, fs.BitmaskArray) == packed
        assert packed is False or array.pattern == (fs.NM(zeros=2, of=4) if "24" in folder else None)


@pytest.mark.parametrize("folder", FOLDERS[:3])
def test_ranks_other_than_two(folder):
    assert_golden(checkpoint.open(DATA / folder / "extra.safetensors"), golden.EXTRA)


@pytest.mark.parametrize("to", ["dense", "sparse-bitmask", "sparse-24"])
@pytest.mark.parametrize("folder", FOLDERS)
def test_each_becomes_each(tmp_path, folder, to):
    report = compressed_tensors.convert(DATA / folder, tmp_path / "dst", to)
    opened = checkpoint.open(tmp_path / "dst")
    assert_golden(opened, golden.SHAPES)
    checkpoint.verify(tmp_path / "dst")
    assert report.bytes_before == sum(row.bytes_after for row in checkpoint.inspect(DATA / folder).tensors)
    config = json.loads((tmp_path / "dst" / "config.json").read_text())
    if to == "dense":
        assert config == golden.CONFIG
        assert not any(isinstance(found, Packed) for found in opened.reader.tensors.values())
        return
    assert {name for name in opened if isinstance(opened[name], fs.BitmaskArray)} == set(
        filter(golden.pruned, golden.SHAPES)
    )
    section = config.pop("quantization_config")["sparsity_config"]
    assert config == golden.CONFIG
    assert section["format"] == ("sparse-24-bitmask" if to == "sparse-24" else "sparse-bitmask")
    keys = set(opened.reader.entries)
    assert ("model.layers.0.mlp.up_proj.row_offsets" in keys) == (to == "sparse-bitmask")
    if to == "sparse-bitmask":
        assert all((dense(array) != 0).sum() == array.nnz for array in opened.values() if hasattr(array, "nnz"))


def test_their_bytes_are_ours(tmp_path):
    """Converted to its own layout, what 0.14.0.1 packed has the same bytes under the same names."""
    folder = DATA / "0.14.0.1-sparse-bitmask"
    theirs = checkpoint.open(folder)
    compressed_tensors.convert(folder, tmp_path / "dst", "sparse-bitmask")
    ours = checkpoint.open(tmp_path / "dst")
    assert set(ours.reader.entries) == set(theirs.reader.entries)
    for key, entry in ours.reader.entries.items():
        assert np.array_equal(ours.reader.raw(entry), theirs.reader.raw(theirs.reader.entries[key]))


def test_a_pruned_dense_model_is_packed(tmp_path):
    rng = np.random.default_rng(2)
    w = fs.prune(rng.standard_normal((64, 64), np.float32), "2:4")
    w[3, :9] = 0
    conv = fs.prune(rng.standard_normal((16, 8, 48), np.float32), "75%")
    tensors = {"a.weight": w, "conv.weight": conv, "full.weight": rng.standard_normal((64, 64)), "odd": w}
    checkpoint.save(tensors, tmp_path / "src")
    for to, packed in (("sparse-bitmask", {"a.weight", "conv.weight"}), ("sparse-24", {"a.weight"})):
        report = compressed_tensors.convert(tmp_path / "src", tmp_path / to, to)
        assert {row.name for row in report.tensors if row.reason is None} == packed
        opened = checkpoint.open(tmp_path / to)
        assert opened.keys() == tensors.keys()
        assert all(np.array_equal(dense(opened[name]), tensors[name]) for name in tensors)
        checkpoint.verify(tmp_path / to, tmp_path / "src")
        compressed_tensors.convert(tmp_path / to, tmp_path / "back", "dense", overwrite=True)
        checkpoint.verify(tmp_path / "back", tmp_path / "src")
    # Masks as compressed-tensors lays them: along the last axis.
    assert checkpoint.open(tmp_path / "sparse-bitmask").reader.entries["conv.bitmask"].shape == (16, 8, 6)
    reasons = {row.name: row.reason for row in report.tensors}
    assert reasons["odd"].startswith("packed, compressed-tensors would read it under another name")
    assert reasons["full.weight"] == "not 2:4"
    checkpoint.save({"full.weight": tensors["full.weight"]}, tmp_path / "full")
    with pytest.raises(fs.FastSparseError, match=r"nothing to store as sparse-24: 'full\.weight': not 2:4"):
        compressed_tensors.convert(tmp_path / "full", tmp_path / "x", "sparse-24")
    with pytest.raises(fs.FastSparseError, match="to: expected sparse-bitmask, sparse-24 or dense, got 'csr'"):
        compressed_tensors.convert(tmp_path / "full", tmp_path / "x", "csr")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("damage", [{"layout": "x"}, {"layout": "2:4", "exact": False}, {"layout": "2:4"}])
def test_a_record_with_an_impossible_layout(tmp_path, damage):
    checkpoint.save({"m.weight": fs.pack(np.eye(8, 12, dtype=np.float32))}, tmp_path / "x")
    opened = checkpoint.open(tmp_path / "x")
    record = {"prefix": "m", "shape": [8, 12], "dtype": "F32", "pattern": None, "exact": False, "density": 8 / 96}
    text = json.dumps({"format": 1, "packed": {"m.weight": {**record, **damage}}})
    parts = {key: opened.reader.array(entry) for key, entry in opened.reader.entries.items()}
    raw_safetensors.write(tmp_path / "y", parts, {"fastsparse": text})
    with pytest.raises(fs.FormatError, match=r"'m\.weight': metadata: layout"):
        checkpoint.open(tmp_path / "y")


class TestSections:
    """`config.json` is data: what it names is neither imported nor obeyed, only known or refused."""

    def convert(self, tmp_path, config):
        (tmp_path / "src").mkdir()
        checkpoint.save({"a.weight": fs.pack(np.eye(4, dtype=np.float32))}, tmp_path / "src" / "model.safetensors")
        (tmp_path / "src" / "config.json").write_text(json.dumps(config))
        compressed_tensors.convert(tmp_path / "src", tmp_path / "dst", "dense")
        return json.loads((tmp_path / "dst" / "config.json").read_text())

    SPARSE: ClassVar = {"format": "sparse-bitmask", "registry_requires_subclass": False}
    QUANTISED: ClassVar = {"config_groups": {"group_0": {"targets": ["Linear"]}}, "format": "float-quantized"}

    @pytest.mark.parametrize(
        ("section", "left"),
        [
            ({"sparsity_config": SPARSE}, {}),
            ({"compression_config": {"sparsity_config": SPARSE, "version": "0.6.0"}}, {}),
            (
                {"quantization_config": {"sparsity_config": SPARSE, "config_groups": {}, "format": "dense",
                                         "quant_method": "compressed-tensors", "ignore": ["lm_head"],
                                         "kv_cache_scheme": None, "quantization_status": "frozen"}},
                {},
            ),
            (
                {"compression_config": {**QUANTISED, "sparsity_config": SPARSE}},
                {"quantization_config": {**QUANTISED, "quant_method": "compressed-tensors"}},
            ),
            (
                {"quantization_config": {**QUANTISED, "quant_method": "compressed-tensors", "sparsity_config": SPARSE}},
                {"quantization_config": {**QUANTISED, "quant_method": "compressed-tensors"}},
            ),
            ({"quantization_config": {"quant_method": "gptq", "format": "x"}},) * 2,
        ],
    )  # fmt: skip
    def test_what_is_left(self, tmp_path, section, left):
        assert self.convert(tmp_path, {"model_type": "llama", **section}) == {"model_type": "llama", **left}

    @pytest.mark.parametrize(
        ("section", "message"),
        [
            (
                {"quantization_config": {"format": "marlin-24"}},
                "quantization_config: format marlin-24 is not supported",
            ),
            ({"quantization_config": {"config_groups": {"g": {"format": "marlin-24"}}}}, "g: format marlin-24"),
            ({"quantization_config": {"sparsity_config": {"format": "os.system"}}}, "format 'os.system' is unknown"),
            ({"compression_config": {"format": ["x"]}}, r"compression_config: format \['x'\] is unknown"),
            ({"sparsity_config": {"format": "csr"}}, "sparsity_config: format 'csr' is unknown"),
        ],
    )
    def test_what_is_refused(self, tmp_path, section, message):
        with pytest.raises(fs.FormatError, match=message):
            self.convert(tmp_path, section)
        assert not (tmp_path / "dst").exists()


def test_marlin_is_known_by_its_keys_too(tmp_path):
    parts = {"weight_packed": np.zeros((4, 4), "i4"), "scale_packed": np.zeros(4, "f2"), "meta": np.zeros(4, "i2")}
    checkpoint.save({f"m.{part}": array for part, array in parts.items()}, tmp_path / "x")
    with pytest.raises(fs.FormatError, match="module 'm' is in the marlin-24 layout"):
        compressed_tensors.convert(tmp_path / "x", tmp_path / "y", "dense")


def test_the_command(tmp_path, capsys):
    assert main(["convert", str(DATA / FOLDERS[1]), str(tmp_path / "x"), "--to", "sparse-24", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["totals"]["packed"] == 7
    assert main(["convert", str(tmp_path / "x"), str(tmp_path / "y"), "--to", "dense"]) == 0
    assert_golden(checkpoint.open(tmp_path / "y"), golden.SHAPES)
    assert main(["convert", str(tmp_path / "x"), str(tmp_path / "z"), "--to", "csr"]) == 2


KINDS = [
    np.float64,
    np.float32,
    np.float16,
    ml_dtypes.bfloat16,
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e5m2,
    np.int8,
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(3, 16), (5, 13), (7,), (2, 3, 5), (4, 3, 2, 8), (0, 5), (3, 0)])
def test_sparse_bitmask_arrays(backend, kind, shape):
    rng = np.random.default_rng(1)
    w = (rng.integers(-4, 5, shape) * (rng.random(shape) < 0.5)).astype(kind)
    compressed, bitmask, offsets = compressed_tensors.to_sparse_bitmask(fs.pack(w))
    keep = w != 0
    assert same_bits(compressed, w[keep])
    assert np.array_equal(bitmask, np.packbits(keep, axis=-1, bitorder="little"))
    counts = keep.sum(axis=-1)
    assert np.array_equal(offsets, np.cumsum(counts, 0) - counts if counts.ndim else 0)
    assert compressed_tensors.from_sparse_bitmask(compressed, bitmask, shape) == fs.pack(w)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cols", [4, 8, 20, 64])
def test_sparse24_arrays(backend, kind, cols):
    rng = np.random.default_rng(1)
    w = np.ones((6, cols))
    for group in w.reshape(-1, 4):
        group[:] = rng.permutation([0, 0, rng.integers(-3, 4), rng.integers(-3, 4)])
    w = w.astype(kind)
    compressed, bitmask = compressed_tensors.to_sparse24(fs.pack(w))
    keep = np.unpackbits(bitmask, axis=1, bitorder="little")
    assert not keep[:, cols:].any()
    keep = keep[:, :cols].astype(bool)
    assert (keep.reshape(-1, 4).sum(1) == 2).all()
    assert not (w.astype(np.float32)[~keep]).any()
    assert same_bits(compressed.ravel(), w[keep])
    # Nothing says which places zeros take; these are the ones that 2:4 selects.
    assert np.array_equal(keep, fs.select(w, "2:4").to_bool())
    back = compressed_tensors.from_sparse24(compressed, bitmask, w.shape)
    assert same_bits(back.to_dense(), w)
    assert back.pattern == fs.NM(zeros=2, of=4)
    again = compressed_tensors.to_sparse24(back)
    assert same_bits(again[0], compressed)
    assert np.array_equal(again[1], bitmask)


def test_any_choice_of_slots_is_read_and_kept(backend):
    compressed, bitmask = np.float32([[7, 3, 5, 56.3], [1, 2, 0, -0.0]]), np.uint8([[0xCA], [0xC3]])
    s = compressed_tensors.from_sparse24(compressed, bitmask, (2, 8))
    assert np.array_equal(s.to_dense(), np.float32([[0, 7, 0, 3, 0, 0, 5, 56.3], [1, 2, 0, 0, 0, 0, 0, 0]]))
    assert compressed_tensors.from_sparse24(compressed, bitmask, np.int64([[2], [8]])) == s  # as in files
    back = compressed_tensors.to_sparse24(s)
    assert same_bits(back[0], compressed)
    assert np.array_equal(back[1], bitmask)


def test_explicit_zeros_make_room(backend):
    w = np.float32([[1, 0, 2, 0, 0, 0, 3, 0]])
    s = fs.pack(w, np.ones(w.shape, bool))
    compressed, bitmask = compressed_tensors.to_sparse24(s)
    assert np.array_equal(compressed, [[1, 2, 0, 3]])
    assert bitmask.tolist() == [[0x55]]


def test_what_is_not_two_four_is_refused(backend):
    for w, why in (
        (np.float32([[1, 0, 0, 0, 1, 1, 0, 0], [0, 1, 0, 0, 1, 1, 0, 1]]), "columns 4 to 7 of row 1"),
        (np.float32([[1, 1, 1, 0]]), "columns 0 to 3 of row 0"),
        (np.float32([[1, 0, 0]]), "multiple of 4 columns"),
        (np.float32([1, 0, 0, 0]), "expected a matrix"),
    ):
        with pytest.raises(fs.FastSparseError, match=why):
            compressed_tensors.to_sparse24(fs.pack(w))
    with pytest.raises(fs.FastSparseError, match="scalar"):
        compressed_tensors.to_sparse_bitmask(fs.pack(np.float32(1)))


@pytest.mark.parametrize(
    ("call", "arguments", "why"),
    [
        ("from_sparse24", ([[1.0, 2]], [[0b0111]], (1, 4)), "keeps 3 elements"),
        ("from_sparse24", ([[1.0, 2]], [[0b0001]], (1, 4)), "keeps 1 elements"),
        ("from_sparse24", ([[1.0, 2, 3, 4]], [[0b00010111]], (1, 8)), "pattern: the group"),
        ("from_sparse24", ([[1.0, 2]], [[0b11]], (4,)), "expected a matrix"),
        ("from_sparse24", ([[1.0, 2]], [[0b11]], (1, 6)), "expected a matrix"),
        ("from_sparse24", ([1.0, 2], [[0b11]], (1, 4)), r"compressed: expected shape \(1, 2\)"),
        ("from_sparse_bitmask", ([1.0], [[1]], (2, 8)), r"bitmask: expected uint8 of shape \(2, 1\)"),
        ("from_sparse_bitmask", ([1.0], [[[1]], [[8]]], (2, 1, 3)), "padding bits"),
        ("from_sparse_bitmask", ([1.0, 2], [[[1]], [[0]]], (2, 1, 3)), "keeps 1 elements"),
        ("from_sparse_bitmask", ([1.0], [1], ()), "scalar"),
        ("from_sparse_bitmask", ([1.0], [[1]], (2**62, 8)), "expected uint8 of shape"),
    ],
)
def test_contradictions(backend, call, arguments, why):
    values, mask, shape = arguments
    with pytest.raises(fs.FormatError, match=why):
        getattr(compressed_tensors, call)(np.float32(values), np.uint8(mask), shape)
