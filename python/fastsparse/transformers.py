"""Packed model folders in transformers 5: ``import fastsparse.transformers``, and ``from_pretrained`` takes them.

The import registers a quantizer under the name that packed folders carry in their `config.json`. Linear layers become
`fastsparse.torch.SparseLinear` while the folder is read, one at a time; whatever else is packed is unpacked.
`save_pretrained` writes packed folders again. Orphaned folders of compressed-tensors 0.3 to 0.14 in its sparse layouts
run the same way.

Examples
--------
>>> import fastsparse.transformers                                              # doctest: +SKIP
>>> from transformers import AutoModelForCausalLM
>>> model = AutoModelForCausalLM.from_pretrained("packed-folder")               # doctest: +SKIP
"""

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import fastsparse as fs
from fastsparse import _backend, checkpoint
from fastsparse._errors import FastSparseError
from fastsparse.checkpoint._reader import matrix_bits
from fastsparse.masks import matrix_view
from fastsparse.quantized import BITS
from fastsparse.torch._linear import COMPUTES, KEYS, SparseLinear
from fastsparse.torch._load import cast
from fastsparse.torch._parameter import SparseParameter
from fastsparse.torch._places import Use, obstacle, packed_at, put_packed, uses_of
from fastsparse.torch._sparsify import sparsify, to_dense
from fastsparse.torch._tensors import as_array, as_tensor

if int(transformers.__version__.partition(".")[0]) < 5:
    raise FastSparseError(
        f"fastsparse.transformers needs transformers 5 or newer, this is {transformers.__version__}; "
        "fastsparse.torch.load puts a packed folder into a model of any version"
    )

from transformers import modeling_utils
from transformers.core_model_loading import ConversionOps, WeightConverter, revert_weight_conversion
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
from transformers.utils.quantization_config import QuantizationConfigMixin

__all__ = ["FastSparseConfig", "FastSparseQuantizer"]

METHOD = "fastsparse"
_PARTS = ("compressed", "bitmask", "row_offsets", "shape", "row_scale")
_Packed = fs.BitmaskArray | fs.QuantizedArray
_SPARSE_LAYOUTS = ("sparse-bitmask", "sparse-24-bitmask")


@register_quantization_config(METHOD)
class FastSparseConfig(QuantizationConfigMixin):  # type: ignore[misc]  # transformers is not typed
    """What `config.json` says about a packed folder; given to ``from_pretrained`` of a dense one, how to prune it.

    Parameters
    ----------
    pattern : str, optional
        A pattern in its short form. A dense model is pruned by it and packed after it is loaded; None packs what is
        zero already.
    weight_bits : {None, 8}
        As for `fastsparse.torch.sparsify`, of a dense model.
    **kwargs
        What the section of a packed folder holds besides.
    """

    def __init__(self, pattern: str | None = None, weight_bits: int | None = None, **kwargs: Any) -> None:
        self.quant_method = METHOD
        self.pattern = pattern if pattern is None else str(fs.pattern(pattern))
        self.weight_bits = weight_bits
        self.section = {key: value for key, value in kwargs.items() if key != "quant_method"}

    def to_dict(self) -> dict[str, Any]:
        """The section of `config.json` for a folder that is saved packed."""
        return {"quant_method": METHOD, "version": _backend.version(), "format": "sparse-bitmask"}


class _Assemble(ConversionOps):  # type: ignore[misc]
    """Packed parts to weights: those of linear layers are kept for packed layers, other weights are unpacked.

    The dense weights of the same names come along; they pass as they are. With several weights in one list, those of
    experts that are merged, an empty tensor stands where one is packed.
    """

    def __init__(self, hf_quantizer: "FastSparseQuantizer") -> None:
        self.hf_quantizer = hf_quantizer

    def __deepcopy__(self, memo: Any) -> "_Assemble":
        return self  # transformers copies a converter for each weight; what is collected goes to one quantizer

    def convert(
        self,
        input_dict: Mapping[str, Any],
        full_layer_name: str = "",
        model: Any = None,
        missing_keys: set[str] | None = None,
        source_patterns: list[str] | None = None,
        **others: Any,
    ) -> dict[str, Any]:
        """Weights by the patterns of their dense names, or by their full names where they are one."""
        groups: dict[str, dict[str, list[Tensor]]] = {}
        sources = {_plain(source) for source in source_patterns or ()}
        for pattern, tensors in input_dict.items():
            stem, dot, part = _plain(pattern).rpartition(".")
            if dot and part in _PARTS:
                stem = stem if stem in sources else f"{stem}.weight"
            else:
                stem, part = _plain(pattern), "weight"
            found = groups.setdefault(stem, {}).setdefault(part, [])
            found.extend(tensors if isinstance(tensors, list) else [tensors])
        single = len(groups) == 1
        results: dict[str, Any] = {}
        for stem, parts in groups.items():
            weights = _weights(parts, full_layer_name)
            if single and len(weights) == 1:
                return self.hf_quantizer.place(weights[0], full_layer_name, model, missing_keys)
            if not all(isinstance(weight, Tensor) for weight in weights):
                self.hf_quantizer.merged.add(full_layer_name)
            results[stem] = [_dense(weight) for weight in weights]
        return results

    @property
    def reverse_op(self) -> ConversionOps:
        """There is none: what is saved has the keys of the packed layers."""
        raise FastSparseError("packed weights are saved as they are")


class _Repack(ConversionOps):  # type: ignore[misc]
    """Packs what a converter of the model has merged of packed weights, such as the experts of a layer."""

    def __init__(self, hf_quantizer: "FastSparseQuantizer") -> None:
        self.hf_quantizer = hf_quantizer

    def __deepcopy__(self, memo: Any) -> "_Repack":
        return self

    def convert(
        self,
        input_dict: Mapping[str, Any],
        full_layer_name: str = "",
        model: Any = None,
        missing_keys: set[str] | None = None,
        **others: Any,
    ) -> dict[str, Any]:
        """The merged weight, unless it is packed."""
        found = dict(input_dict)
        if full_layer_name not in self.hf_quantizer.merged or len(found) != 1:
            return found
        (weight,) = found.values()
        weight = weight[0] if isinstance(weight, list) else weight
        placed = self.hf_quantizer.place(fs.pack(as_array(weight)), full_layer_name, model, missing_keys)
        return dict.fromkeys(found, placed[full_layer_name]) if placed else {}

    @property
    def reverse_op(self) -> ConversionOps:
        """There is none, as with `_Assemble`."""
        raise FastSparseError("packed weights are saved as they are")


def _plain(pattern: str) -> str:
    """A pattern of transformers as the end of a name."""
    return pattern.replace("\\", "").removesuffix("$")


def _weights(parts: Mapping[str, list[Tensor]], name: str) -> list[Tensor | _Packed]:
    """The weights that these parts are, in order; without parts all are dense."""
    dense = parts.get("weight", [])
    count = len(parts.get("compressed", []))
    for part in ("bitmask", "shape"):
        if len(parts.get(part, [])) != count:
            raise FastSparseError(f"tensor {name!r}: a part is missing, {part!r}; the folder is not whole")
    stubs = [weight for weight in dense if weight.numel() == 0] if dense else [None] * count
    if len(stubs) != count:
        raise FastSparseError(f"tensor {name!r}: {count} packed weights, {len(stubs)} places for them")
    scales = iter(parts.get("row_scale", []))
    found: Iterable[Any] = zip(
        *(parts.get(part, []) for part in ("compressed", "bitmask", "shape")), stubs, strict=True
    )
    packed = [_packed(*one, scales=scales, name=name) for one in found]
    if next(scales, None) is not None:
        raise FastSparseError(f"tensor {name!r}: more scales than weights of {BITS} bits; the folder is not whole")
    places = iter(packed)
    return [next(places) if weight.numel() == 0 else weight for weight in dense] if dense else list(packed)


def _packed(
    compressed: Tensor, bitmask: Tensor, shape: Tensor, stub: Tensor | None, *, scales: Iterator[Tensor], name: str
) -> _Packed:
    size = tuple(shape.reshape(-1).tolist())
    bits = as_array(bitmask)
    rows, cols = matrix_view(size)
    try:
        if bits.shape != (rows, -(-cols // 8)):
            bits = matrix_bits(bits, size)
        s = fs.BitmaskArray.from_parts(as_array(compressed.reshape(-1)), bits, size)
        if stub is None or compressed.dtype != torch.int8 or stub.dtype == torch.int8:
            return s
        scale = next(scales, None)
        if scale is None:
            raise FastSparseError(f"weights of {BITS} bits without 'row_scale'; the folder is not whole")
        return fs.QuantizedArray.from_parts(s, as_array(scale), as_array(stub).dtype)
    except FastSparseError as error:
        raise type(error)(f"tensor {name!r}: {error}") from None


def _dense(weight: Tensor | _Packed) -> Tensor:
    return weight if isinstance(weight, Tensor) else as_tensor(weight.to_dense())


@register_quantizer(METHOD)
class FastSparseQuantizer(HfQuantizer):  # type: ignore[misc]
    """Loads and saves packed folders. transformers makes one for each call of ``from_pretrained``."""

    requires_calibration = False
    serialized_names = {"weight": ["weight", *_PARTS, *(f"weight.{part}" for part in _PARTS)]}  # noqa: RUF012

    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.packed: dict[str, _Packed] = {}
        self.merged: set[str] = set()
        self._conversions: list[tuple[Any, Any]] = []
        self._names: tuple[str, ...] = ()

    def place(
        self, weight: Tensor | _Packed, name: str, model: Any, missing_keys: set[str] | None
    ) -> dict[str, Tensor]:
        """Keeps a packed weight until all is loaded, if the model can have it packed; otherwise it is unpacked."""
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        parameter = getattr(module, attribute)
        if isinstance(weight, Tensor):
            return {name: weight.to(parameter.dtype) if weight.is_floating_point() else weight}
        if obstacle(module, attribute) is not None or parameter.dtype not in COMPUTES:
            return {name: _dense(weight).to(parameter.dtype)}
        if weight.shape != tuple(parameter.shape):
            expected = tuple(parameter.shape)
            raise FastSparseError(f"tensor {name!r}: packed with shape {weight.shape}, the model has {expected}")
        self.packed[name] = cast(weight, parameter.dtype)
        parameter._is_hf_initialized = True
        if missing_keys is not None:
            missing_keys.discard(name)
        return {}

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        """Refuses devices that packed layers do not compute on."""
        places = set(device_map.values()) if isinstance(device_map, Mapping) else {device_map}
        others = {str(place) for place in places} - {"None", "cpu", "auto"}
        if others or ("auto" in map(str, places) and torch.cuda.is_available()):
            where = 'packed layers compute on the CPU; pass device_map="cpu"'
            raise FastSparseError(f"device_map: {where}, got {device_map!r}")

    def _process_model_before_weight_loading(self, model: Any, checkpoint_files: Any = None, **kwargs: Any) -> Any:
        if self.pre_quantized:
            self._names = tuple(_leaves(checkpoint_files or ()))
        return model

    def get_load_operations(self) -> dict[str, Any]:
        """What turns parts into weights before a converter of the model merges them."""
        return {"dequantize": _Assemble}

    def get_weight_conversions(self) -> list[Any]:
        """Packed parts and the dense tensors of the same names, joined."""
        if not self.pre_quantized:
            return []
        operation = _Assemble(self)
        converters = []
        for leaf in self._names:
            sources = [rf"\.{leaf}\.{part}$" for part in _PARTS]
            sources += [rf"\.{part}$" for part in _PARTS] if leaf == "weight" else []
            converters.append(WeightConverter([*sources, rf"\.{leaf}$"], f".{leaf}", [operation]))
        return converters

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any) -> list[Any]:
        """Remembers the model's own converters: what is saved is converted back by those."""
        updated: list[Any] = super().update_weight_conversions(weight_conversions, model)
        self._conversions = list(zip(weight_conversions, updated, strict=False))
        for own, used in self._conversions:
            if used is not own:  # it merges what is packed
                used.operations = [*used.operations, _Repack(self)]
        return updated

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        if self.pre_quantized:
            # Only now: until here transformers empties the buffers that are not in the state dict.
            for name in list(self.packed):
                path, _, attribute = name.rpartition(".")
                put_packed(model, [Use(path, attribute)], self.packed.pop(name))
            model._weight_conversions = [own for own, used in self._conversions if used.was_used()]
        else:
            config = self.quantization_config
            sparsify(model, config.pattern or "nonzero", weight_bits=config.weight_bits)
        return model

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The parts of packed layers, and for each the empty tensor that makes readers that know none stop."""
        state = model.state_dict()
        for (use, *_), packed in _packed_in(model):
            dense = {use.name: torch.empty(0, dtype=packed.dtype)}
            if isinstance(packed, SparseParameter):
                whole = {use.name: packed.to_dense().detach()}
                saved = revert_weight_conversion(model, whole)
                if saved.keys() != whole.keys():  # it was merged while it was loaded
                    for key in [key for key in state if key == use.name or key.startswith(f"{use.name}.")]:
                        del state[key]
                    dense = {name: torch.empty(0, dtype=packed.dtype) for name in saved}
                    for name, weight in saved.items():
                        state.update(_parts_of(name, fs.pack(as_array(weight))))
            state.update(dense)
        return state, {}

    def _dequantize(self, model: Any, dtype: torch.dtype | str | None = None) -> Any:
        if isinstance(dtype, str):  # as the config of a model that was saved has it
            dtype = getattr(torch, dtype)
        packed = [use for (use, *_), _ in _packed_in(model)]
        to_dense(model)
        for use in packed:
            weight = use.tensor(model)
            weight.data = weight.data.to(dtype=dtype)
        return model

    def is_serializable(self) -> bool:
        """Packed layers are saved packed."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Gradients flow through packed layers, to what is trained beside them."""
        return True

    @property
    def is_compileable(self) -> bool:
        """`torch.compile` passes over packed layers."""
        return True


_CompressedTensors: Any = AUTO_QUANTIZATION_CONFIG_MAPPING["compressed-tensors"]


class _CompressedTensorsConfig(_CompressedTensors):  # type: ignore[misc]
    """That of transformers, except for folders in which nothing is quantised and which it reads as random weights."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The config for a section of `config.json`."""
        layout = (config_dict.get("sparsity_config") or {}).get("format")
        if layout in _SPARSE_LAYOUTS and not config_dict.get("config_groups"):
            return FastSparseConfig()
        return _CompressedTensors.from_dict(config_dict, *args, **kwargs)


AUTO_QUANTIZATION_CONFIG_MAPPING["compressed-tensors"] = _CompressedTensorsConfig


def _with_older_section(choose: Callable[..., Any]) -> Callable[..., Any]:
    """Sections of other names are taken too: compressed-tensors wrote them before 0.10."""

    @functools.wraps(choose)
    def chosen(config: Any, *args: Any, **kwargs: Any) -> Any:
        for name in ("compression_config", "sparsity_config"):
            section = getattr(config, name, None)
            if isinstance(section, dict) and getattr(config, "quantization_config", None) is None:
                layout = (section.get("sparsity_config") or section).get("format")
                if layout in _SPARSE_LAYOUTS and not section.get("config_groups"):
                    config.quantization_config = {"quant_method": METHOD}
                    delattr(config, name)
        return choose(config, *args, **kwargs)

    return chosen


modeling_utils.get_hf_quantizer = _with_older_section(modeling_utils.get_hf_quantizer)


def _packed_in(model: nn.Module) -> list[tuple[list[Use], SparseLinear]]:
    """The packed weights of a model, and where they are."""
    found = ((uses, packed_at(uses[0].owner(model), uses[0].attribute)) for uses in uses_of(model))
    return [(uses, packed) for uses, packed in found if packed is not None]


def _parts_of(name: str, s: fs.BitmaskArray) -> dict[str, Tensor]:
    """The tensors of a packed weight in a file."""
    stem = name.removesuffix(".weight")
    parts = map(as_tensor, (s.values, s.bitmask, s.row_offsets[:-1]))
    shape = torch.tensor(s.shape, dtype=torch.int64)
    return dict(zip((f"{stem}.{key}" for key in KEYS), (shape, *parts), strict=True))


def _leaves(files: Sequence[str]) -> dict[str, None]:
    """The last parts of the names of packed tensors: ``weight`` as a rule, others for experts in one parameter."""
    if not files:
        return {}
    path = files[0] if len(files) == 1 else os.path.dirname(files[0])
    names = (row.name for row in checkpoint.inspect(path).tensors if row.reason is None)
    return dict.fromkeys(name.rpartition(".")[2] for name in names)
