"""Whole models: which layers are replaced, and that the rest of torch still works on them."""

import copy

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.nn.utils import prune as torch_prune

import fastsparse as fs
import fastsparse.torch as fst
from fastsparse.checkpoint import Recipe, Rule


def llama(**options) -> transformers.LlamaForCausalLM:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
        **options,
    )
    return transformers.LlamaForCausalLM(config).eval()


def pruned(model: nn.Module, report) -> nn.Module:
    """The dense model with the same weights pruned."""
    twin = copy.deepcopy(model)
    for tensor in report.tensors:
        if tensor.pattern:
            w = twin.get_parameter(tensor.name).data
            fst.prune(w, tensor.pattern, out=w)
    return twin


def packed_names(report) -> list[str]:
    return [tensor.name for tensor in report.tensors if tensor.sparsity is not None]


def reasons(report) -> dict[str, str]:
    return {tensor.name: tensor.reason for tensor in report.tensors if tensor.reason}


@pytest.mark.parametrize("pattern", ["50%", "2:4", "75%/4x1"])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
def test_a_llama_generates_what_the_pruned_dense_one_does(pattern, kind):
    dense = llama().to(kind)
    model = copy.deepcopy(dense)
    report = fst.sparsify(model, pattern)
    assert len(packed_names(report)) == 14
    assert isinstance(model.model.layers[1].mlp.down_proj, fst.SparseLinear)
    assert type(model.lm_head) is nn.Linear
    assert reasons(report)["lm_head.weight"] == "an output layer"
    assert report.bytes_before == sum(w.numel() * w.element_size() for w in dense.parameters())
    dense = pruned(dense, report)
    tokens = torch.arange(1, 25).view(2, 12)
    with torch.inference_mode():
        ours, theirs = model(tokens).logits, dense(tokens).logits
    tolerance = 1e-5 if kind is torch.float32 else 3e-2
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    if kind is torch.float32:
        options = {"max_new_tokens": 8, "do_sample": False}
        assert torch.equal(model.generate(tokens, **options), dense.generate(tokens, **options))


def test_a_model_that_is_pruned_already():
    dense = llama()
    for module in dense.model.layers.modules():
        if isinstance(module, nn.Linear):
            fst.prune(module.weight.data, "75%", out=module.weight.data)
    model = copy.deepcopy(dense)
    report = fst.sparsify(model, "nonzero")
    assert report.sparsity == 0.75
    for name in packed_names(report):
        assert torch.equal(
            fst.unpack(model.get_submodule(name.removesuffix(".weight")).packed), dense.get_parameter(name)
        )


def test_rules_and_global_scope():
    model = llama()
    recipe = Recipe(rules=[Rule("mlp", "2:4"), Rule("layers.0.*q_proj", skip=True)], default="50%", scope="global")
    weights = {name: w.detach().numpy().copy() for name, w in model.named_parameters()}
    report = fst.sparsify(model, recipe)
    rows = {tensor.name: tensor for tensor in report.tensors}
    assert rows["model.layers.1.mlp.up_proj.weight"].pattern == "2:4"
    assert reasons(report)["model.layers.0.self_attn.q_proj.weight"].startswith("skipped by rule")
    names = [name for name in packed_names(report) if "self_attn" in name]
    magnitudes = np.sort(np.abs(np.concatenate([weights[name].reshape(-1) for name in names])))
    cut = magnitudes[round(0.5 * magnitudes.size) - 1]
    for name in names:
        mask = model.get_submodule(name.removesuffix(".weight")).packed.mask.to_bool()
        assert np.array_equal(mask, np.abs(weights[name]) > cut)


def test_an_output_layer_tied_to_its_embedding_stays_dense():
    model = llama(tie_word_embeddings=True)
    report = fst.sparsify(model, Recipe(default="50%", include=["embed_tokens", "lm_head"]))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert reasons(report)["model.embed_tokens.weight"] == "of a Embedding, not a Linear"
    untied = llama()
    report = fst.sparsify(untied, Recipe(default="50%", include=["lm_head"]))
    assert "lm_head.weight" in packed_names(report)
    assert isinstance(untied.lm_head, fst.SparseLinear)


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.again = self.first
        self.other = nn.Linear(64, 64)
        self.other.weight = self.first.weight

    def forward(self, x):
        return self.other(self.again(self.first(x)))


def test_modules_and_weights_in_several_places():
    model = Shared().eval()
    dense = copy.deepcopy(model)
    report = fst.sparsify(model, "50%")
    assert model.first is model.again
    assert model.first.packed == model.other.packed
    assert model.other.bias is not model.first.bias
    dense = pruned(dense, report)
    x = torch.randn(3, 64)
    torch.testing.assert_close(model(x), dense(x))


def test_what_stays_dense_and_why():
    class Mine(nn.Linear):
        pass

    def hook(*_):
        return None

    model = nn.ModuleDict(
        {
            "subclass": Mine(64, 64),
            "hook": nn.Linear(64, 64),
            "masked": nn.Linear(64, 64),
            "small": nn.Linear(8, 8),
            "wide": nn.Linear(64, 64).double(),
            "grows": nn.Linear(64, 64),
            "conv": nn.Conv1d(64, 64, 3),
            "own": nn.Linear(64, 64),
        }
    )
    model["hook"].register_forward_hook(hook)
    model["own"].forward = lambda x: x
    torch_prune.l1_unstructured(model["masked"], "weight", 0.5)
    report = fst.sparsify(model, Recipe(rules=[Rule("grows", "0%")], default="50%"))
    assert packed_names(report) == []
    assert {name: reason for name, reason in reasons(report).items() if "bias" not in name} == {
        "subclass.weight": "of a Mine, not a Linear",
        "hook.weight": "the layer has hooks",
        "masked.weight_orig": "the weight is computed from it; make that permanent first",
        "small.weight": "no more than 2048 elements",
        "wide.weight": "layers of dtype F64 are not computed packed",
        "grows.weight": "packed it would be larger, 17416 bytes",
        "conv.weight": "of a Conv1d, not a Linear",
        "own.weight": "the layer has a forward of its own",
    }


X, PADDING = torch.randn(2, 6, 64), torch.arange(6).expand(2, 6) >= torch.tensor([[6], [3]])


def encoder(**options) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2).eval()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("padding", [None, PADDING], ids=["whole", "padded"])
def test_transformer_encoders_of_torch(activation, padding):
    """In evaluation torch's own would compute with the dense weights, on nested tensors where there is padding."""
    dense = encoder(activation=activation)
    model = copy.deepcopy(dense)
    report = fst.sparsify(model, "50%")
    weights = ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight")
    assert packed_names(report) == [f"layers.{i}.{name}" for i in (0, 1) for name in weights]
    assert isinstance(model.layers[0].self_attn, nn.MultiheadAttention)
    dense = pruned(dense, report)
    shown = slice(None) if padding is None else ~padding
    compiled = torch.compile(model, backend="aot_eager")
    for train in (False, True):
        for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
            with mode():
                expected = dense.train(train)(X, src_key_padding_mask=padding)[shown]
                for made in (model.train(train), compiled):
                    ours = made(X, src_key_padding_mask=padding)[shown]
                    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        program = torch.export.export(model.eval(), (X,))
    assert sum(node.target is torch.ops.fastsparse.linear.default for node in program.graph.nodes) == 4


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_whole_transformers_of_torch():
    torch.manual_seed(0)
    dense = nn.Transformer(64, 4, 1, 1, 128, batch_first=True).eval()
    model = copy.deepcopy(dense)
    dense = pruned(dense, fst.sparsify(model, "50%"))
    masks = dict.fromkeys(("src_key_padding_mask", "tgt_key_padding_mask", "memory_key_padding_mask"), PADDING)
    with torch.inference_mode():
        ours, expected = model(X, X, **masks), dense(X, X, **masks)
    torch.testing.assert_close(ours[~PADDING], expected[~PADDING], rtol=1e-4, atol=1e-5)


class Int8Weight(torch.Tensor):
    """A weight without numbers of its dtype in memory, as torchao makes them."""

    @staticmethod
    def __new__(cls, q):
        return torch.Tensor._make_wrapper_subclass(cls, q.shape, dtype=torch.float32)

    def __init__(self, q):
        self.q = q

    @classmethod
    def __torch_dispatch__(cls, f, types, args=(), kwargs=None):
        if f is torch.ops.aten.detach.default:
            return cls(args[0].q)
        return f(*torch.utils._pytree.tree_map_only(cls, lambda w: w.q * 0.01, args), **(kwargs or {}))


def test_a_weight_that_is_no_plain_tensor_stays_and_is_named():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    weight = Int8Weight(torch.randint(-127, 128, (64, 64), dtype=torch.int8))
    model[1].weight = nn.Parameter(weight, requires_grad=False)
    assert reasons(fst.sparsify(model, "50%"))["1.weight"] == "the weight is a Int8Weight, not a plain tensor"
    assert [type(layer) for layer in model] == [fst.SparseLinear, nn.Linear]
    assert model(torch.ones(1, 64)).shape == (1, 64)
    for call in (
        lambda: fst.SparseLinear.from_linear(model[1]),
        lambda: fst.prune(model[1].weight, "50%"),
        lambda: fst.pack(model[1].weight),
    ):
        with pytest.raises(fs.FastSparseError, match=r"w: a Int8Weight has no numbers in memory; .*dequantize"):
            call()


def test_what_is_packed_already_is_reported():
    model = Shared().eval()
    first = fst.sparsify(model, "2:4")
    again = fst.sparsify(model, "75%")
    rows = {tensor.name: tensor for tensor in again.tensors}
    assert list(rows) == ["first.weight", "first.bias", "other.weight", "other.bias"]
    for name in ("first.weight", "other.weight"):
        assert rows[name].reason == "packed already"
        assert (rows[name].sparsity, rows[name].pattern, rows[name].dtype) == (0.5, "2:4", "F32")
        assert rows[name].bytes_before == 64 * 64 * 4
        assert rows[name].bytes_after == model.first.packed.nbytes
    assert (again.packed, again.sparsity, again.bytes_after) == (0, 0.5, first.bytes_after)
    assert reasons(fst.sparsify(model.first, "75%"))["weight"] == "packed already"


def test_a_model_becomes_dense_again():
    dense = nn.Sequential(Shared(), encoder()).eval()
    model = copy.deepcopy(dense)
    dense = pruned(dense, fst.sparsify(model, "50%"))
    assert model[1].layers[0].activation_relu_or_gelu == 0
    assert fst.to_dense(model) is model
    assert not any(isinstance(module, fst.SparseLinear) for module in model.modules())
    assert model[0].first is model[0].again
    assert not model[0].first.training
    assert model[1].layers[0].activation_relu_or_gelu == 1
    assert model.state_dict().keys() == dense.state_dict().keys()
    for name, weight in dense.state_dict().items():
        assert torch.equal(model.get_parameter(name), weight)
    assert torch.equal(model(X), dense(X))
    assert type(fst.to_dense(fst.SparseLinear(8, 4))) is nn.Linear
    fst.sparsify(model, "nonzero")
    model[0].other.register_forward_hook(lambda *_: None)
    with pytest.raises(fs.FastSparseError, match=r"layer '0\.other': the layer has hooks; remove that first"):
        fst.to_dense(model)
    assert isinstance(model[0].first, fst.SparseLinear)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning")
def test_onnx_takes_the_model_made_dense(tmp_path):
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    model = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 64, bias=False)).eval()
    fst.sparsify(model, "50%")
    dense = fst.to_dense(copy.deepcopy(model))
    x = torch.randn(3, 64)
    torch.onnx.export(dense, (x,), str(tmp_path / "model.onnx"), dynamo=False)
    made = onnx.load(str(tmp_path / "model.onnx"))
    (ours,) = ReferenceEvaluator(made).run(None, {made.graph.input[0].name: x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(model(x), torch.from_numpy(ours), rtol=1e-4, atol=1e-5)


def test_layers_know_their_names():
    model = Shared().eval()
    fst.sparsify(model, "50%")
    copy.deepcopy(model).other.weight.sum()
    with pytest.warns(UserWarning, match="layer 'other': code computes with its dense weight"):
        [model.other.weight.sum() for _ in range(3)]
    model.first.values = torch.ones(3)
    with pytest.raises(fs.FormatError, match=r"layer 'first': .*values"):
        model(torch.ones(1, 64))


def test_errors_name_the_tensor():
    with pytest.raises(fs.FastSparseError, match="cannot be replaced in place"):
        fst.sparsify(nn.Linear(64, 64), "50%")
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    model[1].weight.data[3, 4] = torch.nan
    meta = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64, device="meta"))
    for made, recipe, message in (
        (model, "50%", r"tensor '1.weight': .*NaN"),
        (model, Recipe(default="50%", scope="global"), r"tensor '1.weight': .*NaN"),
        (meta, "50%", r"tensor '1.weight': w: expected a tensor on the CPU"),
        (model, Recipe(default="50%", rules=[Rule("1", fs.NM(zeros=1, of=3, tail="error"))]), r"tensor '1.weight': "),
    ):
        before = [type(layer) for layer in made], made[0].weight.clone()
        with pytest.raises(fs.FastSparseError, match=message):
            fst.sparsify(made, recipe)
        assert [type(layer) for layer in made] == before[0]  # none has been replaced
        assert torch.equal(made[0].weight, before[1])


def test_state_of_a_model_goes_to_another():
    model, other = llama(), llama()
    fst.sparsify(model, "50%")
    fst.sparsify(other, "80%")
    other.load_state_dict(model.state_dict())
    tokens = torch.arange(1, 9).view(1, 8)
    with torch.inference_mode():
        assert torch.equal(model(tokens).logits, other(tokens).logits)
