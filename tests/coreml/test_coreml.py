"""Core ML without coremltools: masks as one stream, weight files, and its selection against the NumPy it is made of."""

import itertools
import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import same_bits

import fastsparse as fs
from fastsparse import _backend, coreml
from fastsparse.coreml import _coremltools_select

SHAPES = [(3, 16), (5, 13), (7,), (), (2, 3, 5), (4, 3, 2, 8), (0, 5), (3, 0), (1, 9), (64, 100)]


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.int8, np.uint8])
@pytest.mark.parametrize("shape", SHAPES)
def test_one_stream(backend, kind, shape):
    rng = np.random.default_rng(1)
    w = (rng.integers(1, 9, shape) * (rng.random(shape) < 0.5)).astype(kind)
    flat = coreml.to_flat(fs.pack(w))
    assert same_bits(flat.mask, np.packbits(w != 0, bitorder="little"))
    assert same_bits(flat.nonzero_data, w[w != 0])
    assert flat.shape == shape
    assert coreml.from_flat(*flat) == fs.pack(w)
    assert coreml.from_sparse_params(flat) == fs.pack(w)
    assert np.shares_memory(flat.mask, fs.pack(w).bitmask) is False


def test_nothing_is_copied_where_rows_start_on_a_byte(backend):
    s = fs.pack(np.eye(16, dtype=np.float32))
    assert np.shares_memory(coreml.to_flat(s).mask, s.bitmask)


@pytest.mark.parametrize(
    ("values", "mask", "shape", "why"),
    [
        ([1.0], [1, 0], (2, 3), "bits"),
        ([1.0], [], (2, 3), "bits"),
        ([1.0], [65], (2, 3), "padding"),
        ([1.0], [3], (2, 3), "keeps 2"),
        ([1.0], [[1]], (2, 3), "one dimension"),
        ([1.0], [1], (2**40, 2**40), ""),
        ([1.0], [1], (-1,), "shape"),
    ],
)
def test_contradictions(backend, values, mask, shape, why):
    with pytest.raises(fs.FormatError, match=why or None):
        coreml.from_flat(np.float32(values), np.array(mask, np.uint8), shape)


class TestWeightFiles:
    VECTOR = bytes.fromhex(
        "01000000 02000000" + 56 * "00" + "efbeadde 09000000 0200000000000000 8000000000000000 0500000000000000"
        + 32 * "00" + "8203"
    )  # fmt: skip

    def test_the_vector(self, tmp_path):
        path = tmp_path / "weight.bin"
        keep = np.array([0, 1, 0, 0, 0, 0, 0, 1, 1, 1, 0], bool)
        assert coreml.write_blobs(path, [fs.Bitmask.from_bool(keep)]) == [64]
        assert path.read_bytes() == self.VECTOR
        blob = coreml.read_blobs(path)[64]
        assert (blob.dtype, blob.size, blob.data.tolist()) == ("uint1", 11, [0x82, 3])
        assert blob.array().tolist() == keep.astype(int).tolist()

    def test_there_and_back(self, tmp_path):
        kinds = [np.float16, np.float32, np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32]
        kinds += [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]
        arrays = [np.arange(37).astype(kind) for kind in kinds]
        mask = fs.Bitmask.from_bool(np.arange(33).reshape(3, 11) % 3 == 0)
        offsets = coreml.write_blobs(tmp_path / "a", [*arrays, mask, np.zeros((0, 4), np.float16)])
        assert all(offset % 64 == 0 for offset in offsets)
        blobs = coreml.read_blobs(tmp_path / "a")
        assert list(blobs) == offsets
        for blob, array in zip(blobs.values(), arrays, strict=False):
            assert same_bits(blob.array(), array)
            assert not blob.array().flags.writeable
        assert coreml.write_blobs(tmp_path / "b", blobs.values()) == offsets
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]

    def test_an_existing_file_is_replaced_only_when_asked_to(self, tmp_path):
        (tmp_path / "x").write_text("mine")
        with pytest.raises(fs.FastSparseError, match="exists"):
            coreml.write_blobs(tmp_path / "x", [])
        with pytest.raises(fs.FastSparseError, match="blob 1: dtype float64 is not supported"):
            coreml.write_blobs(tmp_path / "x", [np.ones(3, "f"), np.ones(3)], overwrite=True)
        assert (tmp_path / "x").read_text() == "mine"
        coreml.write_blobs(tmp_path / "x", [], overwrite=True)
        assert coreml.read_blobs(tmp_path / "x") == {}

    def parts(self, **changed):
        fields = {"count": 1, "version": 2, "sentinel": 0xDEADBEEF, "code": 9, "bytes": 2, "at": 128, "padding": 5}
        fields.update(changed)
        fields["tail"] = fields.get("tail", b"\x82\x03")
        count, version, sentinel, code, length, at, padding, tail = fields.values()
        return struct.pack("<II56xIIQQQ32x", count, version, sentinel, code, length, at, padding) + tail

    @pytest.mark.parametrize(
        ("changed", "why"),
        [
            ({"count": 2}, "2 blobs are announced, the file ends after 1"),
            ({"count": 2**32 - 1}, "the file ends after 1"),
            ({"count": 0}, "66 bytes after the last blob"),
            ({"version": 1}, "version 1 is unknown"),
            ({"sentinel": 7}, "blob at 64: it begins with 0x7"),
            ({"code": 0}, "dtype 0 is unknown"),
            ({"code": 18}, "dtype 18 is unknown"),
            ({"bytes": 3}, "its 3 bytes end beyond the file"),
            ({"bytes": 2**64 - 1}, "end beyond the file"),
            ({"at": 192}, "its data is at 192"),
            ({"at": 0}, "its data is at 0"),
            ({"padding": 7}, "padding bits are set"),
            ({"padding": 8}, "no uint1"),
            ({"padding": 2**64 - 1}, "no uint1"),
            ({"bytes": 0}, "no uint1"),
            ({"code": 2, "padding": 0}, "no float32"),
            ({"code": 12, "padding": 5}, "no uint3"),
            ({"tail": bytes(99)}, "bytes after the last blob"),
        ],
    )  # fmt: skip
    def test_what_is_refused(self, tmp_path, changed, why):
        (tmp_path / "x").write_bytes(self.parts(**changed))
        with pytest.raises(fs.FormatError, match=why):
            coreml.read_blobs(tmp_path / "x")

    @pytest.mark.parametrize("kind", ["float16", "float32", "int8", "uint16", "bfloat16"])
    def test_words_that_mean_nothing_may_hold_anything(self, tmp_path, kind):
        """coremltools 7 left those after the offset uninitialised; the padding counts for parts of bytes only."""
        array = np.arange(37).astype(getattr(ml_dtypes, kind, kind))
        coreml.write_blobs(tmp_path / "x", [array])
        content = bytearray((tmp_path / "x").read_bytes())
        struct.pack_into("<5Q", content, 64 + 24, 11751492080, 6093881488, 2**64 - 1, 5, 7)
        (tmp_path / "x").write_bytes(content)
        assert np.array_equal(coreml.read_blobs(tmp_path / "x")[64].array(), array)

    def test_every_truncation_and_every_bit_is_survived(self, tmp_path):
        coreml.write_blobs(tmp_path / "x", [np.arange(9, dtype=np.float16), fs.Bitmask.from_bool(np.ones(11, bool))])
        whole = (tmp_path / "x").read_bytes()
        for length in range(len(whole)):
            (tmp_path / "y").write_bytes(whole[:length])
            with pytest.raises(fs.FormatError):
                coreml.read_blobs(tmp_path / "y")
        for bit in range(8 * len(whole)):
            broken = bytearray(whole)
            broken[bit // 8] ^= 1 << bit % 8
            (tmp_path / "y").write_bytes(broken)
            try:
                for blob in coreml.read_blobs(tmp_path / "y").values():
                    assert blob.array().size == blob.size <= 8 * len(whole)
            except fs.FormatError as error:
                assert str(tmp_path / "y") in str(error)  # noqa: PT017


def unpruned(w, keep):
    """What coremltools stores: of what is kept what is not zero."""
    return fs.pack(np.where(keep, w, 0).astype(w.dtype))


def numpy_norms(w, length, axis):
    """The norms of blocks as coremltools has NumPy compute them."""
    w = np.swapaxes(np.abs(w), 0, axis)
    w = np.pad(w, [(0, -len(w) % length)] + [(0, 0)] * (w.ndim - 1))
    w = w.reshape(-1, length, *w.shape[1:])
    return np.swapaxes(np.sqrt(np.sum(w * w, axis=1)), 0, axis)


@st.composite
def weights(draw):
    shape = tuple(draw(st.lists(st.integers(1, 12), min_size=2, max_size=4)))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    w = rng.standard_normal(shape) * draw(st.sampled_from([1e-4, 1, 300]))
    if draw(st.booleans()):
        w = np.round(w * 2) / 2
    return w.astype(draw(st.sampled_from([np.float32, np.float16])))


SHARES = st.one_of(st.sampled_from([0.0, 0.25, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0]), st.floats(0, 1))


class TestTheirSelection:
    """Each against the NumPy expression that defines it; `tests/interop` compares with coremltools itself."""

    @pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.4.0", reason="older percentiles round otherwise")
    @given(w=weights(), share=SHARES)
    def test_magnitude(self, backend, w, share):
        q = share * 100
        keep = np.abs(w) > np.percentile(np.abs(w), q) if q else w != 0
        assert _coremltools_select.by_magnitude(w, share) == unpruned(w, keep & (q != 100))

    @given(w=weights(), threshold=st.sampled_from([0.0, 1e-12, 0.1, 0.25, 0.5, 3.0]))
    def test_threshold(self, backend, w, threshold):
        assert _coremltools_select.by_threshold(w, threshold) == unpruned(w, ~(np.abs(w) <= threshold))

    @pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.4.0", reason="older percentiles round otherwise")
    @pytest.mark.filterwarnings("ignore::RuntimeWarning")
    @given(w=weights(), length=st.integers(1, 6), axis=st.sampled_from([0, 1]), share=SHARES)
    def test_blocks(self, backend, w, length, axis, share):
        each, q = (
            np.repeat(numpy_norms(w, length, axis), length, axis=axis).take(range(w.shape[axis]), axis),
            share * 100,
        )
        keep = ~(each <= np.percentile(each, q)) if q else w != 0
        assert _coremltools_select.by_block(w, share, length, axis) == unpruned(w, keep & (q != 100))

    @pytest.mark.filterwarnings("ignore::RuntimeWarning")
    @pytest.mark.parametrize("kind", [np.float32, np.float16])
    @pytest.mark.parametrize("shape", [(700, 300), (3, 700), (700, 3), (5, 300, 1, 1), (300, 5, 3), (6, 5000), (1, 40)])
    def test_norms(self, backend, shape, kind):
        """To the last bit, with subnormal squares and sums that overflow."""
        rng = np.random.default_rng(6)
        w = (rng.standard_normal(shape) * np.exp(rng.uniform(-9, 6, shape))).astype(kind)
        for axis in (0, 1):
            for length in (1, 2, 3, 4, 7, 8, 17, 130, 300):
                found = _backend.active.block_norms(w, length, axis)
                assert found.dtype == np.float32
                assert np.array_equal(found, numpy_norms(w, length, axis).astype(np.float32)), (axis, length)

    @given(w=weights(), share=st.integers(0, 8), of=st.integers(1, 8), axis=st.sampled_from([0, 1]))
    def test_n_m(self, backend, w, share, of, axis):
        """Ties of float16 stay in order; there are none for float32, whose order is not defined."""
        zeros = min(share, of)
        if w.dtype == np.float32:
            w = (np.random.default_rng(4).permutation(w.size) + 1).reshape(w.shape).astype(np.float32)
        last = np.moveaxis(w, axis, -1)
        groups = np.pad(np.abs(last), [(0, 0)] * (w.ndim - 1) + [(0, -last.shape[-1] % of)])
        groups = groups.reshape(*last.shape[:-1], -1, of)
        keep = np.argsort(np.argsort(groups, axis=-1, kind="stable"), axis=-1, kind="stable") >= zeros
        keep = keep.reshape(*last.shape[:-1], -1)[..., : last.shape[-1]]
        assert _coremltools_select.by_n_m(w, zeros, of, axis) == unpruned(w, np.moveaxis(keep, -1, axis))

    def test_places(self, backend):
        rng = np.random.default_rng(2)
        for values in (rng.standard_normal(300).astype("f"), rng.integers(0, 3, 77).astype(np.float16)):
            order = sorted(np.abs(values).tolist())
            for place, pair in enumerate(itertools.pairwise(order)):
                assert _coremltools_select._in_order(values, place, place)[0] == (order[place], order[place])
                found, rest = _coremltools_select._in_order(values, place, place + 1)
                assert found == pair
                assert rest.count == values.size - place - 1
                if pair[0] < pair[1]:
                    assert np.array_equal(rest.to_bool(), np.abs(values) >= pair[1])

    def test_special_values(self, backend):
        w = np.float32([[1, np.nan], [2, 3]])
        for call in (
            lambda: _coremltools_select.by_magnitude(w, 0.5),
            lambda: _coremltools_select.by_block(w, 0.5, 2, 0),
        ):
            with pytest.raises(fs.FastSparseError, match=r"NaN"):
                call()
        with pytest.raises(fs.FastSparseError, match=r"infinities leave the 90\.0+% percentile"):
            _coremltools_select.by_magnitude(np.float32([1, np.inf, np.inf, 2]), 0.9)
        # Norms that overflow leave nothing to compare: coremltools prunes nothing then.
        huge = np.full((4, 4), 300, np.float16)
        assert _coremltools_select.by_block(huge, 0.5, 2, 0) == fs.pack(huge)
