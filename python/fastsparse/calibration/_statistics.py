"""Statistics of the inputs of a model's layers, in a file: what `fastsparse calibrate` writes, and what reads it."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse import checkpoint
from fastsparse._errors import FastSparseError, FormatError
from fastsparse.calibration._gram import Gram

__all__ = ["LayerStatistics", "Statistics", "describe", "load_statistics", "save_statistics"]

METADATA_KEY = "fastsparse.statistics"
VERSION = 1


@dataclass(frozen=True)
class LayerStatistics:
    """What goes into one layer.

    Attributes
    ----------
    norms : ndarray
        The l2 norm of each input feature over all tokens, float32 ``[cols]``.
    tokens : int
        How many inputs that are.
    transposed : bool
        Whether the weight is stored as inputs × outputs, as that of transformers' `Conv1D` is.
    gram : ndarray or None
        `XᵀX`, float32 ``[cols, cols]``; None where the file has norms only. A view of the file.
    owner : str or None
        The layer under whose name the file has `gram`: the same one for layers that share an input.
    """

    norms: NDArray[np.float32]
    tokens: int
    transposed: bool = False
    gram: NDArray[np.float32] | None = None
    owner: str | None = None

    def as_gram(self) -> Gram:
        """The same as a `Gram`, which holds the diagonal only where there are norms only."""
        sums = np.square(self.norms, dtype=np.float64) if self.gram is None else self.gram
        return Gram.of_sums(sums, self.tokens)


class Statistics(Mapping[str, LayerStatistics]):
    """The statistics of a model: a lazy mapping from the names of layers, such as ``model.layers.0.mlp.up_proj``.

    Attributes
    ----------
    model : str
        The name of the model's folder when they were collected.
    tokens : int
        Tokens of the calibration data.
    clip : float or None
        As in `Gram`: tokens whose norm is more than so many times the median count as if it were that much.
    """

    def __init__(
        self, path: str, model: str, tokens: int, clip: float | None, layers: dict[str, dict[str, Any]], file: Any
    ) -> None:
        self.path, self.model, self.tokens, self.clip = path, model, tokens, clip
        self._layers, self._file = layers, file

    def __getitem__(self, name: str) -> LayerStatistics:
        """The statistics of a layer.

        Raises
        ------
        KeyError
            If the file has none of it.
        """
        layer = self._layers[name]
        gram = layer["gram"]
        return LayerStatistics(
            self._file[f"{name}.norms"],
            layer["tokens"],
            layer["transposed"],
            None if gram is None else self._file[f"{gram}.gram"],
            gram,
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __repr__(self) -> str:
        return f"<Statistics of {self.model!r}: {len(self)} layers, {self.tokens} tokens>"

    def release(self, name: str) -> None:
        """Gives the memory of a layer's mapped pages back; views of it stay valid and read them again."""
        gram = self._layers[name]["gram"]
        for key in [f"{name}.norms"] + ([] if gram is None else [f"{gram}.gram"]):
            self._file.release(key)


def load_statistics(path: str | os.PathLike[str]) -> Statistics:
    """Open a file of `fastsparse calibrate`.

    Parameters
    ----------
    path : path-like
        A ``.safetensors`` file with ``<layer>.norms`` for each layer, and ``<layer>.gram`` for those that it holds Gram
        matrices of; layers that share an input share one. Its metadata has under ``fastsparse.statistics`` a JSON
        object: `version` (1), `model`, `tokens`, `clip` or null, and `layers` with `tokens`, `transposed` and the layer
        that has the `gram` of each, or null.

    Returns
    -------
    Statistics
        A lazy mapping from the names of layers.

    Raises
    ------
    FormatError
        If it is no such file, of a later version, or holds numbers that are none of a layer's inputs.
    OSError
        If it cannot be read.
    """
    file = checkpoint.open(path)
    name = os.fspath(path)
    text = file.metadata.get(METADATA_KEY)
    if text is None:
        raise FormatError(
            f"{name}: no statistics: its metadata has no {METADATA_KEY!r}; fastsparse calibrate writes it"
        )
    try:
        found = json.loads(text)
        if found["version"] != VERSION:
            raise FormatError(f"{name}: statistics of version {found['version']!r}; this package reads {VERSION}")
        layers = {layer: asdict(_Entry(**entry)) for layer, entry in found["layers"].items()}
        clip = found.get("clip")  # files of earlier versions have none
        clip = None if clip is None else float(clip)
        statistics = Statistics(name, str(found["model"]), int(found["tokens"]), clip, layers, file)
    except FormatError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{name}: its metadata {METADATA_KEY!r} is not valid: {error!r}") from None
    for layer, entry in layers.items():
        _check(name, file, layer, entry["gram"])
    return statistics


@dataclass(frozen=True)
class _Entry:
    """What the metadata says of a layer."""

    tokens: int
    transposed: bool
    gram: str | None


def _check(path: str, file: checkpoint.Checkpoint, layer: str, gram: str | None) -> None:
    """Holds the keys of a layer against what they have to be; of Gram matrices their shapes alone are read."""
    norms = file.get(f"{layer}.norms")
    if not isinstance(norms, np.ndarray) or norms.ndim != 1 or norms.dtype != np.float32:
        raise FormatError(f"{path}: layer {layer!r}: expected '{layer}.norms', float32 of one dimension")
    if not np.isfinite(norms).all() or (norms < 0).any():
        raise FormatError(f"{path}: layer {layer!r}: its norms are not all finite and ≥ 0")
    if gram is not None:
        matrix = file.get(f"{gram}.gram")
        if not isinstance(matrix, np.ndarray) or matrix.dtype != np.float32:
            raise FormatError(f"{path}: layer {layer!r}: expected '{gram}.gram', float32")
        if matrix.shape != (len(norms), len(norms)):
            raise FormatError(f"{path}: layer {layer!r}: '{gram}.gram' is {matrix.shape}, its norms {norms.shape}")


def describe(
    grams: Mapping[str, Gram], transposed: Mapping[str, bool]
) -> tuple[dict[str, NDArray[Any]], dict[str, dict[str, Any]]]:
    """The arrays of some layers by their keys, and what the metadata says of each.

    Parameters
    ----------
    grams : mapping
        From the names of layers; the same object for those that share an input. Those that hold more than their
        diagonal are among the arrays.
    transposed : mapping
        As `LayerStatistics.transposed`.
    """
    arrays: dict[str, NDArray[Any]] = {}
    layers: dict[str, dict[str, Any]] = {}
    owners: dict[int, str] = {}
    for name, gram in grams.items():
        owner = owners.setdefault(id(gram), name)
        seen = gram.tokens > 0
        arrays[f"{name}.norms"] = gram.norms.astype(np.float32) if seen else np.zeros(gram.cols, np.float32)
        if seen and not gram.diagonal and owner == name:
            arrays[f"{name}.gram"] = gram.matrix
        layers[name] = asdict(_Entry(gram.tokens, transposed[name], owner if seen and not gram.diagonal else None))
    return arrays, layers


def save_statistics(
    path: str | os.PathLike[str],
    arrays: Mapping[str, NDArray[Any]],
    layers: Mapping[str, dict[str, Any]],
    *,
    model: str,
    tokens: int,
    clip: float | None = None,
    overwrite: bool = False,
) -> None:
    """Writes what `describe` gave, of all layers; `arrays` is asked for each twice and held one at a time.

    Raises
    ------
    FastSparseError
        If there are no layers, or `path` exists and is not to be replaced.
    """
    if not layers:
        raise FastSparseError("statistics: there are no layers to write")
    document = {"version": VERSION, "model": model, "tokens": tokens, "clip": clip, "layers": layers}
    metadata = {METADATA_KEY: json.dumps(document, ensure_ascii=False)}
    checkpoint.save(arrays, path, metadata=metadata, overwrite=overwrite)
