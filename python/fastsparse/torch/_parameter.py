"""Parameters that are packed where they are, in modules whose forward is somebody else's.

Experts of one layer in one 3-D parameter, or the weights of `nn.MultiheadAttention`: the module stays, and where it had
the parameter it finds a tensor that knows its shape and is packed. Products with it, with a matrix of it, some rows of
one or its transpose, are computed packed, by way of torch's dispatcher; whatever else is computed with it gets it
unpacked, and a warning says so. Compiled and exported programs unpack it in each call.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

import fastsparse as fs
from fastsparse.torch._arranged import ArrangedLinear, Arrangement, kept
from fastsparse.torch._linear import COMPUTES, KEYS, SCALE, Packed
from fastsparse.torch._tensors import as_array, as_tensor
from fastsparse.torch._weight import DenseWeight, Unpacking, read_only

__all__ = ["PackedTensor", "SparseParameter", "attach", "detach", "holder_of"]

_SUFFIX = "_packed"
_lock = Lock()
aten = torch.ops.aten


class SparseParameter(ArrangedLinear):
    """What a parameter is packed in: a matrix, or several that are stacked along its first dimension.

    A submodule of the module that had the parameter, under its name and ``_packed``; keys of the state dict have the
    name of the parameter. Whether the rows of a matrix are outputs or inputs is not known before somebody multiplies:
    the first product decides, and with inputs the weights are packed anew, transposed.
    """

    attribute: str
    _order_of: Arrangement
    _decided: bool = False
    _unpacking: Unpacking

    @classmethod
    def of(cls, s: Packed, attribute: str) -> "SparseParameter":
        """The place of the parameter of this name."""
        arrangement = Arrangement(s.shape, stacked=len(s.shape) == 3)
        layer = cls.from_packed(arrangement.matrix(kept(s)))
        assert isinstance(layer, cls)
        layer.attribute, layer._order_of = attribute, arrangement
        return layer

    @property
    def _arrangement(self) -> Arrangement:
        return self._order_of

    def forward(self, x: Tensor) -> Tensor:
        """The module that has the parameter computes, not this one."""
        raise NotImplementedError("a packed parameter has no forward; call the module that it belongs to")

    def to_dense(self) -> nn.Parameter:
        """The parameter."""
        return self._dense_parameter()

    def extra_repr(self) -> str:
        """What `repr` says between the brackets."""
        s = self.packed
        return f"{self.attribute}, {'×'.join(map(str, self._order_of.shape))}, {s.dtype}, {s.sparsity:.1%} sparse"

    def _view_dense(self) -> DenseWeight:
        shape = self._order_of.shape
        self._unpacking = Unpacking(self.name, shape)
        stacked, rows = self._order_of.stacked, shape[-2]
        view = _View(self, tuple(range(self._order_of.count)), stacked, (0, rows))
        return PackedTensor(view, torch.empty(shape, dtype=self.values.dtype, device="meta"))

    def _prefix(self, prefix: str) -> str:
        owner = prefix.removesuffix(f"{self.attribute}{_SUFFIX}.")
        return owner if self.attribute == "weight" else f"{owner}{self.attribute}."

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.attribute != "weight":  # the empty tensor that says what the others are parts of
            name = self._prefix(prefix).removesuffix(".")
            destination[name] = torch.empty(0, dtype=self.dtype, device="cpu")

    def _piece(self, index: int) -> fs.BitmaskArray:
        rows = self._order_of.size[0]
        return kept(self.packed).rows(index * rows, (index + 1) * rows)

    def _ordered(self, swapped: bool) -> bool:
        """Whether the rows of the stored matrices are inputs as `swapped` says; the first call decides."""
        with _lock:
            if not self._decided and swapped != self._order_of.swapped:
                stored = self.stored()
                self._order_of = replace(self._order_of, swapped=swapped)
                self._hold(self._order_of.matrix(stored))
            self._decided = True
        return swapped == self._order_of.swapped

    def multiply(self, x: Tensor, index: int, rows: tuple[int, int], turned: bool) -> Tensor:
        """``x @ m`` for rows of x, where m is some rows of a stored matrix, or their transpose if `turned`."""
        whole = rows == (0, self._order_of.shape[-2])
        if not self._ordered(not turned) or not (turned or whole):
            m = self.matrix(index, rows).to(x.dtype)
            return x @ (m.t() if turned else m)
        s = self._piece(index)
        if not whole:
            s = s.rows(*rows)
        known = x if x.dtype in (torch.float32, self.values.dtype) else x.to(self.values.dtype)
        return as_tensor(s._linear(as_array(known, "x"), None, None, None)).to(x.dtype)

    def matrix(self, index: int, rows: tuple[int, int]) -> Tensor:
        """Some rows of a stored matrix, dense."""
        m = as_tensor(self._piece(index).to_dense())
        return (m.t() if self._order_of.swapped else m)[slice(*rows)]

    def unpack(self, view: "_View") -> Tensor:
        """What a view shows, dense."""
        self._unpacking.note()
        shown = [self.matrix(index, view.rows) for index in view.picks]
        shown = [m.t() if view.turned else m for m in shown]
        return torch.stack(shown) if view.stacked else shown[0].contiguous()


@dataclass(frozen=True)
class _View:
    """What a tensor shows of a packed parameter."""

    holder: SparseParameter
    picks: tuple[int, ...]
    """Which matrices."""
    stacked: bool
    """Whether it is a stack of them, or one."""
    rows: tuple[int, int]
    """Which rows of each, as it is stored."""
    turned: bool = False
    """Whether each is transposed."""

    def unpack(self) -> Tensor:
        """The dense tensor."""
        return self.holder.unpack(self)

    def times(self, x: Tensor, at: int = 0, *, turned: bool = False) -> Tensor:
        """``x @ m`` for the matrix m at this place, or its transpose if `turned`."""
        return self.holder.multiply(x, self.picks[at], self.rows, self.turned != turned)


class PackedTensor(DenseWeight):
    """A packed parameter, or a view of one, as a read-only dense tensor with which products are computed packed."""

    @property
    def _view(self) -> _View | None:
        return self._source if isinstance(self._source, _View) else None

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Every operator on such a tensor."""
        known = _KNOWN.get(func) or _OPERATORS.get(func.name())
        if known is not None:
            result = known(func, *args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        elif _is_composite(func):
            return func.decompose(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)


@functools.cache
def _is_composite(func: Any) -> bool:
    """Whether an operator is made of others, which inference mode does not take apart by itself."""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"))


def _shown(tensor: Any) -> _View | None:
    return tensor._view if isinstance(tensor, PackedTensor) else None


def _like(func: Any, w: PackedTensor, *args: Any, **kwargs: Any) -> Any:
    """What an operator makes of shape and strides."""
    return func(torch.empty_strided(w.shape, w.stride(), dtype=w.dtype, device="meta"), *args, **kwargs)


def _same(func: Any, w: PackedTensor) -> Any:
    view = _shown(w)
    return NotImplemented if view is None else PackedTensor(view, w)


def _cast(func: Any, w: PackedTensor, *, dtype: torch.dtype | None = None, **others: Any) -> Any:
    """Another dtype, as autocast wants it: products convert the activations instead."""
    view = _shown(w)
    if view is None or dtype not in COMPUTES:
        return NotImplemented
    return PackedTensor(view, torch.empty_strided(w.shape, w.stride(), dtype=dtype, device="meta"))


def _turn(func: Any, w: PackedTensor, *dims: Any) -> Any:
    view = _shown(w)
    if view is None:
        return NotImplemented
    axes = list(range(w.dim()))
    if func is aten.permute.default:
        order = [axis % w.dim() for axis in dims[0]]
    else:
        a, b = (axis % w.dim() for axis in dims) if dims else (0, 1)
        order = list(axes)
        order[a], order[b] = b, a
    if order == axes:
        return PackedTensor(view, w)
    if order != [*axes[:-2], axes[-1], axes[-2]]:
        return NotImplemented
    return PackedTensor(replace(view, turned=not view.turned), _like(func, w, *dims))


def _select(func: Any, w: PackedTensor, dim: int, index: int) -> Any:
    view = _shown(w)
    if view is None or not view.stacked or dim % w.dim() != 0:
        return NotImplemented
    like = _like(func, w, dim, index)
    return PackedTensor(replace(view, picks=(view.picks[index],), stacked=False), like)


def _unbind(func: Any, w: PackedTensor, dim: int = 0) -> Any:
    view = _shown(w)
    if view is None or not view.stacked or dim % w.dim() != 0:
        return NotImplemented
    return [_select(aten.select.int, w, 0, index) for index in range(len(view.picks))]


def _slice(
    func: Any, w: PackedTensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Any:
    view = _shown(w)
    if view is None or dim % w.dim() != 0 or step != 1 or (view.turned and not view.stacked):
        return NotImplemented
    first, last, _ = slice(start, end).indices(w.shape[0])
    like = _like(func, w, dim, start, end)
    if view.stacked:
        return PackedTensor(replace(view, picks=view.picks[first:last]), like) if last > first else NotImplemented
    base = view.rows[0]
    return PackedTensor(replace(view, rows=(base + first, base + max(first, last))), like)


def _split(func: Any, w: PackedTensor, sizes: Any, dim: int = 0) -> Any:
    if _shown(w) is None or dim % w.dim() != 0:
        return NotImplemented
    length = w.shape[0]
    counts = (
        sizes
        if isinstance(sizes, list | tuple)
        else [sizes] * (length // sizes) + [length % sizes] * bool(length % sizes)
    )
    ends = [sum(counts[: i + 1]) for i in range(len(counts))]
    parts = [_slice(aten.slice.Tensor, w, 0, end - count, end) for count, end in zip(counts, ends, strict=True)]
    return NotImplemented if NotImplemented in parts else parts


def _pick(func: Any, w: PackedTensor, indices: list[Tensor | None]) -> Any:
    """``w[ids]``: the matrices of some experts, which a product does not need to copy."""
    view = _shown(w)
    if view is None or not view.stacked or len(indices) != 1 or not isinstance(indices[0], Tensor):
        return NotImplemented
    ids = indices[0]
    if ids.dim() != 1 or ids.dtype not in (torch.int32, torch.int64) or not len(ids):
        return NotImplemented
    like = torch.empty((len(ids), *w.shape[1:]), dtype=w.dtype, device="meta")
    if view.turned:
        return NotImplemented
    return PackedTensor(replace(view, picks=tuple(view.picks[i] for i in ids.tolist())), like)


def _expand(func: Any, w: PackedTensor, size: list[int], **others: Any) -> Any:
    """One matrix as a stack of the same, as products with several matrices of activations want it."""
    view = _shown(w)
    if view is None or view.stacked or list(size[1:]) != list(w.shape):
        return NotImplemented
    return PackedTensor(replace(view, picks=view.picks * size[0], stacked=True), _like(func, w, size))


def _reshape(func: Any, w: PackedTensor, size: list[int]) -> Any:
    return _same(func, w) if list(size) == list(w.shape) else NotImplemented


def _mm(func: Any, a: Tensor, b: Tensor) -> Any:
    left, right = _shown(a), _shown(b)
    if (left is None) == (right is None):
        return NotImplemented
    if right is not None:
        return right.times(a)
    assert left is not None
    return left.times(b.t(), turned=True).t()


def _mv(func: Any, a: Tensor, x: Tensor) -> Any:
    left = _shown(a)
    return NotImplemented if left is None or _shown(x) is not None else left.times(x[None], turned=True)[0]


def _addmm(func: Any, bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    product = NotImplemented if _shown(bias) is not None else _mm(func, a, b)
    if product is NotImplemented:
        return NotImplemented
    return torch.add(bias if beta == 1 else bias * beta, product, alpha=alpha)


def _bmm(func: Any, a: Tensor, b: Tensor) -> Any:
    left, right = _shown(a), _shown(b)
    if (left is None) == (right is None):
        return NotImplemented
    if right is not None and len(set(right.picks)) == 1:
        return right.times(a.reshape(-1, a.shape[-1])).reshape(*a.shape[:-1], b.shape[-1])
    if right is not None:
        return torch.stack([right.times(x, i) for i, x in enumerate(a)])
    assert left is not None
    return torch.stack([left.times(x.t(), i, turned=True).t() for i, x in enumerate(b)])


def _linear(func: Any, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Any:
    view = _shown(w)
    if view is None or _shown(x) is not None or w.dim() != 2:
        return NotImplemented
    y = view.times(x.reshape(-1, x.shape[-1]), turned=True).reshape(*x.shape[:-1], w.shape[0])
    return y if bias is None else y + bias


def _grouped(func: Any, x: Tensor, w: Tensor, offs: Tensor | None = None, **others: Any) -> Any:
    """Rows up to each offset times the matrix of one expert, those after the last are zero."""
    view = _shown(w)
    if view is None or not view.stacked or x.dim() != 2 or offs is None or any(o is not None for o in others.values()):
        return NotImplemented
    y = x.new_zeros(len(x), w.shape[-1])
    start = 0
    for i, end in enumerate(offs.tolist()):
        if end > start:
            y[start:end] = view.times(x[start:end], i)
            start = end
    return y


_KNOWN: Mapping[Any, Callable[..., Any]] = {
    aten.detach.default: _same,
    aten.alias.default: _same,
    aten._to_copy.default: _cast,
    aten.t.default: _turn,
    aten.transpose.int: _turn,
    aten.permute.default: _turn,
    aten.select.int: _select,
    aten.unbind.int: _unbind,
    aten.slice.Tensor: _slice,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    aten.index.Tensor: _pick,
    aten.expand.default: _expand,
    aten.view.default: _reshape,
    aten._unsafe_view.default: _reshape,
    aten.mm.default: _mm,
    aten.mv.default: _mv,
    aten.addmm.default: _addmm,
    aten.bmm.default: _bmm,
    aten.linear.default: _linear,
}
# Those that this torch may lack.
_OPERATORS: Mapping[str, Callable[..., Any]] = {
    "aten::_grouped_mm": _grouped,
    "transformers::grouped_mm_fallback": _grouped,
}


def attach(owner: nn.Module, attribute: str, s: Packed, name: str) -> SparseParameter:
    """Packs a parameter where it is; `name` is what warnings call it."""
    holder = SparseParameter.of(s, attribute)
    holder.name = name
    holder.train(owner.training)
    del owner._parameters[attribute]
    owner.add_module(attribute + _SUFFIX, holder)
    _choose_class(owner)
    return holder


def detach(owner: nn.Module, attribute: str, parameter: nn.Parameter) -> None:
    """Puts a dense parameter where a packed one was."""
    del owner._modules[attribute + _SUFFIX]
    _choose_class(owner)
    owner.register_parameter(attribute, parameter)


def holder_of(owner: nn.Module, attribute: str) -> SparseParameter | None:
    """What a parameter of a module is packed in, if it is."""
    found = owner._modules.get(attribute + _SUFFIX)
    return found if isinstance(found, SparseParameter) else None


def _choose_class(owner: nn.Module) -> None:
    """Makes packed parameters attributes of a module, by way of a class of its own as torch's parametrizations do."""
    base: Any = getattr(type(owner), "_dense_class", type(owner))
    names = tuple(module.attribute for module in owner._modules.values() if isinstance(module, SparseParameter))
    owner.__class__ = _class_of(base, names) if names else base


@functools.cache
def _class_of(base: Any, names: tuple[str, ...]) -> Any:
    """A class of modules that have these parameters packed. It is found again when one is pickled or copied."""

    def load(self: Any, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        for name in names:
            theirs = prefix if name == "weight" else f"{prefix}{name}."
            for key in (*KEYS, SCALE):
                if theirs + key in state_dict:
                    state_dict[f"{prefix}{name}{_SUFFIX}.{key}"] = state_dict.pop(theirs + key)
            weight = state_dict.get(prefix + name)
            if weight is not None and weight.shape == (0,):  # the one at which loaders of dense modules stop
                del state_dict[prefix + name]
        base._load_from_state_dict(self, state_dict, prefix, *others)

    def set_attribute(self: Any, name: str, value: Any) -> None:
        if name in names:
            raise read_only()
        base.__setattr__(self, name, value)

    def reduce(self: Any, protocol: Any) -> Any:
        return _restore, (base, names), self.__getstate__()

    def weight_of(name: str) -> property:
        return property(lambda self: self._modules[name + _SUFFIX].weight)

    members: dict[str, Any] = {name: weight_of(name) for name in names}
    members |= {"_dense_class": base, "_load_from_state_dict": load, "__setattr__": set_attribute}
    members |= {"__reduce_ex__": reduce, "__module__": base.__module__, "__qualname__": base.__qualname__}
    return type(base.__name__, (base,), members)


def _restore(base: Any, names: tuple[str, ...]) -> Any:
    cls = _class_of(base, names)
    return cls.__new__(cls)
