"""Masks that grow while a model trains: against the formula of the schedule, counts and nesting at every step."""

import copy

import pytest
import torch
from torch import nn

import fastsparse as fs
import fastsparse.torch as fst
from fastsparse.checkpoint import Recipe, Rule


def made() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 3))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    (model(x) - 1).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("make", [torch.optim.AdamW, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)])
@pytest.mark.parametrize(
    "pattern", ["80%", "75%/row", "3:4", "top2/8", "75%/4x1", fs.Block(4, 0.75, norm="max")], ids=str
)
def test_counts_are_exact_and_masks_nested_at_every_step(pattern, make):
    model = made()
    optimizer = make(model.parameters())
    pruner = fst.Pruner(model, pattern, begin=2, end=12, every=3)
    final, masks = fs.pattern(pattern), {}
    levels = {5: 1 - 0.7**3, 8: 1 - 0.4**3, 11: 1 - 0.1**3, 12: 1.0}  # Zhu and Gupta: 1 − (1 − t)³
    share = 0.0
    for step in range(1, 16):
        train(model, optimizer, step)
        pruner.step()
        assert pruner.share_at(step) == pytest.approx(1 - (1 - min(max(step - 2, 0) / 10, 1)) ** 3)
        share = levels.get(step, share)
        for name in ("0.weight", "2.weight"):
            w = model.get_parameter(name)
            if step < 2:
                assert not pruner.masks
                continue
            mask = torch.from_numpy(pruner.masks[name].to_bool())
            assert not w[~mask].any()  # momentum brings nothing back
            assert pruner.masks[name].count == counted(final, share, tuple(w.shape))
            assert not (mask & ~masks.get(name, torch.ones_like(mask))).any()
            masks[name] = mask
    before = copy.deepcopy(model)
    report = pruner.finish()
    assert [row.name for row in report.tensors if row.reason is None] == ["0.weight", "2.weight"]
    assert model[0].packed.pattern == (final if final._lasting else None)
    x = torch.randn(3, 64)
    torch.testing.assert_close(model(x), before(x))


def counted(pattern: fs.Pattern, share: float, shape: tuple[int, int]) -> int:
    """How many weights are kept when this share of the pattern's sparsity is reached."""
    rows, cols = shape
    match pattern:
        case fs.Unstructured(per="row"):
            return rows * (cols - round(share * pattern.sparsity * cols))
        case fs.Unstructured():
            return rows * cols - round(share * pattern.sparsity * rows * cols)
        case fs.NM():
            return rows * cols * (pattern.of - round(share * pattern.zeros)) // pattern.of
        case fs.TopK():
            return rows * cols * (pattern.of - round(share * (pattern.of - pattern.keep))) // pattern.of
    blocks = rows * cols // 4
    return 4 * (blocks - round(share * pattern.sparsity * blocks))


def test_revive_lets_pruned_weights_return():
    model = made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    masks = {}
    for revive in (False, True):
        trained = copy.deepcopy(model)
        optimizer = torch.optim.SGD(trained.parameters(), lr=1.0)
        pruner = fst.Pruner(trained, "50%", end=8, schedule="constant", revive=revive)
        seen = []
        for step in range(8):
            train(trained, optimizer, step)
            pruner.step()
            seen.append(pruner.masks["0.weight"])
        masks[revive] = seen
        assert all(mask.count == 64 * 48 for mask in seen)
    assert all(mask == masks[False][0] for mask in masks[False])
    assert masks[True][-1] != masks[True][0]


def test_another_pruner_goes_on_where_one_was(tmp_path):
    """Saved and resumed half-way it ends with the very weights."""
    ends = []
    for resumed in (False, True):
        model = made()
        optimizer = torch.optim.AdamW(model.parameters())
        pruner = fst.Pruner(model, "80%", end=8, every=2)
        for step in range(8):
            if resumed and step == 5:
                torch.save([model.state_dict(), optimizer.state_dict(), pruner.state_dict()], tmp_path / "state.pt")
                model, states = made(), torch.load(tmp_path / "state.pt")
                optimizer = torch.optim.AdamW(model.parameters())
                pruner = fst.Pruner(model, "80%", end=8, every=2)
                for what, state in zip((model, optimizer, pruner), states, strict=True):
                    what.load_state_dict(state)
            train(model, optimizer, step)
            pruner.step()
        ends.append([w.clone() for w in model.parameters()])
    for one, other in zip(*ends, strict=True):
        assert torch.equal(one, other)
    state = pruner.state_dict()
    with pytest.raises(fs.FastSparseError, match=r"'9.weight' is no weight that is pruned here"):
        pruner.load_state_dict({"step": 1, "masks": {"9.weight": state["masks"]["0.weight"]}})
    with pytest.raises(fs.FastSparseError, match=r"masks: there is none of '2.weight'"):
        pruner.load_state_dict({"step": 1, "masks": {"0.weight": state["masks"]["0.weight"]}})
    with pytest.raises(fs.FastSparseError, match=r"tensor '2.weight': bits"):
        pruner.load_state_dict({"step": 1, "masks": dict.fromkeys(state["masks"], state["masks"]["0.weight"])})


def test_recipes_choose_and_finishing_early_prunes_the_rest():
    model = made()
    recipe = Recipe(rules=[Rule("^0", "2:4")], default="90%", bits=8)
    pruner = fst.Pruner(model, recipe, end=100, schedule=lambda t: t**2)
    for _ in range(50):
        pruner.step()
    assert pruner.share_at(50) == 0.25
    assert pruner.masks["2.weight"].count == 96 * 64 - round(0.225 * 96 * 64)
    report = {row.name: row for row in pruner.finish().tensors}
    assert (report["0.weight"].pattern, report["0.weight"].bits) == ("2:4", 8)
    assert report["2.weight"].sparsity == pytest.approx(0.9, abs=1e-4)
    assert type(model[4]) is nn.Linear


def test_tied_layers_are_all_packed():
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    model[2].weight = model[0].weight
    pruner = fst.Pruner(model, "50%", end=1)
    pruner.step()
    before, x = copy.deepcopy(model), torch.randn(3, 64)
    report = pruner.finish()
    assert [(row.name, row.pattern) for row in report.tensors if row.reason is None] == [("0.weight", "50%")]
    assert [type(model[at]) for at in (0, 2)] == [fst.SparseLinear] * 2
    torch.testing.assert_close(model(x), before(x))


def test_a_weight_need_not_be_contiguous():
    model = nn.Sequential(nn.Linear(64, 96))
    w = torch.randn(64, 96)
    model[0].weight = nn.Parameter(w.t().clone(memory_format=torch.preserve_format))
    assert not model[0].weight.is_contiguous()
    pruner = fst.Pruner(model, "50%", end=2)
    for _ in range(2):
        pruner.step()
    assert torch.equal(model[0].weight, fst.prune(w.t().contiguous(), "50%"))
    assert pruner.finish().tensors[0].sparsity == 0.5


def test_what_a_pruner_refuses():
    for message, options in {
        "end: expected a number of steps ≥ 1, got 0": {"end": 0},
        "end: expected a number of steps ≥ 3, got 2": {"begin": 3, "end": 2},
        "every: expected a number of steps ≥ 1, got 0": {"end": 2, "every": 0},
        "schedule: expected cubic, linear, constant or a callable, got 'cosine'": {"end": 2, "schedule": "cosine"},
        r"schedule: expected cubic, linear, constant or a callable, got \['cubic'\]": {"end": 2, "schedule": ["cubic"]},
    }.items():
        with pytest.raises(fs.FastSparseError, match=message):
            fst.Pruner(made(), "50%", **options)
    with pytest.raises(fs.FastSparseError, match="Linear has no weight that the recipe prunes"):
        fst.Pruner(nn.Linear(4, 4), "50%", end=2)
    with pytest.raises(fs.FastSparseError, match=r"threshold=0.1, of '0.weight', has no sparsity"):
        fst.Pruner(made(), "threshold=0.1", end=2)
    with pytest.raises(fs.FastSparseError, match="not 'global'"):
        fst.Pruner(made(), Recipe(default="50%", scope="global"), end=2)
    model = made()
    pruner = fst.Pruner(model, "50%", end=2)
    model[0].weight.data[1, 2] = torch.nan
    with pytest.raises(fs.FastSparseError, match=r"tensor '0.weight': .*NaN"):
        pruner.step()
    for schedule, shown in ((lambda t: None, "None"), (lambda t: float("nan"), "nan")):
        pruner = fst.Pruner(made(), "50%", end=2, schedule=schedule)
        with pytest.raises(fs.FastSparseError, match=f"schedule: expected a share of the sparsity at 0.5, got {shown}"):
            pruner.step()
    with pytest.raises(fs.FastSparseError, match="state: expected what state_dict of a Pruner gives"):
        pruner.load_state_dict({})


def test_nothing_is_pruned_before_the_beginning():
    pruner = fst.Pruner(made(), "50%", begin=5, end=5)
    assert [pruner.share_at(step) for step in (0, 4, 5, 6)] == [0, 0, 1, 1]


def test_a_schedule_that_ends_early_is_finished():
    model = made()
    pruner = fst.Pruner(model, "80%", end=2, schedule=lambda t: t / 2)
    pruner.step()
    pruner.step()
    assert pruner.sparsity == pytest.approx(0.4, abs=1e-3)
    assert pruner.finish().sparsity == pytest.approx(0.8, abs=1e-3)
    for again in (pruner.finish, pruner.step):
        with pytest.raises(fs.FastSparseError, match="pruner: it is finished, and its weights are packed"):
            again()
