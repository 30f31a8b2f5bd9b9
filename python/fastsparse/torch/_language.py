"""Folders of language models and text for them, with transformers. Nothing is fetched."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastsparse import checkpoint
from fastsparse._errors import FastSparseError
from fastsparse.checkpoint._reader import Reader
from fastsparse.torch._out_of_core import Weights, torch_dtype, without_weights

__all__ = ["load_weights", "read_tokens"]

StrPath = str | os.PathLike[str]
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
_LOCAL = {"local_files_only": True, "trust_remote_code": False}
"""Nothing is fetched, and no code of a folder is run."""


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise FastSparseError(f"model: language models need transformers: {error}") from None
    return transformers


@contextmanager
def _error_context(folder: StrPath, what: str = "") -> Iterator[None]:
    """Errors of transformers name the folder, and are the first line of what it says."""
    try:
        yield
    except FastSparseError:
        raise
    except (ValueError, OSError, ImportError) as error:
        line = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
        raise FastSparseError(f"model: {os.fspath(folder)}: {what}{line}") from None


def _config(folder: Path) -> Any:
    """The configuration of a model, as that of a dense one."""
    if not (folder / "config.json").is_file():
        raise FastSparseError(f"model: {folder}: expected a model folder with config.json")
    config = _transformers().AutoConfig.from_pretrained(str(folder), **_LOCAL)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def load_weights(source: Reader) -> tuple[Weights, torch.dtype]:
    """A language model on the meta device with the weights of its folder, of which none is loaded; and their dtype.

    It computes in float32, also where the weights are of 16 bits: most processors multiply those more slowly.

    Parameters
    ----------
    source : Reader
        The folder, dense or packed.

    Raises
    ------
    FastSparseError
        If transformers is missing or does not know the model, or a tensor is missing or of another shape.
    """
    folder = Path(source.path)
    transformers = _transformers()
    with _error_context(folder), without_weights():
        model = transformers.AutoModelForCausalLM.from_config(
            _config(folder), dtype=torch.float32, trust_remote_code=False
        )
    model.tie_weights()
    floating = (found.dtype for found in source.tensors.values() if found.dtype in ("F32", "BF16", "F16"))
    return Weights(model.eval(), source, model.base_model_prefix), torch_dtype(next(floating, "F32"))


def read_tokens(data: StrPath, model: StrPath, samples: int, length: int, seed: int | None = None) -> list[Tensor]:
    """Pieces of `length` tokens, ``[1, length]`` each: the first `samples` of a text or of stored tokens.

    Parameters
    ----------
    data : path-like
        A text file in UTF-8, or a ``.safetensors`` file with integers ``input_ids``, ``[rows, length]``. No piece
        crosses rows, and tokens that an ``attention_mask`` of the same shape masks are left out.
    model : path-like
        The folder whose tokenizer is used for text, and whose vocabulary the tokens are of.
    samples, length : int
        How many pieces, and how long.
    seed : int, optional
        Draws pieces from all of the text, none twice, and takes them in its order.

    Raises
    ------
    FastSparseError
        If the text is shorter than asked for, the folder has no tokenizer, or stored tokens are not as described.
    """
    if samples < 1 or length < 2:
        raise FastSparseError(f"samples, length: expected at least 1 and 2, got {samples} and {length}")
    rows = _stored_rows(data) if Path(data).suffix == ".safetensors" else [_tokenized(data, model)]
    _check_vocabulary(data, Path(model), rows)
    pieces = [piece for row in rows for piece in row[: len(row) // length * length].reshape(-1, 1, length)]
    if len(pieces) < samples:
        where = f" in {len(rows)} rows, which no piece crosses" if len(rows) > 1 else ""
        raise FastSparseError(
            f"data: {os.fspath(data)} has {sum(map(len, rows))} tokens{where}, fewer than {samples} samples of {length}"
        )
    if seed is not None:
        drawn = np.random.default_rng(seed).choice(len(pieces), samples, replace=False)
        pieces = [pieces[at] for at in sorted(drawn.tolist())]
    return [torch.from_numpy(piece.astype(np.int64)) for piece in pieces[:samples]]


def _tokenized(data: StrPath, model: StrPath) -> NDArray[Any]:
    """The tokens of a text."""
    try:
        text = Path(data).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FastSparseError(f"data: {os.fspath(data)}: not a text in UTF-8: {error}") from None
    if not any((Path(model) / name).is_file() for name in _TOKENIZERS):
        raise FastSparseError(f"model: {os.fspath(model)}: no tokenizer; expected one of {', '.join(_TOKENIZERS)}")
    with _error_context(model, "no tokenizer: "):
        tokenizer = _transformers().AutoTokenizer.from_pretrained(str(model), **_LOCAL)
    return np.array(tokenizer(text, verbose=False)["input_ids"], dtype=np.int64)


def _stored_rows(data: StrPath) -> list[NDArray[Any]]:
    """The rows of stored tokens, without those that are masked."""
    stored = checkpoint.open(data)
    if "input_ids" not in stored:
        raise FastSparseError(f"data: {os.fspath(data)}: expected a tensor 'input_ids', it has {sorted(stored)[:5]}")
    ids = stored["input_ids"]
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer) or not isinstance(ids, np.ndarray):
        raise FastSparseError(
            f"data: {os.fspath(data)}: 'input_ids': expected integers of two dimensions, "
            f"got {ids.dtype} {list(ids.shape)}"
        )
    mask = stored.get("attention_mask")
    if mask is None:
        return list(ids)
    if mask.shape != ids.shape or not isinstance(mask, np.ndarray):
        raise FastSparseError(
            f"data: {os.fspath(data)}: 'attention_mask' is {list(mask.shape)}, 'input_ids' {list(ids.shape)}"
        )
    return [row[kept != 0] for row, kept in zip(ids, mask, strict=True)]


def _check_vocabulary(data: StrPath, model: Path, rows: list[NDArray[Any]]) -> None:
    """Refuses tokens that the model has no embedding of."""
    with _error_context(model):
        size = getattr(_config(model).get_text_config(), "vocab_size", None)
    for at, row in enumerate(rows):
        outside = row[(row < 0) | (row >= size)] if size is not None else row[:0]
        if len(outside):
            raise FastSparseError(
                f"data: {os.fspath(data)}: token {outside[0]} in row {at} is not in the model's vocabulary of {size}"
            )
