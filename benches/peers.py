"""How NumPy, torch, coremltools, compressed-tensors and scipy do the same jobs, each the fastest way it has.

What is not installed is None here, and the report says which peers were skipped. Results differ from ours where the
comment says so: NumPy, torch and coremltools cut at a value, so ties are kept or dropped together.
"""

import importlib
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]


def _optional(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


torch: Any = _optional("torch")
sparse: Any = _optional("scipy.sparse")
bitmask: Any = _optional("compressed_tensors.compressors.sparse_compressors.sparse_bitmask")
_passes: Any = _optional("coremltools.optimize.coreml._quantization_passes")
coreml: Any = _passes and _passes.prune_weights
MISSING = [
    name
    for name, module in [
        ("torch", torch),
        ("scipy", sparse),
        ("compressed-tensors 0.14.0.1", bitmask),
        ("coremltools", coreml),
    ]
    if module is None
]


def raw(w: Array) -> Array:
    return w.view(f"u{w.itemsize}")


def magnitude(w: Array) -> Array:
    """What NumPy can rank fast. It has no vectorised sort of 16-bit floats, but one of their bits."""
    return np.abs(w) if w.dtype == np.float32 else raw(w) & np.uint16(0x7FFF)


def packbits(mask: Array) -> Array:
    return np.packbits(mask, axis=-1, bitorder="little")


# NumPy


def np_mask(w: Array, zeros: int, per_row: bool = False) -> Array:
    a = magnitude(w)
    if per_row:
        cut: Array = np.partition(a, zeros - 1, axis=1)[:, zeros - 1 : zeros]
    else:
        cut = np.partition(a, zeros - 1, axis=None)[zeros - 1]
    mask: Array = a > cut
    return mask


def np_bincount_mask(w: Array, zeros: int) -> Array:
    a: Array = magnitude(w)
    return a > np.searchsorted(np.cumsum(np.bincount(a.reshape(-1))), zeros)


def np_group_mask(w: Array, zeros: int, of: int, axis: int = 1) -> Array:
    rows, cols = w.shape
    a = magnitude(w).reshape((rows, cols // of, of) if axis == 1 else (rows // of, of, cols))
    along = 2 if axis == 1 else 1
    cut = np.take(np.partition(a, zeros - 1, axis=along), [zeros - 1], axis=along)
    return (a > cut).reshape(w.shape)


def np_sort_mask(w: Array, zeros: int, of: int) -> Array:
    a = magnitude(w).reshape(-1, of)
    return (a > np.sort(a, axis=1)[:, zeros - 1 : zeros]).reshape(w.shape)


def np_argpartition_mask(w: Array, zeros: int, of: int) -> Array:
    a = magnitude(w).reshape(-1, of)
    mask = np.ones(a.shape, np.bool_)
    np.put_along_axis(mask, np.argpartition(a, zeros - 1, axis=1)[:, :zeros], False, axis=1)
    return mask.reshape(w.shape)


def np_block_mask(w: Array, tall: int, wide: int, sparsity: float) -> Array:
    """Ranks by float32 sums: blocks that are nearly equal may change places with ours."""
    tiles = w.astype(np.float32, copy=False).reshape(w.shape[0] // tall, tall, w.shape[1] // wide, wide)
    norms = np.einsum("ihjw,ihjw->ij", tiles, tiles)
    zeros = round(sparsity * norms.size)
    keep = norms > np.partition(norms, zeros - 1, axis=None)[zeros - 1]
    return np.repeat(np.repeat(keep, tall, axis=0), wide, axis=1)


def np_pack(w: Array, mask: Array) -> tuple[Array, Array]:
    return raw(w)[mask], packbits(mask)


def np_unpack(values: Array, bits: Array, out: Array) -> Array:
    out[...] = 0
    out[np.unpackbits(bits, axis=-1, bitorder="little").view(np.bool_)] = values
    return out


# torch, whose masks are bytes


def tensor(w: Array) -> Any:
    if w.dtype in (np.float32, np.float16):
        return torch.from_numpy(w)
    return torch.from_numpy(w.view(np.int16)).view(torch.bfloat16)


def untensor(t: Any) -> Array:
    array: Array = t.numpy() if t.dtype != torch.bfloat16 else t.view(torch.int16).numpy().view(np.uint16)
    return array


def torch_mask(t: Any, zeros: int, per_row: bool = False) -> Any:
    a = t.abs()
    if per_row:
        return a > a.kthvalue(zeros, dim=1, keepdim=True).values
    return a > a.view(-1).kthvalue(zeros).values


def torch_topk_mask(t: Any, keep: int, of: int) -> Any:
    a = t.abs().view(-1, of)
    kept = a.topk(keep, dim=1, sorted=False).indices
    return torch.zeros(a.shape, dtype=torch.bool).scatter_(1, kept, True).view(t.shape)


def torch_l1_unstructured(t: Any, zeros: int) -> Any:
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(t, requires_grad=False)
    prune: Any = importlib.import_module("torch.nn.utils.prune")
    return prune.l1_unstructured(module, "weight", amount=zeros).weight_mask
