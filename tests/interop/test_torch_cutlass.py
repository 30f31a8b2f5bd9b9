"""The semi-structured layout against torch's own conversion, which runs on the CPU too."""

import numpy as np
import pytest
import torch
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

import fastsparse as fs
import fastsparse.torch as fst

KINDS = {torch.float16: (32, 32), torch.bfloat16: (32, 32), torch.float32: (32, 16), torch.int8: (16, 64)}


def raw(tensor):
    return tensor.contiguous().view(torch.uint8)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("times", [(1, 1), (2, 2), (1, 5), (3, 4)])
@pytest.mark.parametrize("density", [0.1, 0.6, 1.0])
def test_the_bytes_are_those_of_torch(kind, times, density):
    shape = tuple(a * b for a, b in zip(KINDS[kind], times, strict=True))
    generator = torch.Generator().manual_seed(7)
    w = torch.randint(-9, 10, shape, generator=generator) * (torch.rand(shape, generator=generator) < density)
    w = fst.prune(w.to(kind), "1:2" if kind is torch.float32 else "2:4")
    if kind is not torch.int8:
        w[:, ::3] *= -1  # −0.0 is among it
    packed, meta = fst.to_cutlass_24(w)
    expected = sparse_semi_structured_from_dense_cutlass(w)
    assert (packed.dtype, meta.dtype) == (expected[0].dtype, expected[1].dtype)
    assert torch.equal(raw(packed), raw(expected[0]))
    assert torch.equal(meta, expected[1])
    assert torch.equal(fst.from_cutlass_24(*expected), w)


def test_every_group_of_four():
    """All eleven ways to keep at most two, beside each other."""
    groups = [[code >> i & 1 for i in range(4)] for code in range(16) if code.bit_count() <= 2]
    w = torch.tensor([groups[(i + j) % 11] for i in range(32) for j in range(8)], dtype=torch.float16).view(32, 32)
    w *= torch.arange(1, 1025).view(32, 32)
    packed, meta = fst.to_cutlass_24(w)
    expected = sparse_semi_structured_from_dense_cutlass(w)
    assert torch.equal(packed, expected[0])
    assert torch.equal(meta, expected[1])


def test_a_third_value_is_an_error():
    with pytest.raises(fs.FastSparseError, match="more non-zeros than 2 in every 4"):
        fst.to_cutlass_24(torch.from_numpy(np.ones((32, 32), np.float16)))
