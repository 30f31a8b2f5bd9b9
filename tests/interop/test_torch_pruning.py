"""Masks inside the two pruning toolkits of torch."""

import copy

import pytest
import torch
from torch import nn
from torch.ao.pruning import WeightNormSparsifier
from torch.nn.utils import prune as torch_prune

import fastsparse as fs
import fastsparse.torch as fst


def linear() -> nn.Linear:
    torch.manual_seed(2)
    return nn.Linear(96, 48)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9])
def test_prune_module_is_l1_unstructured(sparsity):
    ours, theirs = linear(), linear()
    assert fst.prune_module(ours, "weight", fs.Unstructured(sparsity)) is ours
    torch_prune.l1_unstructured(theirs, "weight", sparsity)
    assert torch.equal(ours.weight_mask, theirs.weight_mask)
    assert torch.equal(ours.weight, theirs.weight)


def test_scores_that_matter_instead():
    ours, theirs, scores = linear(), linear(), torch.randn(48, 96)
    fst.prune_module(ours, "weight", "50%", importance_scores=scores)
    torch_prune.l1_unstructured(theirs, "weight", 0.5, importance_scores=scores)
    assert torch.equal(ours.weight_mask, theirs.weight_mask)


def test_methods_in_a_row():
    layer = linear()
    torch_prune.random_unstructured(layer, "weight", 0.25)
    before = layer.weight_mask.clone()
    fst.prune_module(layer, "weight", "50%")
    assert layer.weight_mask.sum() == 48 * 96 // 2
    assert not (layer.weight_mask > before).any()
    fst.prune_module(layer, "weight", "3:4")
    assert layer.weight_mask.view(-1, 4).sum(1).max() <= 1
    torch_prune.remove(layer, "weight")
    assert fst.SparseLinear.from_linear(layer).packed == fst.pack(layer.weight)


def test_a_mask_as_a_custom_one():
    layer = linear()
    mask = fst.select(layer.weight, "75%/4x1")
    torch_prune.custom_from_mask(layer, "weight", fst.as_tensor(mask))
    assert torch.equal(layer.weight, fst.apply_mask(layer.weight_orig.detach(), mask))


def test_the_sparsifier_steps_squashes_and_packs():
    model = nn.Sequential(linear(), nn.ReLU(), nn.Linear(48, 96))
    dense = copy.deepcopy(model)
    sparsifier = fst.PatternSparsifier("50%")
    sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}, {"tensor_fqn": "2.weight", "pattern": "2:4"}])
    sparsifier.step()
    assert torch.equal(model[0].weight, fst.prune(dense[0].weight.detach(), "50%"))
    with torch.no_grad():
        model[2].parametrizations.weight.original.mul_(-2).add_(0.01)
    sparsifier.step()
    grown = dense[2].weight.detach() * -2 + 0.01
    assert torch.equal(model[2].weight, fst.prune(grown, "2:4"))
    assert sparsifier.state_dict()["groups"][1]["pattern"] == "2:4"
    sparsifier.squash_mask()
    assert type(model[0]) is nn.Linear
    assert fst.sparsify(model, "nonzero").sparsity == 0.5
    assert model[2].packed == fst.compress(grown, "2:4")


def test_the_sparsifier_chooses_what_torchs_own_does():
    """Its 2 in every 4 are the smallest of each group by magnitude too."""
    ours, theirs = nn.Sequential(linear()), nn.Sequential(linear())
    mine = fst.PatternSparsifier("2:4")
    other = WeightNormSparsifier(sparsity_level=1.0, sparse_block_shape=(1, 4), zeros_per_block=2)
    for sparsifier, model in ((mine, ours), (other, theirs)):
        sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
        sparsifier.step()
    assert torch.equal(ours[0].weight, theirs[0].weight)
