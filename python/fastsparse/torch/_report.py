"""What calibrated pruning did to a model."""

import sys
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fastsparse._table import Column, finite, line_width, natural, table, wrap

__all__ = ["LayerReport", "ModelReport"]


@dataclass(frozen=True)
class LayerReport:
    """One parameter of a model after `prune_model`.

    Attributes
    ----------
    name : str
        Its name in the state dict.
    shape : tuple of int
        Its shape.
    method : str or None
        What pruned it; None where it stays dense.
    pattern : str or None
        Short form of its pattern.
    sparsity : float or None
        Share of zeros, where it was pruned.
    tokens : int
        Tokens that its Gram matrix holds.
    layer_error : float or None
        `calibration.layer_error` on those tokens.
    reason : str or None
        Why it stays dense, or why another method than the one asked for pruned it.
    """

    name: str
    shape: tuple[int, ...]
    method: str | None = None
    pattern: str | None = None
    sparsity: float | None = None
    tokens: int = 0
    layer_error: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class ModelReport:
    """What `prune_model` did to each parameter, and how long it took. Printed it is a table."""

    layers: tuple[LayerReport, ...]
    seconds: float

    @property
    def pruned(self) -> tuple[LayerReport, ...]:
        """Those that were pruned."""
        return tuple(layer for layer in self.layers if layer.method is not None)

    @property
    def sparsity(self) -> float:
        """Share of zeros over those that were pruned; 0 where there are none."""
        sizes = [(int(np.prod(layer.shape)), layer.sparsity or 0.0) for layer in self.pruned]
        total = sum(size for size, _ in sizes)
        return sum(size * sparsity for size, sparsity in sizes) / total if total else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for `json.dumps`; None for an error that is no finite number."""
        layers = [{**asdict(layer), "layer_error": finite(layer.layer_error)} for layer in self.layers]
        return {"layers": layers, "seconds": self.seconds}

    def __str__(self) -> str:
        width = line_width(sys.stdout)
        layers = sorted(self.layers, key=lambda layer: natural(layer.name))
        lines = table(_COLUMNS, [_row(layer) for layer in layers], [layer.reason for layer in layers], width)
        zeros = f", {self.sparsity:.1%} zeros" if self.sparsity else ""
        pruned = f"{len(self.pruned)} layers pruned of {len(self.layers)} parameters{zeros}, in {self.seconds:.0f} s"
        return "\n".join([*lines, *wrap(pruned, width)])


_COLUMNS = (
    Column("tensor"),
    Column("shape", spare=2),
    Column("method", spare=1),
    Column("pattern"),
    Column("zeros", right=True),
    Column("error", right=True),
)


def _row(layer: LayerReport) -> tuple[str | None, ...]:
    """The cells of a parameter's line."""
    return (
        layer.name,
        "×".join(map(str, layer.shape)) or "scalar",
        layer.method,
        layer.pattern,
        None if layer.sparsity is None else f"{layer.sparsity:.1%}",
        None if layer.layer_error is None else f"{layer.layer_error:.4f}",
    )
