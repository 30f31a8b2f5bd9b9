"""What is measured: each kernel beside the peers that do the same job, the bytes it has to move, what it should reach.

Every peer's result is checked against ours. Where two weights are equally large at the cut, theirs may keep both, none
or the other one; blocks that differ in the last bit of a float32 sum may change places. float16 is measured where
coremltools does the same, which it does not for blocks: it sums their squares in float16.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np
import peers
from peers import Array, coreml, packbits, raw, torch

import fastsparse as fs

STANDARD = (4096, 11008)
DTYPES = {"f32": np.dtype(np.float32), "bf16": np.dtype(ml_dtypes.bfloat16), "f16": np.dtype(np.float16)}


@dataclass(frozen=True)
class Peer:
    """`check` is given our result and theirs."""

    name: str
    run: Callable[[], Any]
    check: Callable[[Any, Any], None]
    rounds: int = 2


@dataclass(frozen=True)
class Target:
    """At most `factor` times a probe (plus another side), or `factor` times as fast as the best peer of a name."""

    factor: float
    probe: str = ""
    plus: str = ""
    peer: str = ""

    def __str__(self) -> str:
        if not self.probe:
            return f"≥ {self.factor:g} × {self.peer or 'every peer'}"
        return f"≤ {self.factor:g} × {self.probe}" + (f" + {self.plus}" if self.plus else "")


@dataclass(frozen=True)
class Case:
    kernel: str
    detail: str
    dtype: str
    data: Array
    moved: int
    ours: Callable[[], Any]
    peers: list[Peer] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    beside: dict[str, Callable[[], Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.kernel} {self.detail} {self.dtype}".replace("  ", " ")


@lru_cache(maxsize=3)
def weights(shape: tuple[int, int], dtype: str) -> Array:
    w = np.random.default_rng(0).standard_normal(shape, dtype=np.float32) * np.float32(0.02)
    return w.astype(DTYPES[dtype], copy=False)


# Checks


def grouped(x: Array, of: int, axis: int) -> Array:
    """One group a row."""
    return x.reshape(-1, of) if axis == 1 else x.reshape(-1, of, x.shape[1]).swapaxes(1, 2).reshape(-1, of)


def assert_same_but_ties(w: Array, zeros: int, of: int, ours: Array, theirs: Array, axis: int = 1) -> None:
    """Masks that differ only where the magnitude is that of the cut of its group."""
    a, ours, theirs = (grouped(x, of, axis) for x in (peers.magnitude(w), ours, theirs))
    assert np.array_equal(np.count_nonzero(ours, axis=1), np.full(len(ours), of - zeros))
    apart = ours != theirs
    groups = np.flatnonzero(apart.any(axis=1))
    cut = np.partition(a[groups], zeros - 1, axis=1)[:, zeros - 1 : zeros]
    above = np.partition(a[groups], zeros, axis=1)[:, zeros : zeros + 1]
    assert np.all(~apart[groups] | (a[groups] == cut) | (a[groups] == above))
    # Only a tie can part them, or a percentile, which may drop one less than we do.
    assert np.all(np.count_nonzero(theirs[groups], axis=1) <= of - zeros + 1) or np.all(cut == above)


def assert_nearly_same(ours: Array, theirs: Array) -> None:
    assert np.mean(ours != theirs) < 1e-4


def unpacked(bits: Array, shape: tuple[int, int]) -> Array:
    return np.unpackbits(bits.reshape(-1), bitorder="little")[: shape[0] * shape[1]].view(np.bool_).reshape(shape)


def assert_same_parts(ours: fs.BitmaskArray, values: Array, bits: Array) -> None:
    assert np.array_equal(raw(ours.values), raw(values))
    assert np.array_equal(ours.bitmask.reshape(-1), bits.reshape(-1))


def same_dense(pruned: Array) -> Callable[[Any, Any], None]:
    def check(ours: Array, theirs: Any) -> None:
        dense = peers.untensor(theirs) if torch is not None and isinstance(theirs, torch.Tensor) else theirs
        assert np.array_equal(raw(ours), raw(pruned))
        assert np.array_equal(raw(dense).reshape(pruned.shape), raw(pruned))

    return check


def same_selection(w: Array, zeros: int, of: int, axis: int = 1) -> Callable[[Any, Any], None]:
    def check(ours: fs.Bitmask, theirs: Any) -> None:
        mask = theirs.numpy().astype(np.bool_) if torch is not None and isinstance(theirs, torch.Tensor) else theirs
        mask = mask if mask.dtype == np.bool_ else unpacked(mask, w.shape)
        assert_same_but_ties(w, zeros, of, ours.to_bool(), mask, axis)

    return check


def same_compressed(w: Array, same_mask: Callable[[Array, Array], None]) -> Callable[[Any, Any], None]:
    """Their values and mask belong together, and the mask is ours but for `same_mask`."""

    def check(ours: fs.BitmaskArray, theirs: tuple[Array, Array]) -> None:
        values, bits = theirs
        mask = unpacked(bits, w.shape)
        assert np.array_equal(raw(values), raw(w)[mask])
        assert np.array_equal(raw(ours.values), raw(w)[ours.mask.to_bool()])
        same_mask(ours.mask.to_bool(), mask)

    return check


def from_coreml(check: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    return lambda ours, theirs: check(ours, (theirs.nonzero_data, theirs.mask))


# Selection


def select(w: Array, dtype: str, sparsity: int) -> Case:
    zeros = round(sparsity / 100 * w.size)
    check = same_selection(w, zeros, w.size)
    found = [Peer("NumPy partition", lambda: packbits(peers.np_mask(w, zeros)), check)]
    if dtype != "f32":
        found.append(Peer("NumPy bincount", lambda: packbits(peers.np_bincount_mask(w, zeros)), check))
    if torch is not None and sparsity == 50:
        t = peers.tensor(w)
        found.append(Peer("torch kthvalue", lambda: peers.torch_mask(t, zeros), check))
        if dtype == "f32":
            prune = Peer("torch l1_unstructured", lambda: peers.torch_l1_unstructured(t, zeros), check)
            found.append(prune)
    targets = [Target(1.6, probe="read"), Target(25, peer="NumPy")]
    return _selecting(w, "select", f"{sparsity} %", dtype, f"{sparsity}%", found, targets)


def per_row(w: Array, dtype: str) -> Case:
    zeros = round(0.5 * w.shape[1])
    check = same_selection(w, zeros, w.shape[1])
    found = [Peer("NumPy partition", lambda: packbits(peers.np_mask(w, zeros, per_row=True)), check)]
    if torch is not None:
        t = peers.tensor(w)
        found.append(Peer("torch kthvalue", lambda: peers.torch_mask(t, zeros, per_row=True), check))
    targets = [Target(3, probe="read"), Target(15, peer="NumPy")]
    return _selecting(w, "select per row", "50 %", dtype, "50%/row", found, targets)


def threshold(w: Array, dtype: str) -> Case:
    value = float(np.float32(0.0135))
    cut = np.abs(w.dtype.type(value)) if dtype == "f32" else raw(np.array([value], w.dtype))[0]

    def check(ours: fs.Bitmask, theirs: Array) -> None:
        # A 16-bit threshold is rounded: ours compares with the value itself.
        apart = ours.to_bool() != unpacked(theirs, w.shape)
        assert np.all(peers.magnitude(w)[apart] == cut)

    found = [Peer("NumPy >", lambda: packbits(peers.magnitude(w) > cut), check)]
    targets = [Target(1.6, probe="read")]
    return _selecting(w, "threshold", "50 %", dtype, fs.Threshold(value), found, targets)


def groups(w: Array, dtype: str, zeros: int, of: int, reach: list[Target]) -> Case:
    check = same_selection(w, zeros, of)
    found = [Peer("NumPy partition", lambda: packbits(peers.np_group_mask(w, zeros, of)), check)]
    if (zeros, of) == (8, 16):
        found.append(Peer("NumPy argpartition", lambda: packbits(peers.np_argpartition_mask(w, zeros, of)), check))
    if of == 4:
        found.append(Peer("NumPy sort", lambda: packbits(peers.np_sort_mask(w, zeros, of)), check))
    if torch is not None and of == 4:
        t = peers.tensor(w)
        found.append(Peer("torch topk", lambda: peers.torch_topk_mask(t, of - zeros, of), check))
    pattern = fs.NM(zeros=zeros, of=of)
    if (zeros, of) == (56, 64):
        return _selecting(w, "top-k", "8 of 64", dtype, fs.TopK(8, of=64), found, reach)
    return _selecting(w, "n:m", f"{zeros}:{of}", dtype, pattern, found, reach)


def columns(w: Array, dtype: str) -> Case:
    check = same_selection(w, 2, 4, axis=0)
    found = [Peer("NumPy partition", lambda: packbits(peers.np_group_mask(w, 2, 4, axis=0)), check)]
    targets = [Target(1.6, probe="read"), Target(15, peer="NumPy")]
    return _selecting(w, "n:m", "2:4 down the columns", dtype, fs.NM(zeros=2, of=4, axis=0), found, targets)


def blocks(w: Array, dtype: str, tall: int, wide: int) -> Case:
    def check(ours: fs.Bitmask, theirs: Array) -> None:
        assert_nearly_same(ours.to_bool(), unpacked(theirs, w.shape))

    found = [Peer("NumPy", lambda: packbits(peers.np_block_mask(w, tall, wide, 0.75)), check)]
    targets = [Target(1.6, probe="read")]
    return _selecting(w, "block", f"75 %, {tall}×{wide}", dtype, fs.Block((tall, wide), 0.75), found, targets)


def _selecting(
    w: Array, kernel: str, detail: str, dtype: str, pattern: Any, found: list[Peer], targets: list[Target]
) -> Case:
    return Case(kernel, detail, dtype, w, w.nbytes + w.size // 8, lambda: fs.select(w, pattern), found, targets)


# Packing


def pack(w: Array, dtype: str, sparsity: int) -> Case:
    mask = fs.select(w, f"{sparsity}%")
    keep = mask.to_bool()
    found = [
        Peer(
            "NumPy w[m] + packbits",
            lambda: peers.np_pack(w, keep),
            lambda ours, theirs: assert_same_parts(ours, *theirs),
        )
    ]
    moved = w.nbytes + w.size // 8 + 2 * w.itemsize * mask.count
    targets = [Target(1, probe="copy"), Target(30)]
    return Case("pack", f"{sparsity} %, given a mask", dtype, w, moved, lambda: fs.pack(w, mask), found, targets)


def pack_nonzero(w: Array, dtype: str) -> Case:
    pruned = fs.prune(w, "50%")
    kept = int(np.count_nonzero(raw(pruned)))

    def same_as_theirs(ours: fs.BitmaskArray, theirs: Any) -> None:
        values, bits, offsets = (part.contiguous() for part in theirs)
        assert_same_parts(ours, peers.untensor(values), bits.numpy())
        assert np.array_equal(ours.row_offsets[:-1], offsets.numpy())

    def same_as_csr(ours: fs.BitmaskArray, theirs: Any) -> None:
        assert np.array_equal(raw(ours.values), raw(theirs.data))
        assert np.array_equal(ours.row_offsets, theirs.indptr)

    found = [
        Peer(
            "NumPy w[m] + packbits",
            lambda: peers.np_pack(pruned, raw(pruned) != 0),
            lambda ours, theirs: assert_same_parts(ours, *theirs),
        )
    ]
    if peers.bitmask is not None and dtype != "f16":
        t = peers.tensor(pruned)
        found.append(Peer("compressed-tensors", lambda: peers.bitmask.bitmask_compress(t), same_as_theirs))
    if coreml is not None and dtype != "bf16":
        same_as_coreml = from_coreml(lambda ours, theirs: assert_same_parts(ours, *theirs))
        found.append(Peer("coremltools", lambda: coreml._produce_sparse_param(pruned), same_as_coreml))
    if peers.sparse is not None and dtype == "f32":
        found.append(Peer("scipy csr_array", lambda: peers.sparse.csr_array(pruned), same_as_csr))
    moved = w.nbytes + w.size // 8 + 2 * w.itemsize * kept
    targets = [Target(1, probe="copy"), Target(30)]
    return Case("pack", "50 %, of zeros", dtype, pruned, moved, lambda: fs.pack(pruned), found, targets)


def compress(w: Array, dtype: str, sparsity: int) -> Case:
    zeros = round(sparsity / 100 * w.size)
    check = same_compressed(w, lambda a, b: assert_same_but_ties(w, zeros, w.size, a, b))
    found = [
        Peer("NumPy partition, w[m], packbits", lambda: peers.np_pack(w, peers.np_mask(w, zeros)), check),
    ]
    if torch is not None and sparsity == 50:
        t = peers.tensor(w)

        def select_values() -> tuple[Any, Any]:
            mask = peers.torch_mask(t, zeros)
            return t[mask], mask

        def same(ours: fs.BitmaskArray, theirs: tuple[Any, Any]) -> None:
            check(ours, (peers.untensor(theirs[0]), packbits(theirs[1].numpy())))

        found.append(Peer("torch kthvalue, w[m]", select_values, same, 2))
    if coreml is not None and dtype != "bf16":
        peer = Peer("coremltools", lambda: coreml.compress_by_magnitude(w, sparsity / 100), from_coreml(check), 2)
        found.append(peer)
    targets = [Target(3, probe="read", plus="pack"), Target(60, peer="coremltools")]
    return _compressing(w, f"{sparsity} %", dtype, f"{sparsity}%", w.size - zeros, found, targets)


def compress_groups(w: Array, dtype: str) -> Case:
    check = same_compressed(w, lambda a, b: assert_same_but_ties(w, 2, 4, a, b))
    found = [
        Peer("NumPy sort, w[m], packbits", lambda: peers.np_pack(w, peers.np_sort_mask(w, 2, 4)), check),
    ]
    if coreml is not None and dtype != "bf16":
        found.append(Peer("coremltools", lambda: coreml.compress_by_nm_sparsity(w, (2, 4), 1), from_coreml(check), 2))
    targets = [Target(3, probe="read", plus="pack"), Target(50)]
    return _compressing(w, "2:4", dtype, fs.NM(zeros=2, of=4), w.size // 2, found, targets)


def compress_blocks(w: Array, dtype: str, tall: int, wide: int) -> Case:
    check = same_compressed(w, assert_nearly_same)
    axis, length = (0, tall) if wide == 1 else (1, wide)
    found = []
    if coreml is not None and dtype != "bf16":

        def theirs() -> Any:
            return coreml.compress_by_magnitude(w, 0.75, block_size=length, dim=axis)

        found.append(Peer("coremltools", theirs, from_coreml(check), 2))
    targets = [Target(3, probe="read", plus="pack"), Target(50, peer="coremltools")]
    pattern = fs.Block((tall, wide), 0.75)
    return _compressing(w, f"75 %, {tall}×{wide}", dtype, pattern, w.size // 4, found, targets)


def _compressing(
    w: Array, detail: str, dtype: str, pattern: Any, kept: int, found: list[Peer], targets: list[Target]
) -> Case:
    mask = fs.select(w, pattern)
    moved = w.nbytes + w.size // 8 + 2 * w.itemsize * kept
    packing = {"pack": lambda: fs.pack(w, mask)}
    return Case("compress", detail, dtype, w, moved, lambda: fs.compress(w, pattern), found, targets, packing)


def unpack(w: Array, dtype: str, sparsity: int, fresh: bool) -> Case:
    s = fs.compress(w, f"{sparsity}%")
    pruned = fs.prune(w, f"{sparsity}%")
    values, bits = np.array(s.values), np.array(s.bitmask)
    out, other = np.zeros_like(w), np.zeros_like(raw(w))
    check = same_dense(pruned)

    def numpy_way() -> Array:
        return peers.np_unpack(raw(values), bits, np.empty_like(other) if fresh else other)

    found = [Peer("NumPy unpackbits, out[m]", numpy_way, check)]
    if peers.bitmask is not None and dtype != "f16":
        v, b = peers.tensor(values), torch.from_numpy(bits)

        def theirs() -> Any:
            return peers.bitmask.bitmask_decompress(v, b, torch.Size(w.shape))

        found.append(Peer("compressed-tensors", theirs, check))
    if coreml is not None and dtype != "bf16":
        from coremltools.optimize._utils import SparseParamsIos16

        parts = SparseParamsIos16(values, bits.reshape(-1), w.shape)
        found.append(Peer("coremltools", lambda: coreml.decompress(parts), check))
    if peers.sparse is not None and dtype == "f32":
        csr = peers.sparse.csr_array(pruned)
        dense = pruned.copy()
        found.append(Peer("scipy toarray", lambda: csr.toarray(out=None if fresh else dense), check))
    moved = s.values.nbytes + w.size // 8 + w.nbytes
    if fresh:
        return Case("unpack", f"{sparsity} %, fresh", dtype, w, moved, s.to_dense, found, [Target(5, peer="NumPy")])
    targets = [Target(0.5 if sparsity == 90 else 0.6, probe="copy"), Target(30, peer="NumPy")]
    return Case("unpack", f"{sparsity} %, out=", dtype, w, moved, lambda: s.to_dense(out=out), found, targets)


NM_REACH = [
    (2, 4, [Target(1.3, probe="read"), Target(50)]),
    (4, 8, [Target(2.5, probe="read"), Target(15, peer="NumPy")]),
    (8, 16, [Target(2.5, probe="read"), Target(15, peer="NumPy")]),
    (14, 16, [Target(2.5, probe="read"), Target(15, peer="NumPy")]),
    (16, 32, [Target(15, peer="NumPy")]),
    (32, 64, [Target(6, probe="read"), Target(15, peer="NumPy")]),
    (56, 64, [Target(15, peer="NumPy")]),
]


def cases(shape: tuple[int, int] = STANDARD) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Name and maker of each: the weights are made when the case is."""
    makers: list[tuple[str, Callable[..., Case], tuple[Any, ...], str]] = []
    every, most = "f32 bf16", "f32 bf16 f16"
    makers += [(f"select-{p}", select, (p,), every) for p in (50, 75, 90)]
    makers += [("row", per_row, (), every), ("threshold", threshold, (), every)]
    makers += [(f"nm-{zeros}:{of}", groups, (zeros, of, reach), every) for zeros, of, reach in NM_REACH]
    makers += [("nm-columns", columns, (), every)]
    makers += [(f"block-{t}x{w}", blocks, (t, w), every) for t, w in ((4, 1), (1, 16), (16, 16))]
    makers += [(f"pack-{p}", pack, (p,), every) for p in (50, 75, 90)]
    makers += [("pack-nonzero", pack_nonzero, (), most)]
    makers += [(f"compress-{p}", compress, (p,), most if p == 50 else every) for p in (50, 75, 90)]
    makers += [("compress-2:4", compress_groups, (), most)]
    makers += [(f"compress-block-{t}x{w}", compress_blocks, (t, w), every) for t, w in ((4, 1), (1, 16))]
    makers += [(f"unpack-{p}", unpack, (p, False), most if p == 50 else every) for p in (50, 75, 90)]
    makers += [(f"unpack-fresh-{p}", unpack, (p, True), every) for p in (50, 90)]

    def maker(make: Callable[..., Case], arguments: tuple[Any, ...], dtype: str) -> Callable[[], Case]:
        return lambda: make(weights(shape, dtype), dtype, *arguments)

    for name, make, arguments, dtypes in makers:
        for dtype in dtypes.split():
            yield f"{name}-{dtype}", maker(make, arguments, dtype)
