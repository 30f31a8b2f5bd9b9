"""Packed model folders in transformers 5: ``import fastsparse.transformers``, and ``from_pretrained`` takes them.

The import registers a quantizer under the name that packed folders carry in their `config.json`. Linear layers become
`fastsparse.torch.SparseLinear` while the folder is read, one at a time; whatever else is packed is unpacked.
`save_pretrained` writes packed folders again. Orphaned folders of compressed-tensors 0.10 to 0.14 in its sparse layouts
run the same way.

Examples
--------
>>> import fastsparse.transformers                                              # doctest: +SKIP
>>> from transformers import AutoModelForCausalLM
>>> model = AutoModelForCausalLM.from_pretrained("packed-folder")               # doctest: +SKIP
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from fastsparse.torch._linear import COMPUTES, SparseLinear
from fastsparse.torch._load import cast
from fastsparse.torch._sparsify import sparsify
from fastsparse.torch._tensors import as_array, as_tensor

if int(transformers.__version__.partition(".")[0]) < 5:
    raise FastSparseError(
        f"fastsparse.transformers needs transformers 5 or newer, this is {transformers.__version__}; "
        "fastsparse.torch.load puts a packed folder into a model of any version"
    )

from transformers.core_model_loading import ConversionOps, WeightConverter
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
                return self._place(weights[0], full_layer_name, model, missing_keys)
            results[stem] = [_dense(weight) for weight in weights]
        return results

    def _place(
        self, weight: Tensor | _Packed, name: str, model: Any, missing_keys: set[str] | None
    ) -> dict[str, Tensor]:
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        dtype = getattr(module, attribute).dtype
        if isinstance(weight, Tensor):
            return {name: weight.to(dtype) if weight.is_floating_point() else weight}
        if type(module) is not nn.Linear or attribute != "weight" or dtype not in COMPUTES or len(weight.shape) != 2:
            return {name: _dense(weight).to(dtype)}
        expected = (module.out_features, module.in_features)
        if weight.shape != expected:
            raise FastSparseError(f"tensor {name!r}: packed with shape {weight.shape}, the model has {expected}")
        self.hf_quantizer.packed[path] = cast(weight, dtype)
        module.weight._is_hf_initialized = True
        if missing_keys is not None:
            missing_keys.discard(name)
        return {}

    @property
    def reverse_op(self) -> ConversionOps:
        """There is none: what is saved has the keys of the packed layers."""
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
        self._conversions: list[tuple[Any, Any]] = []
        self._names: tuple[str, ...] = ()

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
        return updated

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        if self.pre_quantized:
            # Only now: until here transformers empties the buffers that are not in the state dict.
            for path in list(self.packed):
                self._replace(model, path, self.packed.pop(path))
            model._weight_conversions = [own for own, used in self._conversions if used.was_used()]
        else:
            config = self.quantization_config
            sparsify(model, config.pattern or "nonzero", weight_bits=config.weight_bits)
        return model

    @staticmethod
    def _replace(model: Any, path: str, weight: _Packed) -> None:
        dense = model.get_submodule(path)
        layer = SparseLinear.from_packed(weight, dense.bias).train(dense.training)
        layer.name = path
        parent, _, child = path.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The parts of packed layers, and for each the empty tensor that makes readers that know none stop."""
        state = model.state_dict()
        for name, module in model.named_modules():
            if isinstance(module, SparseLinear):
                state[f"{name}.weight"] = torch.empty(0, dtype=module.dtype)
        return state, {}

    def _dequantize(self, model: Any, dtype: torch.dtype | str | None = None) -> Any:
        if isinstance(dtype, str):  # as the config of a model that was saved has it
            dtype = getattr(torch, dtype)
        for name, module in list(model.named_modules()):
            if isinstance(module, SparseLinear):
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, module.to_dense().to(dtype=dtype))
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


def _leaves(files: Sequence[str]) -> dict[str, None]:
    """The last parts of the names of packed tensors: ``weight`` as a rule, others for experts in one parameter."""
    if not files:
        return {}
    path = files[0] if len(files) == 1 else os.path.dirname(files[0])
    names = (row.name for row in checkpoint.inspect(path).tensors if row.reason is None)
    return dict.fromkeys(name.rpartition(".")[2] for name in names)
