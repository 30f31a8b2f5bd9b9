"""What each layer of a small model is pruned on, where its forward does something unusual with the inputs."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import fastsparse as fs
import fastsparse.torch as fst
from fastsparse.checkpoint import Recipe, Rule
from fastsparse.torch._layers import layers_of
from fastsparse.torch._walk import grams_of

pytestmark = pytest.mark.filterwarnings("ignore:.*tokens are few for:RuntimeWarning")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class Pair(nn.Module):
    """Two layers, called as a function says."""

    def __init__(self, call, first=None):
        super().__init__()
        self.a, self.b = first or nn.Linear(64, 64), nn.Linear(64, 64)
        self.act = nn.ReLU(inplace=True)
        self.call = call

    def forward(self, *inputs):
        return self.call(self, *inputs)


def collect(model, *batches):
    layers, _ = layers_of(model, Recipe.of("50%"))
    with torch.no_grad():
        return grams_of(layers, [lambda batch=batch: model(*batch) for batch in batches], batches, [])


def gram(*inputs):
    x = torch.cat([x.detach().reshape(-1, x.shape[-1]) for x in inputs]).double()
    return (x.T @ x).numpy()


def tokens(*shape):
    return torch.randn(*shape, 64)


def in_place(model, x):
    x = x + 0
    return model.a(x) + model.b(model.act(x))


def test_a_tensor_changed_in_place_is_another_input():
    x = tokens(100)
    found = collect(Pair(in_place), (x,))
    assert np.allclose(found["a.weight"].matrix, gram(x), rtol=1e-4, atol=1e-3)
    assert np.allclose(found["b.weight"].matrix, gram(x.relu()), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("inference", [False, True])
def test_layers_share_a_tensor_whose_changes_would_show(inference):
    with torch.inference_mode(inference):
        x = tokens(100)
    found = collect(Pair(lambda model, x: model.a(x) + model.b(x)), (x,), (x,))
    assert (found["a.weight"] is found["b.weight"]) == (not inference)
    assert all(np.allclose(one.matrix, gram(x, x), rtol=1e-4, atol=1e-3) for one in found.values())


@pytest.mark.parametrize("first", [True, False])
def test_convolutions_share_with_nothing(first):
    call = (lambda model, x: model.a(x) + model.b(x)) if first else (lambda model, x: model.b(x) + model.a(x))
    x = tokens(4, 64)
    found = collect(Pair(call, nn.Conv1d(64, 64, 1)), (x,))
    assert np.allclose(found["b.weight"].matrix, gram(x), rtol=1e-4, atol=1e-3)
    assert np.allclose(found["a.weight"].matrix, gram(x.mT), rtol=1e-4, atol=1e-3)


def test_layers_called_again_and_again_share_where_all_calls_agree():
    def twice(model, x, y):
        return sum(model.a(z) + model.b(z) for z in (x, y))

    def one_after_the_other(model, x, y):
        return model.a(x) + model.a(y) + model.b(x) + model.b(y)

    x, y = tokens(100), tokens(100)
    for call, shares in ((twice, True), (one_after_the_other, False)):
        found = collect(Pair(call), (x, y), (y, x))
        assert (found["a.weight"] is found["b.weight"]) == shares
        assert all(np.allclose(one.matrix, gram(x, y, x, y), rtol=1e-4, atol=1e-3) for one in found.values())


@pytest.mark.parametrize(
    "call",
    [
        lambda model, x: model.a(x) + model.b(x) + model.a(2 * x + 1),
        lambda model, x: model.a(x) + model.b(x) + model.b(2 * x + 1),
        lambda model, x: model.a(x) + model.b(x) + model.b(x),
        lambda model, x: model.a(x) + (model.b(x) if len(x) > 50 else 0),
        lambda model, x: model.a(x) + model.b(x if len(x) > 50 else x + 1),
    ],
    ids=["the first again", "the second again", "the same again", "one in some batches", "another in some batches"],
)
def test_layers_that_share_some_inputs_only_are_refused(call):
    message = r"'b\.weight': its input is that of 'a\.weight' in some calls and not in others; exclude one"
    with pytest.raises(fs.FastSparseError, match=message):
        collect(Pair(call), (tokens(100),), (tokens(50),))


def test_a_layer_that_begins_in_a_later_batch_has_its_own_inputs():
    x, y = tokens(40), tokens(100)
    found = collect(Pair(lambda model, x: model.a(x) + (model.b(x) if len(x) > 50 else 0)), (x,), (y,))
    assert np.allclose(found["a.weight"].matrix, gram(x, y), rtol=1e-4, atol=1e-3)
    assert np.allclose(found["b.weight"].matrix, gram(y), rtol=1e-4, atol=1e-3)


def test_a_layer_called_by_keyword():
    model, x = Pair(lambda model, x: model.a(input=x) + model.b(input=2 * x)), tokens(300)
    found = collect(model, (x,))
    assert np.allclose(found["b.weight"].matrix, gram(2 * x), rtol=1e-4, atol=1e-3)
    assert len(fst.prune_model(model, "50%", [x]).pruned) == 2


def test_every_call_counts_however_many_a_batch_makes():
    model = Pair(lambda model, *pieces: [model.b(model.a(piece).relu()) for piece in pieces])
    batches = [tuple(tokens(50) for _ in range(count)) for count in (1, 4, 4)]
    found = collect(model, *batches)
    everything = [x for batch in batches for x in batch]
    assert found["b.weight"].tokens == 450
    assert np.allclose(found["a.weight"].matrix, gram(*everything), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("sequential", [True, False])
def test_blocks_may_change_their_input_in_place(sequential):
    class Block(nn.Module):
        def __init__(self, in_place):
            super().__init__()
            self.f, self.in_place = nn.Linear(64, 64), in_place

        def forward(self, x):
            y = self.f(x).relu()
            if not self.in_place:
                return x + y
            x += y
            return x

    class Blocks(nn.Module):
        def __init__(self, in_place):
            super().__init__()
            torch.manual_seed(0)
            self.blocks = nn.ModuleList(Block(in_place) for _ in range(3))

        def forward(self, x):
            x = x * 1
            for block in self.blocks:
                x = block(x)
            return x

    batches = [tokens(256), tokens(256)]
    before = [x.clone() for x in batches]
    weights = []
    for in_place in (True, False):
        model = Blocks(in_place)
        fst.prune_model(model, "50%", batches, sequential=sequential)
        weights.append([block.f.weight for block in model.blocks])
    assert all(map(torch.equal, *weights))
    assert all(map(torch.equal, batches, before))


def test_padding_is_not_looked_for_among_routed_tokens():
    class Routed(nn.Module):
        """Two experts, each given all tokens in an order of its own."""

        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(64, 64) for _ in range(2))

        def forward(self, x):
            flat = x.flatten(0, 1)
            return x + sum(expert(flat[order(at, len(flat))]) for at, expert in enumerate(self.experts)).view_as(x)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(Routed() for _ in range(2))

        def forward(self, inputs, attention_mask):
            for block in self.blocks:
                inputs = block(inputs)
            return inputs

    def order(at, count):
        return torch.randperm(count, generator=torch.Generator().manual_seed(at))

    mask = torch.ones(2, 150, dtype=torch.int64)
    mask[0, 40:] = 0
    report = fst.prune_model(Model(), "50%", [{"inputs": tokens(2, 150), "attention_mask": mask}])
    assert [row.tokens for row in report.pruned] == [300] * 4


def test_an_input_of_zeros_says_nothing():
    class Zeros(Pair):
        def forward(self, x):
            return self.a(x) + self.b(torch.zeros_like(x))

    for method in ("sparsegpt", "alps", "wanda"):
        report = fst.prune_model(Zeros(None), "50%", [tokens(300)], method=method, refine=0)
        rows = {row.name: row for row in report.pruned}
        assert rows["a.weight"].method == method
        assert (rows["b.weight"].method, rows["b.weight"].reason) == ("magnitude", "its inputs were all zero")
        assert report.sparsity == 0.5


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d])
def test_convolutions_without_a_batch(kind):
    model, sides = nn.Sequential(kind(16, 64, 3)), (40,) if kind is nn.Conv1d else (9, 9)
    x = torch.randn(2, 16, *sides)
    apart, together = collect(model, (x[0],), (x[1],)), collect(model, (x,))
    assert np.allclose(apart["0.weight"].matrix, together["0.weight"].matrix, rtol=1e-4, atol=1e-3)


def test_a_class_of_another_library_may_have_the_same_name():
    class Conv1D(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(64, 64))

        def forward(self, x):
            return x @ self.weight.T

    model = nn.Sequential(nn.Linear(64, 64), Conv1D())
    before = model[1].weight.clone()
    report = fst.prune_model(model, "50%", [tokens(300)])
    assert [row.name for row in report.pruned] == ["0.weight"]
    assert torch.equal(model[1].weight, before)


class Experts(nn.Module):
    """Four experts that are one parameter, and a layer after them."""

    def __init__(self, call):
        super().__init__()
        self.experts_w = nn.Parameter(torch.randn(4, 64, 64), requires_grad=False)
        self.down = nn.Linear(64, 64)
        self.call = call

    def forward(self, x):
        return self.down(self.call(x, self.experts_w))


@pytest.mark.parametrize("expert", [0, 1, 3])
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_an_expert_repeated_over_a_batch_is_given_all_of_it(expert, batch):
    x = tokens(batch, 30)
    found = collect(Experts(lambda x, w: torch.bmm(x, w[expert].expand(len(x), 64, 64))), (x,))
    assert set(found) == {f"experts_w[{expert}]", "down.weight"}
    assert np.allclose(found[f"experts_w[{expert}]"].matrix, gram(x), rtol=1e-4, atol=1e-3)


def test_some_experts_of_a_parameter():
    x = tokens(2, 30)
    found = collect(Experts(lambda x, w: torch.bmm(x, w[2:]).sum(0)), (x,))
    assert set(found) == {"experts_w[2]", "experts_w[3]", "down.weight"}
    assert np.allclose(found["experts_w[3]"].matrix, gram(x[1]), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "call",
    [
        lambda x, w: torch.bmm(x, w[::2]).sum(0),
        lambda x, w: nn.functional.linear(x, w.flatten(0, 1)).unflatten(-1, (4, 64)).sum(-2),
    ],
    ids=["every other one", "one matrix"],
)
def test_products_that_do_not_tell_the_experts_leave_them_dense(call):
    model, x = Experts(call), tokens(2, 150)
    dense = model.experts_w.clone()
    report = fst.prune_model(model, "50%", [x])
    assert [row.name for row in report.pruned] == ["down.weight"]
    assert torch.equal(model.experts_w, dense)


def unreached(x, w):
    return torch.bmm(torch.stack([x, x, x, torch.zeros_like(x)]), w).sum(0)


@pytest.mark.parametrize("allocation", ["owl", "loss"])
def test_a_rule_for_a_parameter_holds_for_its_experts_under_an_allocation(allocation):
    recipe = Recipe((Rule("experts_w$", "25%"),), default="75%")
    model = Experts(lambda x, w: torch.bmm(x.expand(4, -1, -1), w).sum(0))
    report = fst.prune_model(model, recipe, [tokens(300)], allocation=allocation)
    assert {row.name: row.pattern for row in report.pruned} == {
        **{f"experts_w[{i}]": "25%" for i in range(4)},
        "down.weight": "75%",
    }


def test_an_expert_that_saw_no_token():
    report = fst.prune_model(Experts(unreached), "50%", [tokens(300)])
    assert [(row.method, row.tokens) for row in report.pruned[2:4]] == [("sparsegpt", 300), ("magnitude", 0)]
    with pytest.raises(fs.FastSparseError, match=r"allocation: layer 'experts_w\[3\]' saw no token; exclude it"):
        fst.prune_model(Experts(unreached), "50%", [tokens(300)], allocation="owl")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 64)

    def forward(self, x, other=None):
        return x + self.linear(x if other is None else x + other)


class EncoderDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.before, self.after = nn.Linear(64, 64), nn.Linear(64, 64)
        self.encoder, self.decoder = (nn.ModuleList(Block() for _ in range(3)) for _ in range(2))

    def forward(self, x, decoder_x, attention_mask, decoder_attention_mask):
        x = self.before(x)
        for block in self.encoder:
            x = block(x)
        for block in self.decoder:
            decoder_x = block(decoder_x, x)
        return self.after(decoder_x)


@pytest.mark.parametrize("sequential", [True, False])
def test_no_mask_is_that_of_layers_outside_of_both_stacks(sequential):
    mask = torch.ones(4, 64)
    mask[:, 10:] = 0
    batch = {"x": tokens(4, 64), "decoder_x": tokens(4, 64)}
    batch |= {"attention_mask": mask, "decoder_attention_mask": torch.ones(4, 64)}
    report = fst.prune_model(EncoderDecoder(), "50%", [batch], method="wanda", refine=0, sequential=sequential)
    seen = {row.name: row.tokens for row in report.pruned}
    assert {seen[name] for name in ("before.weight", "after.weight", "decoder.0.linear.weight")} == {256}
    assert seen["encoder.0.linear.weight"] == 40


@pytest.mark.parametrize("batches", [tokens(300), {"x": tokens(300)}])
def test_a_single_batch_goes_in_a_list(batches):
    with pytest.raises(fs.FastSparseError, match=r"batches: one (Tensor|dict) is a single batch; put it in a list"):
        fst.prune_model(nn.Sequential(nn.Linear(64, 64)), "50%", batches)


def test_what_is_packed_is_said_to_be():
    model = nn.Sequential(fst.SparseLinear.from_linear(nn.Linear(64, 64), "50%"), nn.Linear(64, 64))
    report = fst.prune_model(model, "50%", [tokens(300)])
    assert {row.name: row.reason for row in report.layers if row.name.endswith("weight")} == {
        "0.weight": "packed already",
        "1.weight": None,
    }


def test_one_warning_about_the_layer_with_the_fewest_tokens_for_its_columns():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 96), nn.Linear(96, 64), nn.Linear(64, 64))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fst.prune_model(model, "50%", [tokens(200)])
        fst.prune_model(model, "50%", [tokens(384)])
        fst.prune_model(model, "50%", [tokens(200)], method="magnitude")
    said = [(str(warning.message), warning.filename) for warning in caught]
    assert said == [
        ("layer '2.weight': 200 tokens are few for 96 columns; at least 384 are advised", __file__),
    ]
