"""Folders of language models: made and loaded with transformers, measured on text. Nothing is fetched."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsparse import checkpoint
from fastsparse._errors import FastSparseError
from fastsparse.checkpoint._reader import Reader
from fastsparse.torch._load import load
from fastsparse.torch._out_of_core import Weights, torch_dtype, without_weights

__all__ = ["load_language_model", "load_weights", "perplexity", "read_tokens"]

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
    try:
        config = _config(folder)
        with without_weights():
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except (ValueError, OSError, ImportError) as error:
        raise FastSparseError(f"model: {folder}: {str(error).splitlines()[0]}") from None
    model.tie_weights()
    floating = (found.dtype for found in source.tensors.values() if found.dtype in ("F32", "BF16", "F16"))
    return Weights(model.eval(), source, model.base_model_prefix), torch_dtype(next(floating, "F32"))


def load_language_model(path: StrPath) -> Any:
    """The causal language model of a folder, dense or packed; packed layers stay packed.

    Parameters
    ----------
    path : path-like
        A model folder with `config.json`.

    Raises
    ------
    FastSparseError
        If it is no folder, transformers is missing or does not know the model.
    """
    folder = Path(path)
    transformers = _transformers()
    try:
        config = _config(folder)
        if not any(row.reason is None for row in checkpoint.inspect(folder).tensors):
            return transformers.AutoModelForCausalLM.from_pretrained(str(folder), dtype="auto", **_LOCAL).eval()
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=_dtype(config), trust_remote_code=False)
        model.eval()
    except FastSparseError:
        raise
    except (ValueError, OSError, ImportError) as error:
        raise FastSparseError(f"model: {folder}: {str(error).splitlines()[0]}") from None
    # A folder may hold the body alone, without the name under which a model with a head has it, and buffers of old.
    has_prefix = any(name.startswith(f"{model.base_model_prefix}.") for name in checkpoint.open(folder))
    report = load(model if has_prefix else model.base_model, folder, strict=False)
    missing = [row.name for row in report.tensors if row.reason == "not in the file"]
    if missing:
        raise FastSparseError(f"model: {folder}: no tensor for the model's {missing[0]!r}")
    return model


def _dtype(config: Any) -> torch.dtype:
    named = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None) or torch.float32
    return getattr(torch, named.removeprefix("torch.")) if isinstance(named, str) else named


def read_tokens(data: StrPath, model: StrPath, samples: int, length: int, seed: int | None = None) -> list[Tensor]:
    """Pieces of `length` tokens, ``[1, length]`` each: the first `samples` of a text or of stored tokens.

    Parameters
    ----------
    data : path-like
        A text file in UTF-8, or a ``.safetensors`` file with ``input_ids`` of two dimensions.
    model : path-like
        The folder whose tokenizer is used for text.
    samples, length : int
        How many pieces, and how long.
    seed : int, optional
        Draws pieces from all of the text, none twice, and takes them in its order.

    Raises
    ------
    FastSparseError
        If the text is shorter than asked for, or the folder has no tokenizer.
    """
    if samples < 1 or length < 2:
        raise FastSparseError(f"samples, length: expected at least 1 and 2, got {samples} and {length}")
    if Path(data).suffix == ".safetensors":
        stored = checkpoint.open(data)
        if "input_ids" not in stored:
            raise FastSparseError(
                f"data: {os.fspath(data)}: expected a tensor 'input_ids', it has {sorted(stored)[:5]}"
            )
        ids = torch.from_numpy(stored["input_ids"].astype("int64")).reshape(-1)  # type: ignore[union-attr]
    else:
        try:
            text = Path(data).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise FastSparseError(f"data: {os.fspath(data)}: not a text in UTF-8: {error}") from None
        if not any((Path(model) / name).is_file() for name in _TOKENIZERS):
            raise FastSparseError(f"model: {os.fspath(model)}: no tokenizer; expected one of {', '.join(_TOKENIZERS)}")
        try:
            tokenizer = _transformers().AutoTokenizer.from_pretrained(str(model), **_LOCAL)
        except (ValueError, OSError) as error:
            raise FastSparseError(f"model: {os.fspath(model)}: no tokenizer: {str(error).splitlines()[0]}") from None
        ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"], dtype=torch.int64)
    if len(ids) < samples * length:
        raise FastSparseError(
            f"data: {os.fspath(data)} has {len(ids)} tokens, fewer than {samples} samples of {length}"
        )
    pieces = ids[: len(ids) // length * length].reshape(-1, 1, length)
    if seed is None:
        return list(pieces[:samples])
    drawn = np.random.default_rng(seed).choice(len(pieces), samples, replace=False)
    return [pieces[at] for at in sorted(drawn.tolist())]


@torch.inference_mode()
def perplexity(model: Any, texts: list[Tensor]) -> float:
    """The exponential of the mean loss of all tokens but the first of each text."""
    losses = [model(input_ids=ids, labels=ids).loss.double() for ids in texts]
    return float(torch.stack(losses).mean().exp())
