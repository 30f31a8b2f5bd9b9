"""Where weights are in a model, which of them can be packed, and what takes their places."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from fastsparse._errors import FastSparseError
from fastsparse.checkpoint._format import DTYPES
from fastsparse.torch._arranged import SparseConv, SparseConv1D
from fastsparse.torch._linear import Packed, SparseLinear
from fastsparse.torch._parameter import SparseParameter, attach, detach, holder_of
from fastsparse.torch._tensors import has_memory

__all__ = [
    "Use",
    "check_replaceable",
    "dtype_name",
    "error_context",
    "layer_for",
    "obstacle",
    "packed_at",
    "put_dense",
    "put_packed",
    "takes_bits",
    "uses_of",
]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Use:
    """Where a parameter is: the module that has it, by the names of the module and of the parameter in it."""

    module: str
    attribute: str

    @property
    def name(self) -> str:
        """The name of the tensor in the state dict."""
        return f"{self.module}.{self.attribute}" if self.module else self.attribute

    def owner(self, model: nn.Module) -> nn.Module:
        """The module."""
        return model.get_submodule(self.module)

    def tensor(self, model: nn.Module) -> Tensor:
        """The parameter, or the dense form of what is packed there."""
        return getattr(self.owner(model), self.attribute)


def uses_of(model: nn.Module) -> list[list[Use]]:
    """For each parameter and each packed weight all its names, those of modules that are in several places too."""
    found: dict[int, list[Use]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, SparseParameter):
            found.setdefault(id(module), []).append(Use(path.rpartition(".")[0], module.attribute))
        elif isinstance(module, SparseLinear):
            found.setdefault(id(module), []).append(Use(path, "weight"))
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                found.setdefault(id(parameter), []).append(Use(path, attribute))
    return list(found.values())


def packed_at(module: nn.Module, attribute: str) -> SparseLinear | None:
    """What a parameter of a module is packed in, if it is: the module itself, or one beside it."""
    if isinstance(module, SparseLinear):
        return module if attribute == "weight" else None
    return holder_of(module, attribute)


def obstacle(module: nn.Module, attribute: str) -> str | None:
    """Why a parameter of a module is not to be packed, if it is not."""
    if packed_at(module, attribute) is not None:
        return "packed already"
    if attribute.endswith("bias") and _has_weights(module):
        return "a bias"
    if is_packed_in_place(module, attribute):
        weight = getattr(module, attribute)
        return None if has_memory(weight) else f"the weight is a {type(weight).__name__}, not a plain tensor"
    if layer_for(module) is None:
        return f"of a {type(module).__name__}, not a Linear"
    if attribute != "weight":
        return "the weight is computed from it; make that permanent first"
    if not has_memory(module.weight):
        return f"the weight is a {type(module.weight).__name__}, not a plain tensor"
    return _attached(module)


def layer_for(module: nn.Module) -> Callable[[Packed, Any], SparseLinear] | None:
    """What makes the packed layer that takes the place of a module with this weight, if one can."""
    kind = type(module)
    if kind is nn.Linear:
        return lambda s, dense: SparseLinear.from_packed(s, dense.bias)
    if is_conv1d(module):
        return SparseConv1D.of
    if kind in _CONVOLUTIONS:
        padded = not isinstance(module.padding, str) and any(module.padding)
        return SparseConv.of if set(module.kernel_size) == {1} and module.groups == 1 and not padded else None
    return None


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is a `Conv1D` of transformers, a linear layer whose weight has the inputs first."""
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def takes_bits(module: nn.Module) -> bool:
    """Whether the weight of a module may be kept in eight bits: other layers than linear ones keep their dtype."""
    return type(module) in (nn.Linear, SparseLinear)


def is_packed_in_place(module: nn.Module, attribute: str) -> bool:
    """Whether a parameter is packed in the module that has it: a stack of matrices, or a weight of an attention."""
    kind = getattr(type(module), "_dense_class", type(module))
    if issubclass(kind, nn.MultiheadAttention):
        return attribute in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    if kind is NonDynamicallyQuantizableLinear:  # the output of an attention, which reads the weight
        return attribute == "weight"
    if any(base.__module__.startswith("torch.") and base is not nn.Module for base in kind.__mro__):
        return False  # a layer of torch, or a kind of one: its parameters are no stacks
    parameter = module._parameters.get(attribute)
    return parameter is not None and parameter.dim() == 3


def _has_weights(module: nn.Module) -> bool:
    """Whether a module has a weight that can be packed, or is."""
    if isinstance(module, SparseLinear) or layer_for(module) is not None:
        return True
    packed = any(isinstance(child, SparseParameter) for child in module._modules.values())
    return packed or any(is_packed_in_place(module, name) for name in module._parameters)


def _attached(module: nn.Module) -> str | None:
    """What a module has that one in its place would not."""
    if any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)):
        return "the layer has hooks"
    if "forward" in vars(module):
        return "the layer has a forward of its own"
    return None


def put_packed(model: nn.Module, uses: Sequence[Use], s: Packed) -> list[SparseLinear]:
    """Packs a weight wherever it is, once for a module that is in several places; returns what it is packed in.

    What is packed there already takes the new weight.
    """
    made: dict[tuple[nn.Module, str], SparseLinear] = {}
    for use in uses:
        module = use.owner(model)
        key, there = (module, use.attribute), packed_at(module, use.attribute)
        if there is not None:
            if key not in made:
                there.hold(s)
                made[key] = there
        elif is_packed_in_place(module, use.attribute):
            made[key] = attach(module, use.attribute, s, use.name)
        else:
            if key not in made:
                make = layer_for(module)
                assert make is not None, "there is no obstacle"
                made[key] = make(s, module).train(module.training)
                made[key].name = use.module
            _set_module(model, use.module, made[key])
        _choose_paths(model, use.module)
    return list(made.values())


def put_dense(model: nn.Module, uses: Iterable[Use], weight: nn.Parameter | None = None) -> None:
    """Makes packed weights dense wherever they are: with `weight` for all of them, or each with its own."""
    made: dict[nn.Module, nn.Module] = {}
    for use in uses:
        module = use.owner(model)
        holder = holder_of(module, use.attribute)
        if holder is not None:
            detach(module, use.attribute, holder.to_dense() if weight is None else weight)
        elif isinstance(module, SparseLinear):
            if module not in made:
                made[module] = module.to_dense()
                if weight is not None:
                    made[module].weight = weight
            _set_module(model, use.module, made[module])
        _choose_paths(model, use.module)


def check_replaceable(model: nn.Module) -> None:
    """Refuses packed layers that have what dense ones in their places would not.

    Raises
    ------
    FastSparseError
        With the name of the layer.
    """
    for path, module in model.named_modules(remove_duplicate=False):
        reason = _attached(module) if isinstance(module, SparseLinear) else None
        if reason is not None:
            raise FastSparseError(f"layer {path!r}: {reason}; remove that first")


def _set_module(model: nn.Module, path: str, module: nn.Module) -> None:
    above, _, attribute = path.rpartition(".")
    setattr(model.get_submodule(above), attribute, module)


def _choose_paths(model: nn.Module, path: str) -> None:
    """Switches the fused path of the transformer layers around a module off, or on again, as their constructor does.

    It computes with dense weights. Eager calls leave it by themselves; compiled ones do not.
    """
    names = path.split(".")
    for end in range(len(names) + 1):
        layer = model.get_submodule(".".join(names[:end]))
        if isinstance(layer, nn.TransformerEncoderLayer):
            packed = any(isinstance(module, SparseLinear) for module in layer.modules())
            layer.activation_relu_or_gelu = 0 if packed else _fused_activation(layer.activation)


def _fused_activation(activation: Any) -> int:
    """What the constructor of a transformer layer makes of its activation."""
    kinds = ((F.relu, nn.ReLU), (F.gelu, nn.GELU))
    return next((i for i, kind in enumerate(kinds, 1) if activation is kind[0] or isinstance(activation, kind[1])), 0)


def dtype_name(parameter: Tensor) -> str:
    """The name that safetensors gives the dtype, or torch's where it has none."""
    name = str(parameter.dtype).removeprefix("torch.")
    return next((short for short, dtype in DTYPES.items() if dtype.name == name), name)


@contextmanager
def error_context(name: str) -> Iterator[None]:
    """Errors name the tensor."""
    try:
        yield
    except FastSparseError as error:
        raise type(error)(f"tensor {name!r}: {error}") from None
