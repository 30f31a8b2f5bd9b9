"""Checkpoints: what is written is read back, bit for bit, and other readers of the format agree."""

import json
import os
import pickle
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fastsparse as fs
from fastsparse import checkpoint

DTYPES = [
    "float64",
    "float32",
    "float16",
    ml_dtypes.bfloat16,
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e5m2,
    "int8",
    "uint8",
]
FORMS = ["50%", "30%/row", "3:4", "top2/8", "75%/4x1", "50%/8", "threshold=2", "nonzero", "0%"]
DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def weights(rng, shape, dtype="float32"):
    """Random weights without zeros."""
    return (rng.integers(1, 7, shape) * rng.choice([-1, 1], shape)).astype(dtype)


def bits(array):
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def write(path, tensors, **options):
    checkpoint.save(tensors, path, **options)
    return path


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(bits(a), bits(b))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "form", ["50%", "30%/row", "3:4", "top2/8", "75%/4x1", "50%/8", "threshold=2", "nonzero", "0%"]
)
def test_compressing_prunes_by_the_pattern_and_keeps_every_bit(tmp_path, rng, dtype, form):
    w = weights(rng, (12, 52), "uint8" if dtype == "uint8" else "float32").astype(dtype)
    src = write(tmp_path / "src", {"a.weight": w})
    packed, dense = tmp_path / "packed", tmp_path / "dense"
    report = checkpoint.compress(src, packed, checkpoint.Recipe(rules=[checkpoint.Rule("a", form)]))
    checkpoint.decompress(packed, dense)
    found = checkpoint.open(dense)["a.weight"]
    if report.packed:
        assert checkpoint.open(packed)["a.weight"] == fs.compress(w, form)
        assert same(found, fs.prune(w, form))
    else:
        assert "larger" in report.tensors[0].reason
        assert same(found, w)
    assert sorted(os.listdir(tmp_path)) == ["dense", "packed", "src"]
    checkpoint.verify(packed, src)


def test_the_report_says_what_was_done_and_what_it_cost(tmp_path, rng):
    tensors = {
        "layer.0.weight": weights(rng, (64, 64)),
        "layer.0.bias": weights(rng, (64,)),
        "tiny.weight": weights(rng, (32, 64)),
        "embed_tokens.weight": weights(rng, (64, 64)),
        "lm_head.weight": weights(rng, (64, 64)),
        "steps": np.arange(10_000).reshape(100, 100),
        "bytes.weight": weights(rng, (64, 64), "int8"),
    }
    src = write(tmp_path / "src", tensors)
    report = checkpoint.compress(src, tmp_path / "dst", "75%")
    rows = {row.name: row for row in report.tensors}
    done = rows.pop("layer.0.weight")
    assert (done.pattern, done.sparsity, done.reason) == ("75%", 0.75, None)
    assert (done.bytes_before, done.bytes_after) == (64 * 64 * 4, 64 * 16 * 4 + 64 * 8 + 64 * 8 + 16)
    w = tensors["layer.0.weight"].astype(np.float64)
    assert done.kept_energy == pytest.approx((fs.prune(w, "75%") ** 2).sum() / (w**2).sum(), rel=1e-12)
    assert {name: row.reason for name, row in rows.items()} == {
        "layer.0.bias": "fewer than two dimensions",
        "tiny.weight": "no more than 2048 elements",
        "embed_tokens.weight": "an embedding",
        "lm_head.weight": "an output layer",
        "steps": "dtype I64 is not pruned unless named",
        "bytes.weight": "dtype I8 is not pruned unless named",
    }
    assert (report.packed, report.sparsity) == (1, 0.75)
    assert json.loads(json.dumps(report.to_dict()))["totals"]["bytes_after"] == report.bytes_after
    stored = checkpoint.open(tmp_path / "dst").reader.entries.values()
    assert report.bytes_after == sum(entry.nbytes for entry in stored)

    planned = checkpoint.plan(src, "75%").report
    assert [(row.name, row.bytes_after, row.sparsity) for row in planned.tensors] == [
        (row.name, row.bytes_after, row.sparsity) for row in report.tensors
    ]
    inspected = {row.name: row for row in checkpoint.inspect(tmp_path / "dst").tensors}
    assert inspected["layer.0.weight"].sparsity == 0.75
    assert inspected["layer.0.weight"].bytes_after == done.bytes_after


def test_jobs_are_plain_data(tmp_path, rng):
    plan = checkpoint.plan(write(tmp_path / "src", {"a.weight": weights(rng, (64, 64))}), "2:4")
    assert pickle.loads(pickle.dumps(plan)) == plan


def test_other_dtypes_pass_through_byte_for_byte(tmp_path, rng):
    kinds = [np.bool_, "int16", "uint16", "int32", "uint32", "int64", "uint64", "complex64", ml_dtypes.float8_e8m0fnu]
    tensors = {f"{i}.weight": rng.integers(0, 2, (50, 50)).astype(kind) for i, kind in enumerate(kinds)}
    src = write(tmp_path / "src", {**tensors, "x": weights(rng, (64, 64))})
    report = checkpoint.compress(src, tmp_path / "dst", checkpoint.Recipe(rules=[checkpoint.Rule(".", "50%")]))
    assert [row.name for row in report.tensors if row.reason is None] == ["x"]
    opened = checkpoint.open(tmp_path / "dst")
    assert all(same(opened[name], tensor) for name, tensor in tensors.items())


def test_types_below_a_byte_are_carried_over(tmp_path):
    header = json.dumps({"a.weight": {"dtype": "F4", "shape": [2, 3], "data_offsets": [0, 3]}}).encode()
    (tmp_path / "src").write_bytes(len(header).to_bytes(8, "little") + header + b"\x12\x34\x56")
    report = checkpoint.compress(tmp_path / "src", tmp_path / "dst", "50%")
    assert report.tensors[0].dtype == "F4"
    assert (tmp_path / "dst").read_bytes().endswith(b"\x12\x34\x56")
    with pytest.raises(fs.FastSparseError, match=r"'a.weight': NumPy has no dtype for F4"):
        checkpoint.open(tmp_path / "dst")["a.weight"]
    checkpoint.verify(tmp_path / "dst", tmp_path / "src")


def test_a_checkpoint_stores_no_zeros(tmp_path, rng):
    w = weights(rng, (64, 64))
    w[:, :40] = 0
    w[0, 0] = -0.0
    src = write(tmp_path / "src", {"a.weight": w})
    for form in ("25%", "1:4", "10%/row", "0%/4x1", "threshold=0", "nonzero"):
        report = checkpoint.compress(src, tmp_path / "dst", form, overwrite=True)
        array = checkpoint.open(tmp_path / "dst")["a.weight"]
        assert np.count_nonzero(array.values) == array.nnz
        assert report.tensors[0].sparsity == array.sparsity
        assert np.array_equal(array.to_dense(), fs.prune(w, form))
        checkpoint.verify(tmp_path / "dst", src)


def test_a_pattern_that_the_mask_obeys_is_known_after_reading(tmp_path, rng):
    src = write(tmp_path / "src", {"a.weight": weights(rng, (64, 64)), "b.weight": np.eye(64, dtype="f")})
    checkpoint.compress(src, tmp_path / "dst", "2:4")
    opened = checkpoint.open(tmp_path / "dst")
    assert opened["a.weight"].pattern == fs.NM(zeros=2, of=4)
    assert opened["b.weight"].pattern is None


def test_nan_is_refused_before_anything_is_written(tmp_path, rng):
    w = weights(rng, (64, 64))
    w[3, 5] = np.nan
    src = write(tmp_path / "src", {"a.weight": w})
    with pytest.raises(fs.FastSparseError, match=r"'a.weight': .*NaN .*\(3, 5\)"):
        checkpoint.compress(src, tmp_path / "dst", "50%")
    assert os.listdir(tmp_path) == ["src"]
    w[:, :32] = 0
    write(src, {"a.weight": w}, overwrite=True)
    checkpoint.compress(src, tmp_path / "dst", "nonzero")
    assert same(checkpoint.open(tmp_path / "dst")["a.weight"].to_dense(), w)


def test_names_survive_whatever_their_parts_are_called(tmp_path, rng):
    names = [
        "x",
        "x.weight",
        "y.weight",
        "y.shape",
        "weight",
        "z.weight",
        "z.shape",
        "z.weight.bitmask",
        "ü.weight",
        "",
    ]
    tensors = {name: weights(rng, (64, 64)) for name in names}
    src = write(tmp_path / "src", tensors)
    report = checkpoint.compress(src, tmp_path / "dst", checkpoint.Recipe(default="50%", include=[""]))
    assert {row.name: row.reason for row in report.tensors if row.reason} == {
        "z.weight": "other tensors have the names of its parts"
    }
    keys = safetensors.numpy.load_file(tmp_path / "dst")
    assert {"x.compressed", "x.weight.compressed", "y.weight.compressed", "weight.compressed", "ü.compressed"} < set(
        keys
    )
    opened = checkpoint.open(tmp_path / "dst")
    assert sorted(opened) == sorted(names)
    checkpoint.decompress(tmp_path / "dst", tmp_path / "dense")
    dense = checkpoint.open(tmp_path / "dense")
    for name, tensor in tensors.items():
        assert same(dense[name], tensor if name == "z.weight" else fs.prune(tensor, "50%"))
    checkpoint.verify(tmp_path / "dst", src)


def test_metadata_is_carried_over(tmp_path, rng):
    metadata = {"format": "pt", "note": "ä \n"}
    src = write(tmp_path / "src", {"a.weight": weights(rng, (64, 64))}, metadata=metadata)
    checkpoint.compress(src, tmp_path / "dst", "50%")
    checkpoint.decompress(tmp_path / "dst", tmp_path / "dense")
    checkpoint.save(checkpoint.open(tmp_path / "dst"), tmp_path / "copy")
    for name in ("src", "dst", "dense", "copy"):
        assert checkpoint.open(tmp_path / name).metadata == metadata


@pytest.mark.parametrize("mmap", [True, False])
def test_open_is_lazy_and_gives_read_only_views(tmp_path, rng, mmap):
    tensors = {
        "a.weight": weights(rng, (64, 64), ml_dtypes.bfloat16),
        "b": np.arange(5),
        "empty": np.zeros((0, 3), "f"),
    }
    src = write(tmp_path / "src", tensors)
    checkpoint.compress(src, tmp_path / "dst", "50%")
    opened = checkpoint.open(tmp_path / "dst", mmap=mmap)
    assert set(opened) == set(tensors)
    assert len(opened) == 3
    assert "c" not in opened
    with pytest.raises(KeyError):
        opened["c"]
    packed, b = opened["a.weight"], opened["b"]
    assert packed.values.base is not None
    for array in (packed.values, packed.bitmask, packed.row_offsets, b, opened["empty"]):
        assert not array.flags.writeable
    assert same(opened["empty"], tensors["empty"])
    opened.release("a.weight")
    del opened
    (tmp_path / "dst").unlink()
    assert packed == fs.compress(tensors["a.weight"], "50%")
    assert same(b, tensors["b"])


def test_tensors_that_are_not_aligned_are_read(tmp_path):
    header = json.dumps(
        {
            "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
            "b": {"dtype": "F64", "shape": [2], "data_offsets": [1, 17]},
        }
    ).encode()
    (tmp_path / "src").write_bytes(len(header).to_bytes(8, "little") + header + b"\7" + np.float64([1, 2]).tobytes())
    b = checkpoint.open(tmp_path / "src")["b"]
    assert b.flags.aligned
    assert not b.flags.writeable
    assert b.tolist() == [1, 2]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_what_is_saved_is_opened(tmp_path, data):
    kinds = st.sampled_from([np.dtype(kind) for kind in DTYPES])
    shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9)
    tensors = {}
    for name in data.draw(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=4, unique=True)):
        if name == "__metadata__":
            continue
        shape, dtype = data.draw(shapes), data.draw(kinds)
        size = int(np.prod(shape)) * dtype.itemsize
        raw = data.draw(st.binary(min_size=size, max_size=size))
        array = np.frombuffer(raw or b"\0" * 8, np.uint8)[:size].view(dtype).reshape(shape)
        tensors[name] = array
        if data.draw(st.booleans()):
            tensors[name] = fs.pack(array, data.draw(hnp.arrays(np.bool_, shape)))
    checkpoint.save(tensors, tmp_path / "x", overwrite=True)
    opened = checkpoint.open(tmp_path / "x", mmap=data.draw(st.booleans()))
    assert set(opened) == set(tensors)
    for name, tensor in tensors.items():
        found = opened[name]
        assert found == tensor if isinstance(tensor, fs.BitmaskArray) else same(found, tensor)
    checkpoint.verify(tmp_path / "x")
    checkpoint.decompress(tmp_path / "x", tmp_path / "dense", overwrite=True)
    for name, tensor in checkpoint.open(tmp_path / "dense").items():
        original = tensors[name]
        assert same(tensor, original.to_dense() if isinstance(original, fs.BitmaskArray) else original)


def test_the_plain_safetensors_package_reads_it(tmp_path, rng):
    w = weights(rng, (64, 64))
    src = write(tmp_path / "src", {"a.weight": w, "b": np.arange(5)})
    loaded = safetensors.numpy.load_file(src)
    assert same(loaded["a.weight"], w)
    checkpoint.compress(src, tmp_path / "dst", "50%")
    loaded = safetensors.numpy.load_file(tmp_path / "dst")
    array = fs.compress(w, "50%")
    assert sorted(loaded) == ["a.bitmask", "a.compressed", "a.row_offsets", "a.shape", "b"]
    assert loaded["a.shape"].tolist() == [64, 64]
    assert same(loaded["a.compressed"], array.values)
    assert same(loaded["a.bitmask"], array.bitmask)
    assert same(loaded["a.row_offsets"], array.row_offsets[:-1])
    safetensors.numpy.save_file(tensors := {"c.weight": w}, tmp_path / "theirs")
    assert same(checkpoint.open(tmp_path / "theirs")["c.weight"], tensors["c.weight"])


# The vectors of the description of the format, as another writer stores them.

VECTOR = np.float32([[0, 7, 0, 0, 0, 0, 0, 56.3, 0, 1], [0, 0, 0, 0, 0, 0, 0, 0, 0, 2]])


@pytest.mark.parametrize("prefix", ["m", "m.weight"])
def test_keys_without_a_record_are_read_by_their_names(tmp_path, prefix):
    parts = {
        "shape": np.int64([2, 10]),
        "compressed": np.float32([7, 56.3, 1, 2]),
        "bitmask": np.uint8([[0x82, 0x02], [0x00, 0x02]]),
        "row_offsets": np.int64([0, 3]),
    }
    safetensors.numpy.save_file({f"{prefix}.{part}": array for part, array in parts.items()}, tmp_path / "x")
    opened = checkpoint.open(tmp_path / "x")
    assert list(opened) == ["m.weight"]
    assert same(opened["m.weight"].to_dense(), VECTOR)
    row = checkpoint.verify(tmp_path / "x").tensors[0]
    assert (row.name, row.shape, row.pattern) == ("m.weight", (2, 10), None)


def test_the_stored_bytes_are_those_of_the_description(tmp_path):
    checkpoint.save({"m.weight": fs.pack(VECTOR)}, tmp_path / "x")
    loaded = safetensors.numpy.load_file(tmp_path / "x")
    assert loaded["m.bitmask"].tolist() == [[0x82, 0x02], [0x00, 0x02]]
    assert loaded["m.row_offsets"].tolist() == [0, 3]
    assert loaded["m.compressed"].tolist() == VECTOR[VECTOR != 0].tolist()


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 3, 16), (2, 1, 3, 3), (11,), (0, 4, 5)])
def test_masks_padded_along_the_last_axis_are_read(tmp_path, rng, shape):
    w = weights(rng, shape)
    w[rng.random(shape) < 0.6] = 0
    counts = (w != 0).sum(-1)
    parts = {
        "shape": np.int64(shape),
        "compressed": w[w != 0],
        "bitmask": np.packbits(w != 0, axis=-1, bitorder="little"),
        "row_offsets": np.asarray(np.cumsum(counts, 0) - counts, np.int64).reshape(shape[:-1]),
    }
    safetensors.numpy.save_file({f"conv.{part}": array for part, array in parts.items()}, tmp_path / "x")
    found = checkpoint.open(tmp_path / "x")["conv.weight"]
    assert found == fs.pack(w)
    checkpoint.verify(tmp_path / "x")
    if shape[-1] % 8:
        parts["bitmask"] = parts["bitmask"] | np.uint8(0x80)
        safetensors.numpy.save_file({f"conv.{part}": array for part, array in parts.items()}, tmp_path / "x")
        if parts["bitmask"].size:
            with pytest.raises(fs.FormatError, match=r"'conv.weight': .*[Pp]adding"):
                checkpoint.open(tmp_path / "x")["conv.weight"]


def test_the_two_four_layout_is_read(tmp_path):
    parts = {
        "shape": np.int64([[2], [8]]),
        "compressed": np.float32([[7, 3, 5, 56.3], [1, 2, 0, -0.0]]),
        "bitmask": np.uint8([[0xCA], [0xC3]]),
    }
    safetensors.numpy.save_file({f"m.{part}": array for part, array in parts.items()}, tmp_path / "x")
    found = checkpoint.open(tmp_path / "x")["m.weight"]
    assert found.to_dense().tolist() == np.float32([[0, 7, 0, 3, 0, 0, 5, 56.3], [1, 2, 0, 0, 0, 0, 0, -0.0]]).tolist()
    assert found.pattern == fs.NM(zeros=2, of=4)
    assert checkpoint.inspect(tmp_path / "x").tensors[0].sparsity == 0.5
    parts["bitmask"] = np.uint8([[0xCA], [0x87]])
    safetensors.numpy.save_file({f"m.{part}": array for part, array in parts.items()}, tmp_path / "x")
    with pytest.raises(fs.FormatError, match="pattern"):
        checkpoint.open(tmp_path / "x")["m.weight"]


def golden():
    w = np.arange(-30, 30).reshape(4, 15)
    return {
        "fc.weight": fs.compress(np.float32(w), "3:5"),
        "fc.bias": np.float16([0.5, -1.5, 2]),
        "head": fs.pack((w / 8).astype(ml_dtypes.bfloat16).reshape(2, 2, 15), abs(w.reshape(2, 2, 15)) > 9),
        "step": np.int64(7),
    }


@pytest.mark.parametrize("version", [1, 2, 3])
def test_the_golden_file_of_each_version(tmp_path, version):
    path = DATA / f"format{version}.safetensors"
    opened = checkpoint.open(path)
    tensors = golden()
    if version == 3:
        tensors["head"] = tensors["head"].quantize()
    assert set(opened) == set(tensors)
    assert opened["fc.weight"] == tensors["fc.weight"]
    assert opened["fc.weight"].pattern == fs.NM(zeros=3, of=5)
    assert opened["head"] == tensors["head"]
    assert same(opened["fc.bias"], tensors["fc.bias"])
    assert same(opened["step"], np.asarray(tensors["step"]))
    if version > 1:
        checkpoint.save(tensors, tmp_path / "x", metadata={"format": "pt"})
        assert (tmp_path / "x").read_bytes() == path.read_bytes()


# Targets.


def test_a_target_is_replaced_only_when_asked_to(tmp_path, rng):
    src = write(tmp_path / "src", {"a.weight": weights(rng, (64, 64))})
    dst = tmp_path / "dst"
    dst.write_text("mine")
    for action in (
        lambda: checkpoint.compress(src, dst, "50%"),
        lambda: checkpoint.decompress(src, dst),
        lambda: checkpoint.save({}, dst),
    ):
        with pytest.raises(fs.FastSparseError, match="exists"):
            action()
    assert dst.read_text() == "mine"
    checkpoint.compress(src, dst, "50%", overwrite=True)
    assert checkpoint.open(dst)["a.weight"].sparsity == 0.5
    with pytest.raises(fs.FastSparseError, match="packed already"):
        checkpoint.compress(dst, tmp_path / "again", "50%")
    assert sorted(os.listdir(tmp_path)) == ["dst", "src"]


def test_the_source_is_no_target(tmp_path, rng):
    src = write(tmp_path / "src", {"a.weight": weights(rng, (64, 64))})
    (tmp_path / "link").symlink_to("src")
    os.link(src, tmp_path / "twin")
    for dst in (src, tmp_path / "link", tmp_path / "twin"):
        with pytest.raises(fs.FastSparseError, match="same file"):
            checkpoint.compress(src, dst, "50%", overwrite=True)
        with pytest.raises(fs.FastSparseError, match="same file"):
            checkpoint.decompress(src, dst, overwrite=True)


def test_a_failure_leaves_nothing_behind(tmp_path, rng):
    src = write(tmp_path / "src", {f"{i}.weight": weights(rng, (64, 64)) for i in range(3)})

    class Stop(Exception):
        pass

    def stop(done, total, name):
        if done > total * 0.7:
            assert ".dst.partial" in os.listdir(tmp_path)
            raise Stop

    with pytest.raises(Stop):
        checkpoint.compress(src, tmp_path / "dst", "50%", progress=stop)
    assert os.listdir(tmp_path) == ["src"]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        checkpoint.compress(src, tmp_path / "nowhere" / "dst", "50%")
    with pytest.raises(FileNotFoundError, match="none"):
        checkpoint.open(tmp_path / "none")
    with pytest.raises(fs.FastSparseError, match=r"a folder without safetensors of its own"):
        checkpoint.open(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_a_pipe_is_neither_waited_for_nor_replaced(tmp_path, rng):
    src, pipe = write(tmp_path / "src", {"a.weight": weights(rng, (64, 64))}), tmp_path / "pipe"
    os.mkfifo(pipe)
    for attempt in (
        lambda: checkpoint.open(pipe),
        lambda: checkpoint.compress(pipe, tmp_path / "dst", "50%"),
        lambda: checkpoint.verify(src, pipe),
        lambda: checkpoint.compress(src, pipe, "50%", overwrite=True),
        lambda: checkpoint.save({"a": weights(rng, (4,))}, pipe, overwrite=True),
    ):
        with pytest.raises(fs.FastSparseError, match="pipe: not a regular file"):
            attempt()
    assert pipe.is_fifo()
    assert sorted(os.listdir(tmp_path)) == ["pipe", "src"]


def test_a_second_run_into_one_target_is_refused(tmp_path, rng):
    src = write(tmp_path / "src", {"a.weight": weights(rng, (64, 64))})
    refused = []

    def second(done, total, name):
        if done == total:
            with pytest.raises(fs.FastSparseError, match="another run") as caught:
                checkpoint.compress(src, tmp_path / "dst", "50%")
            refused.append(caught)

    checkpoint.compress(src, tmp_path / "dst", "50%", progress=second)
    assert len(refused) == 1
    checkpoint.verify(tmp_path / "dst", src)


def test_progress_ends_at_the_total(tmp_path, rng):
    src = write(tmp_path / "src", {"a.weight": weights(rng, (64, 64)), "b": np.arange(3)})
    for action in (
        lambda tell: checkpoint.compress(src, tmp_path / "dst", "50%", progress=tell),
        lambda tell: checkpoint.plan(src, "50%", progress=tell),
        lambda tell: checkpoint.decompress(tmp_path / "dst", tmp_path / "dense", progress=tell),
        lambda tell: checkpoint.verify(tmp_path / "dst", progress=tell),
    ):
        seen = []
        action(lambda done, total, name, seen=seen: seen.append((done, total)))
        assert seen[-1][0] == seen[-1][1] > 0
        assert seen == sorted(seen)


# What `verify` finds.


def test_verify_finds_what_differs_from_the_source(tmp_path, rng):
    w, bias = weights(rng, (64, 64)), weights(rng, (64,))
    src = write(tmp_path / "src", {"a.weight": w, "b": bias})
    right = fs.compress(w, "2:4")
    other = fs.compress(-w, "2:4")
    moved = fs.pack(w, fs.select(w, "2:4", scores=-abs(w)))
    wrong = fs.BitmaskArray.from_parts(moved.values, moved.bitmask, moved.shape, pattern="2:4")
    for tensors, why in (
        ({"a.weight": right, "b": bias + 1}, "'b': it differs from the source"),
        ({"a.weight": other, "b": bias}, "'a.weight': kept elements differ"),
        (
            {"a.weight": wrong, "b": bias},
            "'a.weight': the mask is not the one that <NM 2:4: 2 zeros in every 4 .50 %.> selects",
        ),
        ({"a.weight": right}, "'b' is missing"),
        ({"a.weight": right, "b": bias, "c": bias}, "'c': it is not a dense tensor of the source"),
        ({"a.weight": right, "b": bias.astype("f8")}, r"'b': the source has F32 \[64\]"),
    ):
        write(tmp_path / "dst", tensors, overwrite=True)
        checkpoint.verify(tmp_path / "dst")
        with pytest.raises(fs.FormatError, match=why):
            checkpoint.verify(tmp_path / "dst", src)
    write(tmp_path / "dst", {"a.weight": right, "b": bias}, overwrite=True)
    energy = checkpoint.verify(tmp_path / "dst", src).tensors[0].kept_energy
    assert energy == pytest.approx((right.values**2).sum() / (w**2).sum(), rel=1e-6)
