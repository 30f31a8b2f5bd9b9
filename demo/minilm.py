"""all-MiniLM-L6-v2 in NumPy: sentence embeddings with dense or packed weights, and its layers pruned on text."""

import math
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastsparse as fs
from fastsparse.calibration import Factor, Gram, factorize, refine, sparsegpt

__all__ = ["LAYERS", "MiniLM", "gather", "likeness", "prune_by_magnitude", "prune_on_text"]

_PARTS = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
LAYERS = [f"encoder.layer.{i}.{part}" for i in range(6) for part in (*_PARTS, "intermediate.dense", "output.dense")]
"""The linear layers, which hold half of the weights; the other half are embeddings."""

_HEADS = 12
_TOKENS = 256
"""Tokens of a text that are read."""

Array = NDArray[Any]
Watch = Callable[[str, Array], None]
"""Called with the name of each layer and what goes into it, a row for each token."""

_GRID = np.linspace(-8, 8, 4097, dtype=np.float32)
_NORMAL = np.array([0.5 * (1 + math.erf(x / math.sqrt(2))) for x in _GRID], np.float32)


class MiniLM:
    """The model of these weights; packed ones are multiplied as they are, by ``x @ s.T``."""

    def __init__(self, weights: Mapping[str, Any], vocabulary: Mapping[str, int]) -> None:
        self._w = weights
        self._vocabulary = vocabulary

    def embed(self, text: str, watch: Watch | None = None) -> Array:
        """The embedding of a sentence, of length 1."""
        ids = self.tokens(text)
        words, places, kinds = (self._w[f"embeddings.{name}_embeddings.weight"] for name in _TABLES)
        x = self._normalise(words[ids] + places[: len(ids)] + kinds[0], "embeddings.LayerNorm")
        for i in range(6):
            x = self._block(x, f"encoder.layer.{i}", watch or (lambda name, x: None))
        mean: Array = x.mean(axis=0)
        unit: Array = mean / np.linalg.norm(mean)
        return unit

    def _block(self, x: Array, name: str, watch: Watch) -> Array:
        def linear(part: str, x: Array) -> Array:
            layer = f"{name}.{part}"
            watch(layer, x)
            product: Array = x @ self._w[f"{layer}.weight"].T + self._w[f"{layer}.bias"]
            return product

        tokens = len(x)
        q, k, v = (linear(part, x).reshape(tokens, _HEADS, -1).swapaxes(0, 1) for part in _PARTS[:3])
        scores = q @ k.swapaxes(1, 2) / math.sqrt(q.shape[2])
        scores = np.exp(scores - scores.max(axis=2, keepdims=True))
        attended = (scores / scores.sum(axis=2, keepdims=True) @ v).swapaxes(0, 1).reshape(tokens, -1)
        x = self._normalise(x + linear(_PARTS[3], attended), f"{name}.attention.output.LayerNorm")
        inner = linear("intermediate.dense", x)
        inner *= np.interp(inner, _GRID, _NORMAL).astype(np.float32)  # GELU, to six digits
        return self._normalise(x + linear("output.dense", inner), f"{name}.output.LayerNorm")

    def _normalise(self, x: Array, name: str) -> Array:
        centred = x - x.mean(axis=1, keepdims=True)
        scaled = centred / np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + 1e-12)
        normalised: Array = scaled * self._w[f"{name}.weight"] + self._w[f"{name}.bias"]
        return normalised

    def tokens(self, text: str) -> list[int]:
        """Numbers of the word pieces: the longest that the vocabulary has, from left to right."""
        plain = unicodedata.normalize("NFD", text.lower())
        plain = "".join(sign for sign in plain if unicodedata.category(sign) != "Mn")
        pieces: list[int] = []
        for word in re.findall(r"[^\W_]+|[^\s]", plain):
            pieces += self._pieces(word)
        known = self._vocabulary
        return [known["[CLS]"], *pieces[: _TOKENS - 2], known["[SEP]"]]

    def _pieces(self, word: str) -> list[int]:
        found, start = [], 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = self._vocabulary.get(("##" if start else "") + word[start:end])
                if piece is not None:
                    found.append(piece)
                    start = end
                    break
            else:
                return [self._vocabulary["[UNK]"]]
        return found


_TABLES = ("word", "position", "token_type")


Statistics = Mapping[str, tuple[Gram, Factor]]


def gather(model: MiniLM, texts: list[str]) -> Statistics:
    """What goes into each layer on these texts, as Gram matrices and their factors."""
    grams: dict[str, Gram] = {}

    def watch(name: str, x: Array) -> None:
        if not name.endswith(("key", "value")):  # what the query has
            grams.setdefault(name, Gram(x.shape[1])).update(x)

    for text in texts:
        model.embed(text, watch)
    found = {name: (gram, factorize(gram)) for name, gram in grams.items()}
    return {name: found[name.replace("key", "query").replace("value", "query")] for name in LAYERS}


def prune_on_text(weights: Mapping[str, Array], statistics: Statistics, pattern: str) -> dict[str, Any]:
    """The weights with every layer pruned by SparseGPT, refined and packed, so that its outputs change least."""
    pruned: dict[str, Any] = dict(weights)
    for layer, (gram, factor) in statistics.items():
        dense = weights[f"{layer}.weight"]
        start, mask = sparsegpt(dense, factor, pattern)
        pruned[f"{layer}.weight"] = fs.pack(refine(dense, gram, mask, start=start, steps=5), mask)
    return pruned


def prune_by_magnitude(weights: Mapping[str, Array], pattern: str) -> dict[str, Any]:
    """The weights with the smallest of every layer pruned, packed."""
    return {**weights, **{f"{layer}.weight": fs.compress(weights[f"{layer}.weight"], pattern) for layer in LAYERS}}


def likeness(expected: Array, found: Array) -> tuple[float, float]:
    """The mean cosine of embeddings, and the share of sentences whose nearest other sentence is the same."""
    cosine = float((expected * found).sum(axis=1).mean())
    nearest = [(e @ e.T - 2 * np.eye(len(e))).argmax(axis=1) for e in (expected, found)]
    return cosine, float((nearest[0] == nearest[1]).mean())
