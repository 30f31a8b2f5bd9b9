"""Folders of language models pruned and measured block by block: the model is never in memory as a whole."""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastsparse._errors import FastSparseError
from fastsparse.calibration import Gram, Statistics
from fastsparse.calibration._statistics import describe, save_statistics
from fastsparse.checkpoint._format import Packed
from fastsparse.checkpoint._progress import Progress
from fastsparse.checkpoint._reader import Checkpoint, Reader, StrPath, native
from fastsparse.checkpoint._recipe import Recipe
from fastsparse.checkpoint._replace import replace_tensors
from fastsparse.checkpoint._report import Report
from fastsparse.checkpoint._selection import quantisation_method
from fastsparse.checkpoint._stages import Stages, file_digest, folder_beside
from fastsparse.checkpoint._writer import check_place, check_target
from fastsparse.patterns import positive
from fastsparse.torch._blocks import NotOneByOneError, Tensors, forward_after, run
from fastsparse.torch._language import load_weights
from fastsparse.torch._layers import Layer, layers_of
from fastsparse.torch._model import check, check_recipe, prune_at
from fastsparse.torch._out_of_core import OutOfCore, StoredTensors, Weights
from fastsparse.torch._report import ModelReport
from fastsparse.torch._tensors import as_array
from fastsparse.torch._walk import Ticks, module_of, walk

__all__ = ["calibrate_folder", "evaluate_folder", "plan_folder", "prune_folder"]


def prune_folder(
    src: StrPath,
    dst: StrPath,
    recipe: Recipe,
    batches: Sequence[Tensor] | Statistics,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[ModelReport, Report]:
    """Prune the language model of a folder with calibration data, and write it packed, as `compress` does.

    One block of the model is in memory at a time. Finished blocks are kept in a folder beside the target, from which a
    run that was ended goes on. A model whose blocks cannot be run one by one is loaded as a whole, with a warning.

    Parameters
    ----------
    src, dst : path-like
        A model folder, dense, and the one to write.
    recipe : Recipe
        With all its sections.
    batches : sequence of Tensor, or Statistics
        Ids, ``[1, length]`` each; or what `calibrate_folder` stored, with which no forward is run.
    overwrite : bool
        Whether an existing `dst` is replaced, and the finished blocks of a run with other settings.
    progress : callable, optional
        Called with bytes of weights done, bytes in all, and the layer at hand.

    Raises
    ------
    FastSparseError
        As `prune_model` and `compress`, or if a run with other settings left finished blocks. What was
        finished by then is kept.
    """
    source = _open(src)
    check_target(source, dst, overwrite)
    check(recipe, batches)  # before finished blocks of another run are removed
    weights, dtype = load_weights(source)
    ticks = _ticks(weights, progress)
    settings = _settings(source, recipe, batches)
    assert recipe.calibration is not None, "it has all its sections"
    with _positions(batches), Stages(folder_beside(dst), source, settings, overwrite=overwrite) as stages:
        try:
            label = "prune"
            report = prune_at(weights.model, recipe, batches, _places(weights, stages, dtype), ticks)
        except NotOneByOneError as error:
            label = "prune in memory"
            _warn(error)
            whole = replace(recipe, calibration=replace(recipe.calibration, sequential=False))
            report = prune_at(weights.model, whole, batches, _places(weights, stages, dtype, whole=True), ticks)
        new = {weights.keys[name]: (file, name) for name, file in stages.arrays(label).items()}
        reasons = {key: row.reason or "" for row in report.layers for key in weights.spelled(row.name)}
        written = replace_tensors(src, dst, new, reasons, bits=recipe.bits, overwrite=overwrite)
        return report, replace(written, resumed=(*written.resumed, *stages.resumed))


def plan_folder(src: StrPath, recipe: Recipe) -> ModelReport:
    """What `prune_folder` would do to each layer, without a forward.

    Raises
    ------
    FastSparseError
        As `prune_folder`.
    """
    assert recipe.method is not None, "it has all its sections"
    check_recipe(recipe)
    weights, _ = load_weights(_open(src))
    layers, rows = layers_of(weights.model, recipe)
    for name, layer in layers.items():
        rows[name] = replace(rows[name], method=layer.method or recipe.method.name, pattern=str(layer.pattern))
    return ModelReport(tuple(rows.values()), 0.0)


def calibrate_folder(
    src: StrPath,
    path: StrPath,
    batches: Sequence[Tensor],
    *,
    grams: bool = False,
    clip: float | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, dict[str, Any]]:
    """Store the norms, and the Gram matrices, of what goes into the layers of the dense model of a folder.

    Parameters
    ----------
    src : path-like
        A model folder, dense or packed.
    path : path-like
        The file to write, see `fastsparse.calibration.load_statistics`.
    batches : sequence of Tensor
        Ids, ``[1, length]`` each.
    grams : bool
        Whether Gram matrices are stored too.
    clip : float, optional
        As in `calibration.Gram`.
    overwrite : bool
        Whether an existing file is replaced, and the finished blocks of a run with other settings.
    progress : callable, optional
        As for `prune_folder`.

    Returns
    -------
    dict
        What the metadata says of each layer.
    """
    if clip is not None:
        positive("clip", clip)
    empty = partial(Gram, diagonal=not grams, clip=clip)
    source = Reader(src)
    source.check_formats()
    check_place(path, folder=False, overwrite=overwrite)
    weights, dtype = load_weights(source)
    layers, _ = layers_of(weights.model, Recipe(default="50%", min_size=0))  # a recipe may prune small layers too
    ticks = _ticks(weights, progress)
    settings = [_settings(source, None, batches), grams, clip]
    with _positions(batches), Stages(folder_beside(path), source, settings, overwrite=overwrite) as stages:
        places = _places(weights, stages, dtype)
        try:
            label = "calibrate"
            _collect(weights, layers, batches, places(label), empty, ticks)
        except NotOneByOneError as error:
            _warn(error)
            label = "calibrate in memory"
            _collect(weights, layers, batches, _places(weights, stages, dtype, whole=True)("calibrate"), empty, ticks)
        entries = stages.notes(label)
        tokens = sum(batch.numel() for batch in batches)
        name = os.path.basename(os.path.abspath(src))
        arrays = _Arrays(stages.arrays(label))
        save_statistics(path, arrays, entries, model=name, tokens=tokens, clip=clip, overwrite=overwrite)
        return entries


def evaluate_folder(src: StrPath, texts: Sequence[Tensor]) -> float:
    """The perplexity of the language model of a folder: the exponential of the mean loss of all tokens but the first.

    One block of the model is in memory at a time, and what is outside of all blocks; the outputs of a block are in a
    file meanwhile. It computes in float32, whatever the dtype of the weights.

    Parameters
    ----------
    src : path-like
        A model folder, dense or packed.
    texts : sequence of Tensor
        Ids, ``[1, length]`` each.

    Raises
    ------
    FastSparseError
        If it is no folder, transformers is missing or does not know the model, or a tensor is missing or of another
        shape.

    Warns
    -----
    RuntimeWarning
        If the blocks of the model cannot be run one by one, so that it is in memory as a whole.
    """
    source = Reader(src)
    source.check_formats()
    weights, _ = load_weights(source)
    batches = [{"input_ids": ids} for ids in texts]
    with (
        TemporaryDirectory(prefix="fastsparse-") as folder,
        Stages(Path(folder), source, None) as stages,
        run(weights.model),
        _positions(texts),
    ):
        place = _Passing(weights, stages, weights.dtype, "evaluate")
        try:
            stacks = walk(weights.model, batches, {}, lambda layers, grams: None, place, dense=True)
        except NotOneByOneError as error:
            _warn(error)
            place.unload()
            place, stacks = _Passing(weights, stages, weights.dtype, "evaluate", whole=True), []
        with place.rest():
            outputs = (forward_after(weights.model, stacks, batch, at) for at, batch in enumerate(batches))
            losses = [_loss(output.logits, ids) for output, ids in zip(outputs, texts, strict=True)]
    return float(torch.stack(losses).mean().exp())


@contextmanager
def _positions(texts: Sequence[Tensor] | Statistics) -> Iterator[None]:
    """Names the length of the pieces where a model has no embeddings of so many positions."""
    try:
        yield
    except IndexError as error:
        longest = max((text.shape[-1] for text in texts if isinstance(text, Tensor)), default=0)
        raise FastSparseError(f"length: the model does not take {longest} tokens at once ({error})") from error


def _loss(logits: Tensor, ids: Tensor) -> Tensor:
    """The mean loss of all tokens but the first, float64."""
    return F.cross_entropy(logits[0, :-1].float(), ids[0, 1:]).double()


class _Passing(OutOfCore):
    """Keeps no stages: of a block there are its outputs, until the next one has run."""

    _before: Path | None = None

    def finish(self, stage: str, outputs: Tensors | None) -> None:
        if isinstance(outputs, StoredTensors):
            if self._before is not None:
                self._before.unlink()
            self._before = outputs.path


def _collect(
    weights: Weights,
    layers: Mapping[str, Layer],
    batches: Sequence[Tensor],
    at: AbstractContextManager[OutOfCore],
    empty: Callable[[int], Gram],
    ticks: Ticks,
) -> None:
    """Gathers the statistics of all layers as stages."""
    with at as place, run(weights.model):
        ticks.begin("measuring", layers, [f"{name}.weight" for name in place.notes])

        def visit(own: Mapping[str, Layer], found: Mapping[str, Gram]) -> None:
            modules = {module_of(name): found.get(name) or empty(layer.cols) for name, layer in own.items()}
            transposed = {module_of(name): layer.transposed for name, layer in own.items()}
            arrays, notes = describe(modules, transposed)
            place.arrays.update(arrays)
            place.notes.update(notes)
            for layer in own.values():
                ticks.tick(layer)

        walk(weights.model, batches, layers, visit, place, dense=True, empty=empty)


class _Arrays(Mapping[str, Any]):
    """The tensors of some files by name; each goes from memory when the next one is asked for."""

    def __init__(self, files: Mapping[str, Checkpoint]) -> None:
        self._files, self._last = files, ""

    def __getitem__(self, name: str) -> Any:
        if self._last:
            self._files[self._last].release(self._last)
        self._last = name
        return self._files[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _open(src: StrPath) -> Reader:
    """A folder whose weights can be pruned with calibration data."""
    source = Reader(src)
    source.check_formats()
    if source.folder is None:
        raise FastSparseError(f"model: {source.path}: expected a model folder, not a file")
    for name, found in source.tensors.items():
        if isinstance(found, Packed):
            raise FastSparseError(f"{source.path}: tensor {name!r} is packed already; decompress the checkpoint first")
    method = quantisation_method(source.folder.read_config())
    if method is not None:
        raise FastSparseError(f"model: {source.path}: quantised by {method}; calibrated pruning takes floating weights")
    return source


def _settings(source: Reader, recipe: Recipe | None, batches: Sequence[Tensor] | Statistics) -> list[Any]:
    """All that decides about a result beside the weights of the blocks, as plain values."""
    assert source.folder is not None, "a model folder is read"
    if isinstance(batches, Statistics):
        tokens = [file_digest(Path(batches.path))]
    else:
        tokens = [str(native().digest(as_array(batch.contiguous()).reshape(-1).view("uint8"))) for batch in batches]
    described = None if recipe is None else {name: repr(value) for name, value in asdict(recipe).items()}
    return [described, source.folder.read_config(), tokens, str(torch.__version__), version("transformers")]


def _places(
    weights: Weights, stages: Stages, dtype: torch.dtype, *, whole: bool = False
) -> Callable[[str], AbstractContextManager[OutOfCore]]:
    """Where the weights are, for what is done with them."""

    @contextmanager
    def place(label: str) -> Iterator[OutOfCore]:
        found = OutOfCore(weights, stages, dtype, f"{label} in memory" if whole else label, whole=whole)
        try:
            yield found
        finally:
            found.unload()

    return place


def _warn(error: NotOneByOneError) -> None:
    why = str(error).removesuffix("; pass sequential=False")
    warnings.warn(f"{why}: it is loaded as a whole, and each layer sees the dense model", RuntimeWarning, stacklevel=3)


def _ticks(weights: Weights, progress: Progress | None) -> Ticks:
    """Progress in bytes of weights."""
    return Ticks(progress, lambda layer: layer.rows * layer.cols * weights.stored_dtype(layer.name).itemsize)
