"""Folders of language models: loaded with transformers, measured and pruned on text. Nothing is fetched."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastsparse import checkpoint
from fastsparse._errors import FastSparseError
from fastsparse.checkpoint import Report
from fastsparse.torch._load import load
from fastsparse.torch._model import ModelReport, prune_model

__all__ = ["load_language_model", "perplexity", "prune_folder", "read_tokens"]

StrPath = str | os.PathLike[str]
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".gguf", ".pt", ".pth")


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise FastSparseError(f"model: language models need transformers: {error}") from None
    return transformers


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
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise FastSparseError(f"model: {folder}: expected a model folder with config.json")
    transformers = _transformers()
    packed = any(row.reason is None for row in checkpoint.inspect(folder).tensors)
    try:
        if not packed:
            return transformers.AutoModelForCausalLM.from_pretrained(
                str(folder), dtype="auto", local_files_only=True
            ).eval()
        config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=_dtype(config)).eval()
    except (ValueError, OSError) as error:
        raise FastSparseError(f"model: {folder}: {error}") from None
    load(model, folder)
    return model


def _dtype(config: Any) -> torch.dtype:
    named = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None) or torch.float32
    return getattr(torch, named.removeprefix("torch.")) if isinstance(named, str) else named


def read_tokens(data: StrPath, model: StrPath, samples: int, length: int) -> list[Tensor]:
    """Pieces of `length` tokens, ``[1, length]`` each: the first `samples` of a text or of stored tokens.

    Parameters
    ----------
    data : path-like
        A text file in UTF-8, or a ``.safetensors`` file with ``input_ids`` of two dimensions.
    model : path-like
        The folder whose tokenizer is used for text.
    samples, length : int
        How many pieces, and how long.

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
            tokenizer = _transformers().AutoTokenizer.from_pretrained(str(model), local_files_only=True)
        except (ValueError, OSError) as error:
            raise FastSparseError(f"model: {os.fspath(model)}: no tokenizer: {str(error).splitlines()[0]}") from None
        ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"], dtype=torch.int64)
    if len(ids) < samples * length:
        raise FastSparseError(
            f"data: {os.fspath(data)} has {len(ids)} tokens, fewer than {samples} samples of {length}"
        )
    return list(ids[: samples * length].reshape(samples, 1, length))


@torch.inference_mode()
def perplexity(model: Any, texts: list[Tensor]) -> float:
    """The exponential of the mean loss of all tokens but the first of each text."""
    losses = [model(input_ids=ids, labels=ids).loss.double() for ids in texts]
    return float(torch.stack(losses).mean().exp())


def prune_folder(
    src: StrPath,
    dst: StrPath,
    pattern: str,
    batches: list[Tensor],
    *,
    overwrite: bool = False,
    weight_bits: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    **options: Any,
) -> tuple[ModelReport, Report]:
    """Prune the language model of a folder with calibration data, and write it packed, with its side files.

    The whole model is held in memory. With `weight_bits` what is kept is stored as `checkpoint.compress` does with the
    `bits` of a recipe; calibration knows nothing of that rounding. `options` are those of `prune_model`.

    Raises
    ------
    FastSparseError
        If `dst` exists and is not to be replaced, or as `prune_model`. Nothing is written then.
    """
    target = Path(dst)
    if target.exists() and not overwrite:
        raise FastSparseError(f"{target}: it exists already; overwrite=True replaces it")
    if not target.absolute().parent.is_dir():
        raise FastSparseError(f"{target}: its folder does not exist")
    recipe = checkpoint.Recipe(default="nonzero", bits=weight_bits)
    model = load_language_model(src)
    report = prune_model(model, pattern, batches, progress=progress, **options)
    with tempfile.TemporaryDirectory(prefix=".fastsparse-", dir=target.absolute().parent) as work:
        dense = Path(work) / "dense"
        shutil.copytree(src, dense, ignore=shutil.ignore_patterns(*(f"*{suffix}" for suffix in _WEIGHTS), ".git"))
        config = (dense / "config.json").read_text(encoding="utf-8")
        model.save_pretrained(dense)
        merged = {**json.loads((dense / "config.json").read_text(encoding="utf-8")), **json.loads(config)}
        (dense / "config.json").write_text(json.dumps(merged, indent=2) + "\n", encoding="utf-8")
        return report, checkpoint.compress(dense, dst, recipe, overwrite=overwrite)
