"""Patterns for the two pruning toolkits of torch, which keep a dense weight and a mask beside it."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.pruning import BaseSparsifier
from torch.nn.utils import prune as torch_prune

import fastsparse as fs
from fastsparse._errors import FastSparseError
from fastsparse.torch._linear import SparseLinear
from fastsparse.torch._places import error_context
from fastsparse.torch._tensors import as_tensor, select

__all__ = ["PatternPruning", "PatternSparsifier", "at_level", "level_of", "prune_module"]


class PatternPruning(torch_prune.BasePruningMethod):
    """A pattern as a method of `torch.nn.utils.prune`; `prune_module` applies it.

    What an earlier method has pruned stays pruned and is the first to go: the sparsity is that of the tensor, not of
    what was left of it.

    `torch.nn.utils.prune.global_unstructured` takes it too, with a pattern that ranks single weights over the whole
    tensor, such as ``"50%"``. It sees what is left of all tensors as one vector, and the sparsity is that of this one,
    as with the methods of torch.

    Parameters
    ----------
    pattern : Pattern or str
        Which weights go.
    one_tensor : bool
        Whether it prunes a tensor by itself; `apply` says so.
    """

    def __init__(self, pattern: str | fs.Pattern, *, one_tensor: bool = False) -> None:
        self.pattern = fs.pattern(pattern)
        # torch hands over the whole tensor, or what earlier methods left of one or more as a
        # vector.
        self.PRUNING_TYPE = "global" if one_tensor else "unstructured"
        if not one_tensor and not _ranks_single_weights(self.pattern):
            raise FastSparseError(
                f"pattern: {self.pattern} needs the shape of a tensor, and global pruning sees all tensors as one "
                "vector; use prune_module for each, or a pattern such as 50%"
            )

    @classmethod
    def apply(
        cls, module: nn.Module, name: str, *args: Any, importance_scores: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Prunes a parameter of a module; `prune_module` is the same."""
        if isinstance(module, SparseLinear):
            raise FastSparseError("module: a SparseLinear is pruned and packed; make it dense with to_dense() before")
        return super().apply(module, name, *args, importance_scores=importance_scores, one_tensor=True, **kwargs)

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """The mask for these importance scores; their magnitude counts, as in torch's own methods."""
        left = torch.where(default_mask.bool(), t.detach(), 0)
        with error_context(getattr(self, "_tensor_name", "t")):
            chosen = select(left, self.pattern)
        return default_mask * as_tensor(chosen).to(default_mask.dtype)


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

    The `sparsity_level` of a group is the sparsity of its pattern unless the configuration has another. What changes
    it, as `CubicSL` and `LambdaSL` of `torch.ao.pruning` do, changes the sparsity of an unstructured or block pattern;
    of n:m and top-k it is rounded to whole zeros in every group: ``"0:4"``, ``"1:4"``, ``"2:4"``.

    Parameters
    ----------
    pattern : Pattern or str
        For all tensors whose group of the configuration has no `pattern` of its own.

    Raises
    ------
    FastSparseError
        In `step`, if a tensor holds NaN or the pattern does not fit it; in a scheduler, if a pattern has no sparsity.

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

    groups: list[dict[str, Any]]

    def __init__(self, pattern: str | fs.Pattern) -> None:
        super().__init__(defaults={"pattern": str(fs.pattern(pattern))})

    def prepare(self, model: nn.Module, config: list[dict[str, Any]] | None) -> None:
        """Adds a mask to each tensor of the configuration; None stands for the weights of all linear layers."""
        super().prepare(model, config)
        self.groups = [_Group(group) for group in self.groups]
        for group in self.groups:
            level = level_of(fs.pattern(group["pattern"]))
            if level is not None:
                group.setdefault("sparsity_level", level)

    def update_mask(
        self,
        module: nn.Module,
        tensor_name: str,
        pattern: str | fs.Pattern,
        sparsity_level: float | None = None,
        tensor_fqn: str | None = None,
        **group: Any,
    ) -> None:
        """Chooses the mask of one tensor."""
        parametrizations = module.parametrizations[tensor_name]
        with error_context(tensor_name if tensor_fqn is None else tensor_fqn):
            chosen = select(parametrizations.original, at_level(fs.pattern(pattern), sparsity_level))
        mask = parametrizations[0].mask
        mask.data = as_tensor(chosen).to(mask.dtype)


class _Group(dict[str, Any]):
    """A group of the configuration; schedulers that look for a level it does not have are told why."""

    def __missing__(self, key: str) -> Any:
        if key != "sparsity_level":
            raise KeyError(key)
        raise FastSparseError(f"sparsity_level: {self['pattern']} has no sparsity that a scheduler could change")


def level_of(pattern: fs.Pattern) -> float | None:
    """The share of zeros that a pattern names, if it does."""
    match pattern:
        case fs.Unstructured() | fs.Block():
            return pattern.sparsity
        case fs.NM():
            return pattern.zeros / pattern.of
        case fs.TopK():
            return (pattern.of - pattern.keep) / pattern.of
    return None


def at_level(pattern: fs.Pattern, level: float | None) -> fs.Pattern:
    """The pattern with another share of zeros."""
    if level is None or level == level_of(pattern):
        return pattern
    match pattern:
        case fs.Unstructured() | fs.Block():
            return replace(pattern, sparsity=level)
        case fs.NM():
            return replace(pattern, zeros=round(level * pattern.of))
        case fs.TopK():
            return replace(pattern, keep=pattern.of - round(level * pattern.of))
    raise FastSparseError(f"sparsity_level: {pattern} has no sparsity that could become {level}")


def _ranks_single_weights(pattern: fs.Pattern) -> bool:
    if isinstance(pattern, fs.Unstructured):
        return pattern.per == "tensor"
    return isinstance(pattern, fs.Threshold | fs.Nonzero)
