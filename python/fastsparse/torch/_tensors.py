"""Tensors cross as they lie: NumPy sees the same memory, under a dtype of `ml_dtypes` where it has none of its own."""

from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import fastsparse as fs
from fastsparse import _backend, cutlass
from fastsparse._errors import FastSparseError

__all__ = [
    "apply_mask",
    "as_array",
    "as_tensor",
    "compress",
    "from_cutlass_24",
    "has_memory",
    "linear",
    "pack",
    "prune",
    "select",
    "to_cutlass_24",
    "unpack",
]

# torch's dtypes that NumPy has only as ml_dtypes, and the dtype of the same size under which their
# bits cross.
_BITS = {
    torch.bfloat16: (torch.int16, np.dtype(ml_dtypes.bfloat16)),
    torch.float8_e4m3fn: (torch.uint8, np.dtype(ml_dtypes.float8_e4m3fn)),
    torch.float8_e5m2: (torch.uint8, np.dtype(ml_dtypes.float8_e5m2)),
}
_TENSORS = {array: (np.dtype(str(bits)[6:]), tensor) for tensor, (bits, array) in _BITS.items()}

# Capsules of DLPack cross in a third of the time. What they do not know goes the long way, which says what is wrong.
_CAPSULES = hasattr(_backend.active, "from_dlpack")
if _CAPSULES:
    _array_of, _to_capsule = _backend.active.from_dlpack, _backend.active.to_dlpack
_capsule_of, _tensor_of = torch._C._to_dlpack, torch._C._from_dlpack
_NO_CAPSULE = (BufferError, RuntimeError)
_PLAIN = (Tensor, torch.nn.Parameter)


def as_array(tensor: Tensor, name: str = "tensor") -> NDArray[Any]:
    """A tensor as an array over the same memory; it has no gradient.

    Parameters
    ----------
    tensor : Tensor
        On the CPU, of any shape and strides.
    name : str
        What a message calls it.

    Raises
    ------
    FastSparseError
        If it is no tensor, on another device, not strided, of a dtype that NumPy and `ml_dtypes` lack, or of a subclass
        that keeps its numbers in another form, such as those of torchao and DTensor.

    Examples
    --------
    >>> import torch
    >>> as_array(torch.tensor([1.0, 2.5], dtype=torch.bfloat16))
    array([1, 2.5], dtype=bfloat16)
    """
    if _CAPSULES and type(tensor) in _PLAIN and not tensor.is_neg():
        try:
            return _array_of(_capsule_of(tensor))
        except _NO_CAPSULE:
            pass
    if not isinstance(tensor, Tensor):
        raise FastSparseError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if not tensor.is_cpu:
        raise FastSparseError(f"{name}: expected a tensor on the CPU, got one on {tensor.device}; move it with .cpu()")
    if tensor.layout is not torch.strided:
        raise FastSparseError(f"{name}: expected a strided tensor, got {tensor.layout}; make it .to_dense()")
    if tensor.requires_grad:
        tensor = tensor.detach()
    try:
        kinds = _BITS.get(tensor.dtype)
        return tensor.numpy() if kinds is None else tensor.view(kinds[0]).numpy().view(kinds[1])  # type: ignore[no-any-return]
    except Exception as error:
        if not has_memory(tensor):
            hint = "make it a plain tensor first, for example with .dequantize() or .full_tensor()"
            raise FastSparseError(f"{name}: a {type(tensor).__name__} has no numbers in memory; {hint}") from error
        if isinstance(error, TypeError):
            raise FastSparseError(f"{name}: dtype {tensor.dtype} has no counterpart in NumPy") from None
        raise


def has_memory(tensor: Tensor) -> bool:
    """Whether a tensor is its numbers, and no subclass that computes in a way of its own."""
    return type(tensor).__torch_dispatch__ is torch._C._disabled_torch_dispatch_impl


def as_tensor(array: NDArray[Any] | fs.Bitmask) -> Tensor:
    """A writeable array as a tensor over the same memory; a mask or what is read-only as a tensor of its own.

    Parameters
    ----------
    array : ndarray or Bitmask
        A mask becomes a bool tensor, True where it keeps.

    Examples
    --------
    >>> import torch
    >>> as_tensor(select(torch.tensor([0.1, -3.0, 2.0, 0.2]), "50%"))
    tensor([False,  True,  True, False])
    """
    if isinstance(array, fs.Bitmask):
        array = array.to_bool()
    if _CAPSULES:
        try:
            return _tensor_of(_to_capsule(array))
        except _NO_CAPSULE:
            pass
    if not array.flags.writeable:
        array = array.copy()
    kinds = _TENSORS.get(array.dtype)
    return torch.from_numpy(array) if kinds is None else torch.from_numpy(array.view(kinds[0])).view(kinds[1])


def select(
    w: Tensor,
    pattern: str | fs.Pattern,
    *,
    scores: Tensor | None = None,
    column_scale: Tensor | None = None,
    threads: int | None = None,
) -> fs.Bitmask:
    """`fs.select` for tensors; `as_tensor` makes a bool tensor of the result.

    Examples
    --------
    >>> import torch
    >>> select(torch.tensor([0.1, -3.0, 2.0, 0.2]), "50%")
    <Bitmask 4: 2 kept, 50.0 % sparse>
    """
    extra = _optional(scores, "scores"), _optional(column_scale, "column_scale")
    return fs.select(as_array(w, "w"), pattern, scores=extra[0], column_scale=extra[1], threads=threads)


def apply_mask(w: Tensor, mask: fs.Bitmask | Tensor, *, out: Tensor | None = None) -> Tensor:
    """`fs.apply_mask` for tensors. No gradient passes through: with one to lose, it raises.

    Examples
    --------
    >>> import torch
    >>> apply_mask(torch.tensor([5, 6, 7], dtype=torch.int8), torch.tensor([True, False, True]))
    tensor([5, 0, 7], dtype=torch.int8)
    """
    _no_gradient(w=w, out=out)
    dense = fs.apply_mask(as_array(w, "w"), _mask(mask), out=_optional(out, "out"))
    return as_tensor(dense) if out is None else out


def prune(
    w: Tensor,
    pattern: str | fs.Pattern,
    *,
    out: Tensor | None = None,
    scores: Tensor | None = None,
    column_scale: Tensor | None = None,
    threads: int | None = None,
) -> Tensor:
    """`fs.prune` for tensors. No gradient passes through: with one to lose, it raises.

    Examples
    --------
    >>> import torch
    >>> layer = torch.nn.Linear(8, 4)
    >>> with torch.no_grad():
    ...     _ = prune(layer.weight, "2:4", out=layer.weight)
    >>> int((layer.weight != 0).sum())
    16
    """
    _no_gradient(w=w, out=out)
    dense = fs.prune(
        as_array(w, "w"),
        pattern,
        out=_optional(out, "out"),
        scores=_optional(scores, "scores"),
        column_scale=_optional(column_scale, "column_scale"),
        threads=threads,
    )
    return as_tensor(dense) if out is None else out


def pack(w: Tensor, mask: fs.Bitmask | Tensor | None = None) -> fs.BitmaskArray:
    """`fs.pack` for tensors.

    Examples
    --------
    >>> import torch
    >>> pack(torch.tensor([[0, 7, 0, 0]], dtype=torch.bfloat16)).values
    array([7], dtype=bfloat16)
    """
    return fs.pack(as_array(w, "w"), None if mask is None else _mask(mask))


def compress(
    w: Tensor,
    pattern: str | fs.Pattern,
    *,
    scores: Tensor | None = None,
    column_scale: Tensor | None = None,
    threads: int | None = None,
) -> fs.BitmaskArray:
    """`fs.compress` for tensors.

    Examples
    --------
    >>> import torch
    >>> compress(torch.tensor([[0.1, -3.0, 2.0, 0.2]]), "2:4").values
    array([-3.,  2.], dtype=float32)
    """
    extra = _optional(scores, "scores"), _optional(column_scale, "column_scale")
    return fs.compress(as_array(w, "w"), pattern, scores=extra[0], column_scale=extra[1], threads=threads)


def unpack(s: fs.BitmaskArray | fs.QuantizedArray, out: Tensor | None = None) -> Tensor:
    """The dense tensor.

    Examples
    --------
    >>> import torch
    >>> unpack(pack(torch.tensor([0.0, 3.0])))
    tensor([0., 3.])
    """
    _no_gradient(out=out)
    dense = fs.unpack(s, _optional(out, "out"))
    return as_tensor(dense) if out is None else out


def linear(x: Tensor, s: fs.BitmaskArray | fs.QuantizedArray, bias: Tensor | None = None) -> Tensor:
    """`fs.linear` for tensors. No gradient passes through: with one to lose, it raises; `SparseLinear` has gradients.

    Examples
    --------
    >>> import torch
    >>> linear(torch.ones(1, 4), compress(torch.tensor([[0.1, -3.0, 2.0, 0.2]]), "2:4"))
    tensor([[-1.]])
    """
    _no_gradient(x=x, bias=bias)
    return as_tensor(fs.linear(as_array(x, "x"), s, _optional(bias, "bias")))


def to_cutlass_24(w: Tensor) -> tuple[Tensor, Tensor]:
    """`fastsparse.cutlass.to_cutlass_24` for tensors: the values and the metadata of a 2:4 matrix.

    The bytes are those of torch's own conversion, which drops the third and fourth non-zero of a group; here they are
    an error.

    Examples
    --------
    >>> import torch
    >>> packed, meta = to_cutlass_24(prune(torch.randn(32, 64, dtype=torch.float16), "2:4"))
    >>> packed.shape, meta.shape
    (torch.Size([32, 32]), torch.Size([32, 4]))
    """
    packed, meta = cutlass.to_cutlass_24(as_array(w, "w"))
    return as_tensor(packed), as_tensor(meta)


def from_cutlass_24(packed: Tensor, meta: Tensor) -> Tensor:
    """`fastsparse.cutlass.from_cutlass_24` for tensors: the dense matrix.

    Examples
    --------
    >>> import torch
    >>> w = prune(torch.randn(32, 64, dtype=torch.float16), "2:4")
    >>> torch.equal(from_cutlass_24(*to_cutlass_24(w)), w)
    True
    """
    return as_tensor(cutlass.from_cutlass_24(as_array(packed, "packed"), as_array(meta, "meta")))


def _optional(tensor: Tensor | None, name: str) -> NDArray[Any] | None:
    return None if tensor is None else as_array(tensor, name)


def _mask(mask: fs.Bitmask | Tensor) -> fs.Bitmask | NDArray[Any]:
    return mask if isinstance(mask, fs.Bitmask) else as_array(mask, "mask")


def _no_gradient(**tensors: Tensor | None) -> None:
    """An error where a gradient would be lost in silence."""
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor) and tensor.requires_grad and torch.is_grad_enabled():
            hint = "detach() it, or call this under torch.no_grad()"
            raise FastSparseError(f"{name}: it requires grad, which does not pass through here; {hint}")
