"""A linear layer that holds its weights packed.

Two operators are registered with torch, so that `torch.compile` and `torch.export` pass over the layer and gradients
flow to its input: `fastsparse::linear` and, for the backward pass, `fastsparse::to_dense`. An eager call that needs no
gradient goes past torch's dispatcher, which costs as much as the rest of the call. The operator is registered by its
schema: what `torch.library.custom_op` puts around a function would cost half as much again.
"""

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, Optional

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import fastsparse as fs
from fastsparse import _backend
from fastsparse._errors import FastSparseError
from fastsparse.masks import percent_sparse
from fastsparse.operand import Operand
from fastsparse.packed import new_array
from fastsparse.quantized import BITS, quantized
from fastsparse.torch._tensors import as_array, as_tensor, compress
from fastsparse.torch._weight import DenseWeight, read_only

__all__ = ["COMPUTES", "KEYS", "SCALE", "Packed", "SparseLinear"]

Packed = fs.BitmaskArray | fs.QuantizedArray
COMPUTES = (torch.float32, torch.float16, torch.bfloat16)
_VIEWS = ("_packed", "_seen", "_dense", "_one_row", "_one_row_calls")
_VERSION = attrgetter("_version")
_PREPARED_AFTER = 8
"""Calls with one row until a layer lays its weight out for them: that takes about as long as ten such calls."""
KEYS = ("shape", "compressed", "bitmask", "row_offsets")
SCALE = "row_scale"
"""The fifth key, of weights of eight bits. Beside it is an empty `weight` of the dtype that these stand for."""


torch.library.define(
    "fastsparse::linear",
    "(Tensor x, Tensor values, Tensor bitmask, Tensor row_offsets, SymInt cols, Tensor? bias, Tensor? row_scale=None) "
    "-> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_linear = torch.ops.fastsparse.linear.default


@torch.library.impl("fastsparse::linear", "CPU")
def _(
    x: Tensor,
    values: Tensor,
    bitmask: Tensor,
    row_offsets: Tensor,
    cols: int,
    bias: Tensor | None,
    row_scale: Tensor | None = None,
) -> Tensor:
    parts = (as_array(values), as_array(bitmask), as_array(row_offsets))
    shape = (bitmask.shape[0], cols)
    b, scale = (None if part is None else as_array(part) for part in (bias, row_scale))
    return as_tensor(_backend.active.linear(*parts, shape, as_array(x, "x"), b, scale, None))


@torch.library.register_fake("fastsparse::linear")
def _(x: Tensor, values: Tensor, bitmask: Tensor, row_offsets: Tensor, cols: int, *rest: Tensor | None) -> Tensor:
    torch._check(x.shape[-1] == cols, lambda: f"x: expected {cols} columns, got shape {tuple(x.shape)}")
    return x.new_empty((*x.shape[:-1], bitmask.shape[0]))


# torch reads the schema from the annotations, and knows `Optional` in all versions.
@torch.library.custom_op("fastsparse::to_dense", mutates_args=(), device_types="cpu")
def _to_dense(
    values: Tensor,
    bitmask: Tensor,
    row_offsets: Tensor,
    cols: int,
    row_scale: Optional[Tensor] = None,  # noqa: UP045
    dtype: Optional[torch.dtype] = None,  # noqa: UP045
) -> Tensor:
    parts = (as_array(values), as_array(bitmask), as_array(row_offsets))
    s: Packed = new_array((bitmask.shape[0], cols), *parts, None)
    if isinstance(s, fs.BitmaskArray) and row_scale is not None and dtype is not None:
        s = quantized(s, as_array(row_scale), _array_dtype(dtype))
    return as_tensor(s.to_dense())


@_to_dense.register_fake
def _(
    values: Tensor,
    bitmask: Tensor,
    row_offsets: Tensor,
    cols: int,
    row_scale: Optional[Tensor] = None,  # noqa: UP045
    dtype: Optional[torch.dtype] = None,  # noqa: UP045
) -> Tensor:
    return values.new_empty((bitmask.shape[0], cols), dtype=values.dtype if row_scale is None else dtype)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, values, bitmask, row_offsets, ctx.cols, bias, row_scale = inputs
    if values.requires_grad:
        hint = "train a dense layer under a mask and pack it afterwards"
        raise FastSparseError(f"values: packed weights get no gradient; {hint}")
    ctx.save_for_backward(values, bitmask, row_offsets, row_scale)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x_grad = bias_grad = None
    if ctx.needs_input_grad[0]:
        *parts, row_scale = ctx.saved_tensors
        x_grad = g @ _to_dense(*parts, ctx.cols, row_scale, g.dtype).to(g.dtype)
    if ctx.needs_input_grad[5]:
        bias_grad = g.reshape(g.shape[:-1].numel(), g.shape[-1]).sum(0, dtype=torch.float32).to(ctx.bias_dtype)
    return x_grad, None, None, None, None, bias_grad, None


torch.library.register_autograd("fastsparse::linear", _backward, setup_context=_save_for_backward)


class _Transformed(torch.autograd.Function):
    """The same for `vmap` and the reverse mode of `torch.func`, which go past what is registered with an operator."""

    generate_vmap_rule = True
    setup_context = staticmethod(_save_for_backward)
    backward = staticmethod(_backward)

    @staticmethod
    def forward(*inputs: Any) -> Any:
        return _linear(*inputs)


class SparseLinear(nn.Module):
    """``x @ weight.T + bias`` with the weight packed, as `fs.linear` computes it. Runs on the CPU.

    Made by `from_linear`, `from_packed` or `fastsparse.torch.sparsify`. The constructor makes a layer that keeps no
    weight, to load a state dict into.

    The buffers are `values`, `bitmask` and `row_offsets`, as in `fs.BitmaskArray`; `packed` is the layer's weight as
    one, over the same memory. Buffers that somebody replaces or changes are checked before they are used. The input is
    float32 or of the dtype of the weights, and so is the output. Gradients flow to the input and the bias; the weight
    is no parameter and gets none. In the backward pass it is unpacked.

    The weights may be of eight bits, `weight_bits=8`: int8 values, and a float32 scale for each row, `row_scale`, as in
    `fs.QuantizedArray`. Such a layer takes float32, float16 and bfloat16, and rounds each row of the input to int8 by a
    step of its own, as `fs.linear` does. `dtype` is that of the weight that it stands for; the backward pass takes that
    weight, and the input as it was.

    Where column indices or blocks are faster than the mask for one row of input, as they are from about 75 % zeros on,
    a layer that is called so again and again, as in decoding, lays its weight out anew after some calls, as
    `fs.BitmaskArray.prepare` does, and keeps that beside the buffers; `forms` says so. Longer inputs go on with the
    mask. Both together never take more memory than `forms_up_to` times the dense weight; 0 keeps the mask alone. It can
    be set on a layer, or on the class for all of them. State dicts, pickles and copies hold the buffers only.

    The state dict has the keys of the sparse-bitmask layout, `shape`, `compressed`, `bitmask` and `row_offsets`: saved
    as a safetensors file it is a checkpoint that `fastsparse.checkpoint` reads, and the other way round. With eight
    bits `row_scale` and an empty `weight`, which has the dtype, are there too. A layer takes the state of any other of
    its shape, however many weights that keeps, and in however many bits.

    Parameters
    ----------
    in_features, out_features : int
        Columns and rows of the weight.
    bias : bool
        Whether there is one, zeros at first.
    dtype : torch.dtype, optional
        float32, float16 or bfloat16; torch's default dtype unless given.

    Raises
    ------
    FastSparseError
        If the dtype is another, here or in `to`; if `to` names another device; if `weight` is set.
    FormatError
        In a call, if buffers that were replaced or changed contradict each other.

    Examples
    --------
    >>> import torch
    >>> layer = SparseLinear.from_linear(torch.nn.Linear(64, 32), "75%")
    >>> layer
    SparseLinear(in_features=64, out_features=32, bias=True, float32, 75.0 % sparse)
    >>> layer(torch.ones(1, 64)).shape
    torch.Size([1, 32])
    """

    # What torch.jit.script leaves out.
    __jit_ignored_attributes__ = ("_packed", "_pattern", "_seen", "_dense", "_dtype", "_one_row", "_one_row_calls")
    __jit_unused_properties__ = ("packed", "weight", "dtype", "forms")

    in_features: int
    out_features: int
    values: Tensor
    bitmask: Tensor
    row_offsets: Tensor
    row_scale: Tensor | None
    bias: nn.Parameter | None
    _packed: Packed
    _seen: tuple[Any, ...]
    _dense: DenseWeight | None
    _one_row: Operand
    """What is computed with for one row of input."""
    _one_row_calls: int
    forms_up_to: float = 1.0
    """Memory of all forms of the weight at most, in parts of the dense weight's."""
    name: str = ""
    """What warnings and errors call the layer; `sparsify` gives it the name of its module."""

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        dtype = torch.get_default_dtype() if dtype is None else dtype
        _check_dtype(dtype)
        empty = as_array(torch.empty(0, dtype=dtype, device="cpu"))
        bits = np.zeros((out_features, -(-in_features // 8)), np.uint8)
        self._hold(fs.BitmaskArray.from_parts(empty, bits, (out_features, in_features)))
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=dtype, device="cpu")) if bias else None

    @classmethod
    def from_packed(cls, s: Packed, bias: Tensor | None = None) -> "SparseLinear":
        """A layer with a copy of this weight.

        Parameters
        ----------
        s : BitmaskArray or QuantizedArray
            Two dimensions, ``[out_features, in_features]``; float32, float16 or bfloat16.
        bias : Tensor, optional
            ``[out_features]``; a parameter is held as it is.

        Raises
        ------
        FastSparseError
            If shape or dtype do not fit.
        """
        if not isinstance(s, Packed) or len(s.shape) != 2:
            raise FastSparseError(f"s: expected a BitmaskArray or QuantizedArray of two dimensions, got {s!r}")
        if bias is not None and tuple(bias.shape) != s.shape[:1]:
            raise FastSparseError(f"bias: expected shape ({s.shape[0]},), got {tuple(bias.shape)}")
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._hold(s)
        _check_dtype(layer.dtype)
        layer.bias = bias if bias is None or isinstance(bias, nn.Parameter) else nn.Parameter(bias)
        return layer

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, pattern: str | fs.Pattern | None = None, *, weight_bits: int | None = None
    ) -> "SparseLinear":
        """A layer with what the pattern keeps of another's weight, and its very bias.

        Parameters
        ----------
        linear : nn.Linear
            It is left as it is.
        pattern : Pattern or str, optional
            None keeps what is not zero.
        weight_bits : {None, 8}
            8 rounds what is kept to int8, as `fs.BitmaskArray.quantize` does.

        Raises
        ------
        FastSparseError
            If the layer is not on the CPU, its dtype is not float32, float16 or bfloat16, or its weight holds NaN, or
            with eight bits an infinity.
        """
        if not isinstance(linear, nn.Linear):
            raise FastSparseError(f"linear: expected a torch.nn.Linear, got {type(linear).__name__}")
        _check_dtype(linear.weight.dtype)
        s = compress(linear.weight, "nonzero" if pattern is None else pattern)
        layer = cls.from_packed(s if weight_bits is None else s.quantize(weight_bits), linear.bias)
        layer.train(linear.training)
        return layer

    @property
    def packed(self) -> Packed:
        """The weight, over the memory of the buffers; buffers that somebody has replaced or changed are checked."""
        buffers = self._buffers
        values, bitmask, row_offsets, row_scale, seen, counted, states = self._seen
        if (
            buffers["values"] is not values
            or buffers["bitmask"] is not bitmask
            or buffers["row_offsets"] is not row_offsets
            or buffers["row_scale"] is not row_scale
            or _states(seen, counted) != states
        ):
            self._check_buffers()
        return self._packed

    @property
    def dtype(self) -> torch.dtype:
        """That of the weight: of `values`, or what int8 values stand for."""
        return self.values.dtype if self.row_scale is None else self._dtype

    @property
    def forms(self) -> tuple[str, ...]:
        """The layouts that the weight is held in: ``("mask",)``, and ``"indices"`` or ``"blocks"`` for one row."""
        packed = self.packed
        second = self._one_row
        return ("mask",) if second is packed or not isinstance(second, fs.PreparedWeights) else ("mask", second.form)

    @property
    def weight(self) -> Tensor:
        """The dense weight, ``[out_features, in_features]``, for code that looks at it. It is read-only.

        Shape, dtype and device cost nothing. Whenever something computes with it, it is unpacked, which takes about as
        long as the layer itself, and not kept; the second time a warning names the layer.
        """
        if not _is_eager():
            _refuse_onnx()
            parts = (self.values, self.bitmask, self.row_offsets)
            return self._order(_to_dense(*parts, self.in_features, self.row_scale, self.dtype))
        _ = self.packed  # after a check
        if self._dense is None:
            self._dense = self._view_dense()
        return self._dense

    def _view_dense(self) -> DenseWeight:
        """What `weight` is in eager mode."""
        packed, order = self._packed, self._order
        like = torch.empty(self._stored_shape(), dtype=self.dtype, device="meta")
        return DenseWeight.of(lambda: order(as_tensor(packed.to_dense())), like, self.name)

    def _order(self, dense: Tensor) -> Tensor:
        """The weight as state dicts and files have it, of the dense matrix that the layer computes with."""
        return dense

    def to_dense(self) -> nn.Linear:
        """A dense layer with the same weight, and the very bias of this one."""
        dense = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        dense.weight = nn.Parameter(as_tensor(self.packed.to_dense()))
        dense.bias = self.bias
        return dense.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """``x @ weight.T + bias`` for x of shape ``(…, in_features)``."""
        if torch.jit.is_scripting():  # the other branch is not compiled
            return torch.ops.fastsparse.linear(
                x, self.values, self.bitmask, self.row_offsets, self.in_features, self.bias, self.row_scale
            )
        else:
            return self._compute(x)

    def _compute(self, x: Tensor) -> Tensor:
        if not _is_eager():
            _refuse_onnx()
            return self._call_operator(self._cast(x))
        packed, known = self.packed, self._parameters
        if type(x) is not Tensor or x.dtype is not self._dtype:
            x = self._cast(x)
        bias = known["bias"] if "bias" in known else self.bias  # noqa: SIM401 (attributes are slow)
        if type(x) is not Tensor or (torch.is_grad_enabled() and _require_gradient(x, self.values, bias)):
            return self._call_operator(x)
        b = None if bias is None else as_array(bias)
        form = packed if x.numel() != self.in_features else self._form_of_one_row()
        return as_tensor(form._linear(as_array(x, "x"), b, None, None))

    def _cast(self, x: Tensor) -> Tensor:
        """Autocast lets dense layers take any dtype."""
        if torch.is_autocast_enabled("cpu") and x.dtype not in (self.dtype, torch.float32):
            return x.to(self.dtype)
        return x

    def _call_operator(self, x: Tensor) -> Tensor:
        """What the dispatcher of torch sees."""
        parts = x, self.values, self.bitmask, self.row_offsets, self.in_features, self.bias, self.row_scale
        return _Transformed.apply(*parts) if _is_transformed() else _linear(*parts)

    def extra_repr(self) -> str:
        """What `repr` says between the brackets."""
        s = self.packed
        sparse = percent_sparse(self.in_features * self.out_features, s.nnz)
        bias = self.bias is not None
        form = f"{s.dtype}" if isinstance(s, fs.BitmaskArray) else f"{s.dtype} in {BITS} bits"
        return f"in_features={self.in_features}, out_features={self.out_features}, {bias=}, {form}, {sparse} sparse"

    def hold(self, s: Packed) -> None:
        """Makes a copy of this weight, in the order of state dicts, the layer's."""
        self._hold(self._arrange(s))

    def _hold(self, s: Packed) -> None:
        """Makes a copy of this matrix the layer's."""
        self.out_features, self.in_features = s.shape
        self._pattern = s.pattern
        packed, scale = (s, None) if isinstance(s, fs.BitmaskArray) else (s.packed, as_tensor(s.scale))
        # Not persistent: the state dict has keys of its own.
        self.register_buffer("values", as_tensor(packed.values), persistent=False)
        self.register_buffer("bitmask", as_tensor(packed.bitmask), persistent=False)
        self.register_buffer("row_offsets", as_tensor(packed.row_offsets), persistent=False)
        self.register_buffer("row_scale", scale, persistent=False)
        self._dtype = as_tensor(np.empty(0, s.dtype)).dtype  # int8 values do not tell it
        self._rebuild_view()

    def _rebuild_view(self) -> None:
        """Sees the buffers, which fit each other, as a packed array, whenever they are others."""
        parts = (_frozen(self.values), _frozen(self.bitmask), _frozen(self.row_offsets))
        packed = new_array((self.out_features, self.in_features), *parts, self._pattern)
        scale = self.row_scale
        if scale is None:
            self._packed, self._dtype = packed, self.values.dtype
        else:
            self._packed = quantized(packed, _frozen(scale), _array_dtype(self._dtype))
        buffers = self.values, self.bitmask, self.row_offsets, scale
        tensors = tuple(buffer for buffer in buffers if buffer is not None)
        counted = tuple(tensor for tensor in tensors if not tensor.is_inference())
        self._seen = (*buffers, tensors, counted, _states(tensors, counted))
        self._dense = None
        self._one_row, self._one_row_calls = self._packed, 0

    def _form_of_one_row(self) -> Operand:
        """The form that is fastest for one row, once there were some such calls: another one if memory allows it."""
        packed, calls = self._packed, self._one_row_calls
        if calls == _PREPARED_AFTER or not isinstance(packed, fs.BitmaskArray):
            return self._one_row
        self._one_row_calls = calls + 1
        if calls + 1 == _PREPARED_AFTER and self.forms_up_to > 0:
            try:
                second = packed.prepare(batch=1)
            except MemoryError:  # the mask computes without
                return packed
            if second.form != "mask" and packed.nbytes + second.nbytes <= self.forms_up_to * packed.dense_nbytes:
                self._one_row = second
        return self._one_row

    def _check_buffers(self) -> None:
        try:
            names = ("values", "bitmask", "row_offsets", *(() if self.row_scale is None else (SCALE,)))
            parts = {name: as_array(self._buffers[name], name) for name in names}
            for name, part in parts.items():
                if not part.flags.c_contiguous:
                    raise FastSparseError(f"{name}: expected a contiguous tensor")
            values, bits, offsets, *scales = parts.values()
            shape = (self.out_features, self.in_features)
            s = _checked(fs.BitmaskArray.from_parts(values, bits, shape), *scales, dtype=self._dtype)
            kept = s if isinstance(s, fs.BitmaskArray) else s.packed
            if offsets.dtype != kept.row_offsets.dtype or not np.array_equal(offsets, kept.row_offsets):
                raise fs.FormatError("row_offsets: they are not those of the mask")
            if self._pattern is not None:
                try:
                    fs.BitmaskArray.from_parts(values, bits, shape, pattern=self._pattern)
                except fs.FormatError:
                    self._pattern = None
        except FastSparseError as error:
            where = f"layer {self.name!r}" if self.name else "SparseLinear"
            raise type(error)(f"{where}: {error}") from None
        self._rebuild_view()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SparseLinear":
        """What `to`, `half`, `share_memory` and the like come down to. Refuses before anything is changed."""
        sample = fn(torch.empty(0, dtype=self.dtype, device="cpu"))
        if sample.device.type != "cpu":
            raise FastSparseError(f"device: SparseLinear computes on the CPU and cannot move to {sample.device}")
        _check_dtype(sample.dtype)
        scale = self.row_scale
        if scale is not None and fn(torch.empty(0, dtype=torch.int8, device="cpu")).dtype != torch.int8:
            raise FastSparseError(f"dtype: weights of {BITS} bits are int8 and stay so; make the layer dense first")
        _ = self.packed  # after a check
        if scale is None:
            super()._apply(fn, recurse)
        else:  # it stays float32: as integers, which no conversion between floats touches
            self._buffers[SCALE] = scale.view(torch.int32)
            try:
                super()._apply(fn, recurse)
            finally:
                self._buffers[SCALE] = self._buffers[SCALE].view(torch.float32)
            self._dtype = sample.dtype
        _ = self.packed  # lets go of the memory there was
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        _ = self.packed  # after a check
        super()._save_to_state_dict(destination, prefix, keep_vars)
        prefix = self._prefix(prefix)
        destination.update((prefix + key, part.detach()) for key, part in self._parts().items())

    def _prefix(self, prefix: str) -> str:
        """What the keys of the state dict begin with, for a module whose names begin with `prefix`."""
        return prefix

    def _parts(self) -> dict[str, Tensor]:
        """The tensors of the state dict."""
        # Storages of their own: what saves safetensors refuses a tensor that is a part of one.
        shape = torch.tensor([self.out_features, self.in_features], dtype=torch.int64, device="cpu")
        parts = dict(zip(KEYS, (shape, self.values, self.bitmask, self.row_offsets[:-1].clone()), strict=True))
        if self.row_scale is not None:
            parts.update({SCALE: self.row_scale, "weight": torch.empty(0, dtype=self.dtype, device="cpu")})
        return parts

    def _stored_shape(self) -> tuple[int, ...]:
        """The shape of the weight as state dicts and files have it."""
        return self.out_features, self.in_features

    def _arrange(self, s: Packed) -> Packed:
        """The matrix that the layer computes with, of the weight as state dicts and files have it."""
        return s

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        ours = {key: state_dict[prefix + key] for key in (*KEYS, SCALE) if prefix + key in state_dict}
        rest = {name: part for name, part in state_dict.items() if name.removeprefix(prefix) not in ours}
        stub = rest.get(f"{prefix}weight")
        if stub is not None and stub.shape == (0,):  # the one at which loaders of dense layers stop
            del rest[f"{prefix}weight"]
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        needed = KEYS if "compressed" not in ours or ours["compressed"].dtype != torch.int8 else (*KEYS, SCALE)
        missing = [self._prefix(prefix) + key for key in needed if key not in ours]
        if missing:
            missing_keys.extend(missing if strict else ())
            return
        assigns = local_metadata.get("assign_to_params_buffers", False)
        try:
            packed = self._loaded(**ours, dtype=(None if stub is None else stub.dtype) if assigns else self.dtype)
        except FastSparseError as error:
            error_msgs.append(f"{self._prefix(prefix).rstrip('.') or 'SparseLinear'}: {error}")
        else:
            self.hold(packed)

    def _loaded(
        self,
        shape: Tensor,
        compressed: Tensor,
        bitmask: Tensor,
        row_offsets: Tensor,
        row_scale: Tensor | None = None,
        *,
        dtype: torch.dtype | None,
    ) -> Packed:
        """The weight of a state dict, in a dtype; None for its own, and where only this layer has one, in that."""
        expected = self._stored_shape()
        if tuple(shape.tolist()) != expected:
            raise FastSparseError(f"shape: expected {expected}, got {tuple(shape.tolist())}")
        values = compressed if dtype is None or row_scale is not None else compressed.to(dtype)
        s = fs.BitmaskArray.from_parts(as_array(values), as_array(bitmask), expected)
        if not np.array_equal(as_array(row_offsets), s.row_offsets[:-1]):
            raise fs.FormatError("row_offsets: they are not those of the mask")
        scales = () if row_scale is None else (as_array(row_scale, SCALE),)
        return _checked(s, *scales, dtype=self.dtype if dtype is None else dtype)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            raise read_only()
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _VIEWS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._seen = (None,) * 7


def _refuse_onnx() -> None:
    """An error where what follows would be torch's, about an operator nobody has heard of."""
    if torch.onnx.is_in_onnx_export():
        raise FastSparseError("ONNX has no packed layers; export the model that fastsparse.torch.to_dense makes")


def _is_transformed() -> bool:
    """Whether a transform of `torch.func` is at work."""
    return torch._C._functorch.peek_interpreter_stack() is not None


# As `torch.compiler.assume_constant_result` says it, which would import the compiler: what is compiled holds for one
# stack of transforms. The compilers of torch 2.7 to 2.10 cannot look at the stack themselves.
_is_transformed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _is_eager() -> bool:
    """Whether nothing looks on: no compiler, tracer, transform or mode."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or _is_transformed()
        or torch.jit.is_tracing()
    )


def _require_gradient(*tensors: Tensor | None) -> bool:
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _states(buffers: tuple[Tensor, ...], counted: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """What changes with the memory of the buffers, and with their content where torch counts its changes."""
    return tuple(map(Tensor.data_ptr, buffers)), tuple(map(_VERSION, counted))


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in COMPUTES:
        raise FastSparseError(f"dtype: SparseLinear computes in float32, float16 or bfloat16, got {dtype}")


def _checked(s: fs.BitmaskArray, scale: NDArray[Any] | None = None, *, dtype: torch.dtype) -> Packed:
    """A weight that a layer can hold; with scales one of eight bits that stands for weights of this dtype."""
    _check_dtype(dtype if scale is not None else as_tensor(s.values[:0]).dtype)
    return s if scale is None else fs.QuantizedArray.from_parts(s, scale, _array_dtype(dtype))


def _array_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    return as_array(torch.empty(0, dtype=dtype, device="cpu")).dtype


def _frozen(tensor: Tensor) -> NDArray[Any]:
    """A read-only view."""
    array = as_array(tensor)
    array.flags.writeable = False
    return array
