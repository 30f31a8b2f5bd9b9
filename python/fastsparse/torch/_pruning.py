"""Patterns for the two pruning toolkits of torch, which keep a dense weight and a mask beside it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.pruning import BaseSparsifier
from torch.nn.utils import prune as torch_prune

import fastsparse as fs
from fastsparse.torch._tensors import as_tensor, select

__all__ = ["PatternPruning", "PatternSparsifier", "prune_module"]


class PatternPruning(torch_prune.BasePruningMethod):
    """A pattern as a method of `torch.nn.utils.prune`; `prune_module` applies it.

    What an earlier method has pruned stays pruned and is the first to go: the sparsity is that of the tensor, not of
    what was left of it.

    Parameters
    ----------
    pattern : Pattern or str
        Which weights go.
    """

    PRUNING_TYPE = "global"  # torch hands over the whole tensor, not what earlier methods left of it

    def __init__(self, pattern: str | fs.Pattern) -> None:
        self.pattern = fs.pattern(pattern)

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """The mask for these importance scores; their magnitude counts, as in torch's own methods."""
        left = torch.where(default_mask.bool(), t.detach(), 0)
        return default_mask * as_tensor(select(left, self.pattern)).to(default_mask.dtype)


def prune_module(
    module: nn.Module, name: str, pattern: str | fs.Pattern, *, importance_scores: Tensor | None = None
) -> nn.Module:
    """Prune a parameter of a module by a pattern, as `torch.nn.utils.prune.l1_unstructured` does by an amount.

    The module gets ``{name}_orig``, ``{name}_mask`` and a hook that multiplies them. `torch.nn.utils.prune.remove`
    makes that permanent; then ``sparsify(model, "nonzero")`` packs it.

    Parameters
    ----------
    module : nn.Module
        It is changed and returned.
    name : str
        Of the parameter, ``"weight"`` for example.
    pattern : Pattern or str
        Which weights go.
    importance_scores : Tensor, optional
        What is ranked, by magnitude, instead of the parameter.

    Examples
    --------
    >>> import torch
    >>> layer = prune_module(torch.nn.Linear(8, 2), "weight", "2:4")
    >>> int(layer.weight_mask.sum())
    8
    """
    PatternPruning.apply(module, name, importance_scores=importance_scores, pattern=pattern)
    return module


class PatternSparsifier(BaseSparsifier):
    """A pattern as a sparsifier of `torch.ao.pruning`: `prepare`, then `step` whenever the mask is to be chosen anew.

    The choice is made among the unmasked weights, so that what has grown back may return. `squash_mask` makes the mask
    permanent; then ``fastsparse.torch.sparsify(model, "nonzero")`` packs the model.

    Parameters
    ----------
    pattern : Pattern or str
        For all tensors whose group of the configuration has no `pattern` of its own.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 2))
    >>> sparsifier = PatternSparsifier("2:4")
    >>> sparsifier.prepare(model, None)
    >>> sparsifier.step()
    >>> int((model[0].weight != 0).sum())
    8
    """

    def __init__(self, pattern: str | fs.Pattern) -> None:
        super().__init__(defaults={"pattern": str(fs.pattern(pattern))})

    def update_mask(self, module: nn.Module, tensor_name: str, pattern: str | fs.Pattern, **group: Any) -> None:
        """Chooses the mask of one tensor."""
        parametrizations = module.parametrizations[tensor_name]
        chosen = as_tensor(select(parametrizations.original, pattern))
        mask = parametrizations[0].mask
        mask.data = chosen.to(mask.dtype)
