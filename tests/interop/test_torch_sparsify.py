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
    assert reasons(report)["lm_head.weight"] == "an embedding"
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


def test_transformer_layers_of_torch():
    torch.manual_seed(0)
    dense = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 2).eval()
    model = copy.deepcopy(dense)
    report = fst.sparsify(model, "50%")
    assert packed_names(report) == [f"layers.{i}.linear{j}.weight" for i in (0, 1) for j in (1, 2)]
    dense = pruned(dense, report)
    x = torch.randn(2, 5, 64)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-5)


def test_errors_name_the_tensor():
    with pytest.raises(fs.FastSparseError, match="cannot be replaced in place"):
        fst.sparsify(nn.Linear(64, 64), "50%")
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    model[1].weight.data[3, 4] = torch.nan
    for recipe in ("50%", Recipe(default="50%", scope="global")):
        with pytest.raises(fs.FastSparseError, match=r"tensor '1.weight': .*NaN"):
            fst.sparsify(copy.deepcopy(model), recipe)
    with pytest.raises(fs.FastSparseError, match=r"tensor '0.weight': w: expected a tensor on the CPU"):
        fst.sparsify(nn.Sequential(nn.Linear(64, 64, device="meta")), "50%")


def test_state_of_a_model_goes_to_another():
    model, other = llama(), llama()
    fst.sparsify(model, "50%")
    fst.sparsify(other, "80%")
    other.load_state_dict(model.state_dict())
    tokens = torch.arange(1, 9).view(1, 8)
    with torch.inference_mode():
        assert torch.equal(model(tokens).logits, other(tokens).logits)
