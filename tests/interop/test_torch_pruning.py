"""Masks inside the two pruning toolkits of torch."""

import copy

import pytest
import torch
from torch import nn
from torch.ao.pruning import CubicSL, LambdaSL, WeightNormSparsifier
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


def cubic(sparsifier):
    return CubicSL(sparsifier, init_sl=0.0, delta_t=1, total_t=3)


def ramp(sparsifier):
    return LambdaSL(sparsifier, lambda epoch: min(epoch / 3, 1))


@pytest.mark.parametrize("schedule", [cubic, ramp])
def test_schedulers_of_torch_go_as_with_torchs_own_sparsifier(schedule):
    ours, theirs = nn.Sequential(linear()), nn.Sequential(linear())
    mine = fst.PatternSparsifier("50%")
    other = WeightNormSparsifier(sparsity_level=0.5, sparse_block_shape=(1, 1), zeros_per_block=1)
    schedules = []
    for sparsifier, model in ((mine, ours), (other, theirs)):
        sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
        schedules.append(schedule(sparsifier))
    for _ in range(4):
        mine.step()
        other.step()
        assert schedules[0].get_last_sl() == schedules[1].get_last_sl()
        assert torch.equal(ours[0].weight, theirs[0].weight)
        for scheduler in schedules:
            scheduler.step()
    assert (ours[0].weight == 0).sum() == ours[0].weight.numel() // 2


def test_a_schedule_scales_each_pattern():
    model = nn.Sequential(*(linear() for _ in range(5)))
    patterns = ["2:4", "top6/8", "75%/1x8", "75%/row", "0%"]
    config = [{"tensor_fqn": f"{i}.weight", "pattern": pattern} for i, pattern in enumerate(patterns)]
    config[4]["sparsity_level"] = 0.9
    sparsifier = fst.PatternSparsifier("50%")
    sparsifier.prepare(model, config)
    assert [group["sparsity_level"] for group in sparsifier.groups] == [0.5, 0.25, 0.75, 0.75, 0.9]
    scheduler = ramp(sparsifier)
    for third in range(4):
        sparsifier.step()
        zeros = [layer.weight == 0 for layer in model]
        assert set(zeros[0].view(-1, 4).sum(1).tolist()) == {[0, 1, 1, 2][third]}
        assert set(zeros[1].view(-1, 8).sum(1).tolist()) == {[0, 1, 1, 2][third]}
        assert zeros[2].view(-1, 8).all(1).sum() == zeros[2].view(-1, 8).any(1).sum() == 144 * third
        assert set(zeros[3].sum(1).tolist()) == {24 * third}
        assert zeros[4].sum() == round(0.9 * third / 3 * 4608)
        scheduler.step()


@pytest.mark.parametrize("pattern", ["threshold=0.01", "nonzero"])
def test_what_has_no_sparsity_has_no_schedule(pattern):
    model = nn.Sequential(linear())
    sparsifier = fst.PatternSparsifier(pattern)
    sparsifier.prepare(model, None)
    sparsifier.step()
    with pytest.raises(fs.FastSparseError, match="has no sparsity that a scheduler could change"):
        cubic(sparsifier)
    sparsifier.groups[0]["sparsity_level"] = 0.5
    with pytest.raises(fs.FastSparseError, match=r"has no sparsity that could become 0\.5"):
        sparsifier.step()


def test_a_packed_layer_is_not_pruned_again():
    with pytest.raises(fs.FastSparseError, match=r"a SparseLinear is pruned and packed; make it dense with to_dense"):
        fst.prune_module(fst.SparseLinear.from_linear(linear(), "50%"), "weight", "75%")


def test_the_sparsifier_names_the_layer():
    model = nn.Sequential(linear(), nn.Linear(48, 96))
    model[1].weight.data[3, 4] = torch.nan
    broken = copy.deepcopy(model[1])
    sparsifier = fst.PatternSparsifier("50%")
    sparsifier.prepare(model, None)
    with pytest.raises(fs.FastSparseError, match=r"tensor '1.weight': w contains NaN at index \(3, 4\)"):
        sparsifier.step()
    with pytest.raises(fs.FastSparseError, match=r"tensor 'weight': w contains NaN at index \(3, 4\)"):
        fst.prune_module(broken, "weight", "50%")


def test_global_pruning_of_torch():
    """As many and the same as torch's own, after another method too."""
    models = [nn.ModuleList([linear(), nn.Linear(48, 96)]) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model, method, options in (
        (models[0], fst.PatternPruning, {"pattern": "50%"}),
        (models[1], torch_prune.L1Unstructured, {"amount": 0.5}),
    ):
        torch_prune.l1_unstructured(model[0], "weight", 0.25)
        parameters = [(layer, "weight") for layer in model]
        torch_prune.global_unstructured(parameters, pruning_method=method, **options)
    for ours, theirs in zip(*models, strict=True):
        assert torch.equal(ours.weight_mask, theirs.weight_mask)
    for pattern in ("2:4", "50%/row", "75%/4x1", "top2/4"):
        with pytest.raises(
            fs.FastSparseError, match="needs the shape of a tensor, and global pruning sees all tensors"
        ):
            torch_prune.global_unstructured(parameters, pruning_method=fst.PatternPruning, pattern=pattern)
