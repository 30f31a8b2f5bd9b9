"""The sections of a model's `config.json` that say how it is stored, read as data only.

That is `quantization_config` with ``"quant_method": "fastsparse"``, and what compressed-tensors 0.3 to 0.14.0.1 writes.
Null and an empty object say nothing.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from fastsparse import _backend
from fastsparse._errors import FormatError
from fastsparse.checkpoint._report import TensorReport

__all__ = ["check_config", "dense_config", "packed_config", "promises_stubs", "sparse_config"]

_SECTION = "quantization_config"
_OLDER = "compression_config"
_OWN = {"quant_method": "fastsparse", "format": "sparse-bitmask"}
_METHOD = {"version": "0.14.0.1", "quant_method": "compressed-tensors"}
_SPARSITY = "sparsity_config"
_SPARSE_FORMATS = ("dense", "dense-sparsity", "sparse-bitmask", "sparse-24-bitmask")
_QUANTISED_FORMATS = (
    "dense",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "pack-quantized",
    "mixed-precision",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "mxfp6-pack-quantized",
    "mxfp8-quantized",
)
"""Formats of compressed-tensors that current readers know: what is quantised stays so."""
_SAY_NOTHING = ("version", "quant_method", "quantization_status", "global_compression_ratio", "ignore")
"""Keys that a section has whether or not anything is quantised."""


def packed_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a packed model, for readers of fastsparse.

    One that another method quantised stays as it is: there is room for one method.
    """
    if config.get(_SECTION):
        return dict(config)
    return {**config, _SECTION: {**_OWN, "version": _backend.version()}}


def promises_stubs(config: Mapping[str, Any] | None) -> bool:
    """Whether the config says that other loaders stop at the packed tensors."""
    section = (config or {}).get(_SECTION)
    return isinstance(section, dict) and section.get("quant_method") == _OWN["quant_method"]


def sparse_config(config: Mapping[str, Any], tensors: Iterable[TensorReport], form: str) -> dict[str, Any]:
    """The config of a packed model, for readers of compressed-tensors; another method's section stays here too."""
    section = config.get(_SECTION) or _METHOD
    if not isinstance(section, dict) or section.get("quant_method") != _METHOD["quant_method"]:
        return dict(config)
    rows = list(tensors)
    packed = [row for row in rows if row.reason is None]
    elements = sum(row.elements for row in packed)
    zeros = sum(row.elements * row.sparsity for row in packed if row.sparsity is not None)
    sparsity = {
        "registry_requires_subclass": False,
        "format": form,
        "targets": ["Linear"],
        "ignore": [row.name.removesuffix(".weight") for row in rows if row.reason is not None and len(row.shape) == 2],
        "global_sparsity": zeros / elements if elements else 0.0,
        "sparsity_structure": "2:4" if packed and all(row.pattern == "2:4" for row in packed) else "unstructured",
    }
    return {**config, _SECTION: {**section, _SPARSITY: sparsity}}


def dense_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the model with its packed tensors dense: without what is said about sparsity.

    A section in which nothing is quantised goes; one of which something is left has the name that readers know today.
    """
    dense = {key: value for key, value in config.items() if key not in (_OLDER, _SPARSITY)}
    for name in (_OLDER, _SECTION):
        section = config.get(name)
        if name == _SECTION and isinstance(section, dict) and section.get("quant_method") == _OWN["quant_method"]:
            del dense[_SECTION]
            continue
        if not isinstance(section, dict) or (name == _SECTION and _SPARSITY not in section):
            continue
        rest = {key: value for key, value in section.items() if key != _SPARSITY}
        if any(
            value and key not in _SAY_NOTHING and (key, value) != ("format", "dense") for key, value in rest.items()
        ):
            dense[_SECTION] = {**rest, "quant_method": _METHOD["quant_method"]} if name == _OLDER else rest
        elif name == _SECTION:
            dense.pop(_SECTION, None)
    return dense


def check_config(config: Mapping[str, Any] | None) -> None:
    """Refuses a model in a layout that cannot be read.

    Raises
    ------
    FormatError
        If a section names such a layout, or is none.
    """
    for name in (_OLDER, _SECTION):
        section = (config or {}).get(name)
        if not section:
            continue
        if not isinstance(section, dict):
            raise FormatError(f"config.json: {name} is {section!r}, expected an object")
        if name == _SECTION and section.get("quant_method") == _OWN["quant_method"]:
            _check_format(name, section, (_OWN["format"],))
            continue
        if name == _SECTION and section.get("quant_method", _METHOD["quant_method"]) != _METHOD["quant_method"]:
            continue
        _check_format(f"{name}.{_SPARSITY}", section.get(_SPARSITY), _SPARSE_FORMATS)
        _check_format(name, section, _QUANTISED_FORMATS)
        groups = section.get("config_groups")
        for group, scheme in groups.items() if isinstance(groups, dict) else ():
            _check_format(f"{name}.config_groups.{group}", scheme, _QUANTISED_FORMATS)
    _check_format(_SPARSITY, (config or {}).get(_SPARSITY), _SPARSE_FORMATS)


def _check_format(where: str, section: Any, known: tuple[str, ...]) -> None:
    form = section.get("format") if isinstance(section, dict) else None
    if form == "marlin-24":
        raise FormatError(
            f"config.json: {where}: format marlin-24 is not supported: its weights are in the order of one GPU kernel, "
            "and no package turns them back"
        )
    if form is not None and form not in known:
        raise FormatError(f"config.json: {where}: format {form!r} is unknown; known are {', '.join(known)}")
