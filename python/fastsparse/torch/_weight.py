"""The dense weight of a packed layer, for code that looks at it: a tensor that is unpacked when somebody computes."""

import warnings
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fastsparse._errors import FastSparseError

__all__ = ["DenseWeight", "Unpacking", "read_only"]

# What looks at memory goes past torch's dispatcher.
_LOOKS_AT_MEMORY = (
    Tensor.__array__,
    Tensor.__deepcopy__,
    Tensor.__dlpack__,
    Tensor.__format__,
    Tensor.__reduce_ex__,
    Tensor.__repr__,
    Tensor.data_ptr,
    Tensor.numpy,
    Tensor.storage,
    Tensor.tolist,
    Tensor.untyped_storage,
)
_SETS_GRADIENT = (Tensor.requires_grad_, Tensor.requires_grad.__set__)


class _Source(Protocol):
    """What has a dense form."""

    def unpack(self) -> Tensor:
        """The dense form."""


class DenseWeight(Tensor):
    """A packed matrix as a read-only dense tensor.

    Shape, dtype and device cost nothing. Whatever computes with it gets it unpacked, and the memory is given back after
    that; views of it are read-only too. From the second time on a warning names the layer. Because it takes part in
    `__torch_function__`, the fused paths of torch's transformer layers, which compute with dense weights, step back.
    """

    _source: "_Source | Tensor"

    @staticmethod
    def __new__(cls, source: "_Source | Tensor", like: Tensor) -> "DenseWeight":
        """Of the shape, strides and dtype of `like`, whose memory is not looked at."""
        with torch.inference_mode(False):  # views of one that inference mode has made are refused outside
            made = Tensor._make_wrapper_subclass(
                cls,
                like.shape,
                strides=like.stride(),
                storage_offset=like.storage_offset(),
                dtype=like.dtype,
                device="cpu",
            )
        made._source = source
        return made  # type: ignore[no-any-return]

    @classmethod
    def of(cls, unpack: Callable[[], Tensor], like: Tensor, layer: str) -> "DenseWeight":
        """The weight of a layer, `layer` by name; `unpack` makes it dense."""
        return cls(_Whole(unpack, Unpacking(layer, tuple(like.shape))), like)

    def _unpacked(self) -> Tensor:
        return self._source if isinstance(self._source, Tensor) else self._source.unpack()

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Every function of torch on such a tensor."""
        kwargs = kwargs or {}
        if func == Tensor.data.__set__ or (func in _SETS_GRADIENT and all((*args[1:], *kwargs.values()))):
            raise read_only()
        with torch._C.DisableTorchFunctionSubclass():
            if func in _LOOKS_AT_MEMORY:
                result = func(args[0]._unpacked(), *args[1:], **kwargs)
                if func is Tensor.numpy:
                    result.flags.writeable = False
                return result
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Every operator on such a tensor."""
        kwargs = kwargs or {}
        for at, argument in enumerate(func._schema.arguments if func._schema.is_mutable else ()):
            given = args[at] if at < len(args) else kwargs.get(argument.name)
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written and any(isinstance(leaf, cls) for leaf in pytree.tree_leaves(given)):
                raise read_only()
        if func is torch.ops.aten.detach.default:
            return cls(args[0]._source, args[0])
        args, kwargs = pytree.tree_map_only(cls, cls._unpacked, (args, kwargs))
        result = func(*args, **kwargs)
        return pytree.tree_map_only(Tensor, lambda view: cls(view, view), result) if func.is_view else result


class Unpacking:
    """Counts how often a weight is unpacked for code that computes with it; the second time a warning names it."""

    def __init__(self, layer: str, shape: tuple[int, ...]) -> None:
        self._layer, self._shape, self._count = layer, shape, 0

    def note(self) -> None:
        """Once more."""
        self._count += 1
        if self._count == 2:
            layer = repr(self._layer) if self._layer else f"of shape {' × '.join(map(str, self._shape))}"
            warnings.warn(
                f"layer {layer}: code computes with its dense weight, which is unpacked for that every time; "
                "better exclude the layer from the recipe",
                stacklevel=2,
            )


class _Whole:
    """The weight of a layer."""

    def __init__(self, unpack: Callable[[], Tensor], unpacking: Unpacking) -> None:
        self._unpack, self._unpacking = unpack, unpacking

    def unpack(self) -> Tensor:
        """The dense weight."""
        self._unpacking.note()
        return self._unpack()


def read_only() -> FastSparseError:
    hint = "change a dense layer, made by to_dense(), and pack that"
    return FastSparseError(f"weight: the weight of a SparseLinear is packed, its dense form is read-only; {hint}")
