"""Masks and kept values against coremltools' pruning pass.

Where its rules differ from ours (docs/semantics.md), the counts are adjusted, so that both sides prune the same
weights: it cuts at a percentile, which takes `floor(q·(N − 1)) + 1` of N different values, and leaves the order of
ties undefined. Its mask is one stream of bits, not rows that start on a byte.
"""

import math

import numpy as np
import pytest
from coremltools.optimize._utils import SparseParamsIos16
from coremltools.optimize.coreml._quantization_passes import prune_weights

import fastsparse as fs

SHAPES = [(24, 40), (12, 24, 3, 3), (17, 23), (16, 8, 5)]


def flat_mask(packed: fs.BitmaskArray) -> np.ndarray:
    return np.packbits(packed.mask.to_bool(), bitorder="little")


def assert_same(packed: fs.BitmaskArray, peer: SparseParamsIos16) -> None:
    assert tuple(peer.shape) == packed.shape
    assert np.array_equal(flat_mask(packed), peer.mask)
    assert np.array_equal(packed.values, peer.nonzero_data)
    assert packed.values.dtype == peer.nonzero_data.dtype


def percentile_zeros(q: float, count: int) -> int:
    return math.floor(q * (count - 1)) + 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("q", [0.1, 0.5, 0.9])
def test_magnitude(distinct, shape, q):
    w = distinct(shape, np.dtype(np.float32))
    sparsity = percentile_zeros(q, w.size) / w.size
    assert_same(fs.compress(w, fs.Unstructured(sparsity)), prune_weights.compress_by_magnitude(w, q))


@pytest.mark.parametrize("q", [0.25, 0.5, 0.75])
def test_magnitude_of_float16(distinct, q):
    # 2145 − 1 is a multiple of 4: the percentile is one of the values and is not rounded in
    # float16.
    w = distinct((33, 65), np.dtype(np.float16))
    sparsity = percentile_zeros(q, w.size) / w.size
    assert_same(fs.compress(w, fs.Unstructured(sparsity)), prune_weights.compress_by_magnitude(w, q))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_threshold(distinct, shape, dtype):
    w = distinct(shape, np.dtype(dtype))
    for threshold in [0.0, 0.25, float(np.median(np.abs(w)))]:
        assert_same(fs.compress(w, fs.Threshold(threshold)), prune_weights.compress_by_threshold(w, threshold, 0.0))


@pytest.mark.parametrize(("zeros", "of"), [(2, 4), (1, 4), (3, 4), (4, 8), (3, 12)])
@pytest.mark.parametrize(("shape", "axis"), [((24, 48), 1), ((24, 48), 0), ((24, 48, 3, 3), 1), ((48, 24, 5), 0)])
def test_nm(distinct, zeros, of, shape, axis):
    """A convolution's groups run over the channels at one position of the kernel."""
    w = distinct(shape, np.dtype(np.float32))
    ours = fs.compress(w, fs.NM(zeros=zeros, of=of, axis=axis))
    assert_same(ours, prune_weights.compress_by_nm_sparsity(w, (zeros, of), axis))


def test_nm_remainder_is_kept_where_padding_takes_the_zeros(distinct):
    w = distinct((24, 42), np.dtype(np.float32))
    ours = fs.compress(w, fs.NM(zeros=2, of=4, axis=1, tail="keep"))
    assert_same(ours, prune_weights.compress_by_nm_sparsity(w, (2, 4), 1))


@pytest.mark.parametrize(("shape", "axis"), [((24, 40), 0), ((24, 40), 1), ((16, 24, 3, 3), 0), ((16, 24, 3), 1)])
@pytest.mark.parametrize("q", [0.3, 0.5, 0.8])
def test_blocks(shape, axis, q):
    w = np.random.default_rng(4).standard_normal(shape, dtype=np.float32)
    length = 4
    blocks = w.size // length
    # Each norm counts once for every weight of its block.
    zeros = math.floor(q * (w.size - 1)) // length + 1
    ours = fs.compress(w, fs.Block(length, zeros / blocks, axis=axis))
    assert_same(ours, prune_weights.compress_by_magnitude(w, q, block_size=length, dim=axis))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8, np.uint8])
@pytest.mark.parametrize("shape", [*SHAPES, (5, 1), (1, 129)])
def test_packing_of_what_is_already_pruned(shape, dtype):
    rng = np.random.default_rng(7)
    w = (rng.integers(1, 100, size=shape) * rng.integers(0, 2, size=shape)).astype(dtype)
    packed = fs.pack(w)
    peer = prune_weights._produce_sparse_param(w)
    assert_same(packed, peer)
    if math.prod(shape[1:]) % 8 == 0:
        assert np.array_equal(packed.bitmask.ravel(), peer.mask)


def test_what_we_pack_is_what_coremltools_unpacks(distinct):
    w = distinct((17, 23), np.dtype(np.float16))
    packed = fs.compress(w, "75%")
    dense = prune_weights.decompress(SparseParamsIos16(packed.values, flat_mask(packed), packed.shape))
    assert np.array_equal(dense, packed.to_dense())
