"""Layers other than linear ones: Conv1D, convolutions, experts in one parameter, attentions of torch."""

import copy
import io
import itertools
import pickle
import warnings

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

import fastsparse as fs
import fastsparse.torch as fst
from fastsparse import checkpoint
from fastsparse.checkpoint import Recipe


class Experts(nn.Module):
    """Experts in one parameter; `how` multiplies."""

    def __init__(self, shape, how):
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(shape))
        self.w1_bias = nn.Parameter(torch.randn(shape[0], 5))
        self.how = how

    def forward(self, x):
        return HOW[self.how](x, self.w1)


IDS = torch.tensor([2, 0, 1, 2])
ENDS = torch.tensor([3, 3, 5], dtype=torch.int32)
# Weights are [3, 24, 48]; x is [5, 48] where they are transposed in the product, otherwise [5, 24].
HOW = {
    "linear": lambda x, w: torch.stack([F.linear(x, w[i]) for i in range(3)]),
    "linear 3-D": lambda x, w: F.linear(x.expand(2, 5, 48).transpose(0, 1), w[1]),
    "vector": lambda x, w: F.linear(x[0], w[2]) + w[2] @ x[0],
    "matmul": lambda x, w: torch.stack([x @ w[torch.tensor(i)] for i in range(3)]),
    "addmm": lambda x, w: torch.addmm(torch.ones(48), x, w[1], beta=2, alpha=3),
    "bmm": lambda x, w: torch.bmm(x.expand(3, 5, 24), w),
    "left": lambda x, w: w[0] @ x.t(),
    "gathered": lambda x, w: torch.bmm(w[IDS], x[:4].unsqueeze(-1)).squeeze(-1),
    "transposed": lambda x, w: torch.bmm(x.expand(3, 5, 48), w.transpose(1, 2)),
    "unbound": lambda x, w: torch.cat([x @ m.mT for m in w]),
    "rows": lambda x, w: torch.cat([x @ part.t() for part in w[1].split([8, 16])], -1) + F.linear(x, w[0][:24]),
    "grouped": lambda x, w: F.grouped_mm(x, w.transpose(-2, -1), offs=ENDS),
}
TRANSPOSED = {"matmul", "addmm", "bmm"}


@pytest.mark.parametrize("how", HOW)
def test_products_with_experts_are_computed_packed(how):
    """With no warning about dense weights, in every mode, and with gradients to the activations."""
    if how == "grouped" and not hasattr(F, "grouped_mm"):
        pytest.skip("this torch has no grouped_mm")
    torch.manual_seed(0)
    dense = Experts((3, 24, 48), how)
    model = copy.deepcopy(dense)
    report = fst.sparsify(model, "50%")
    assert [(row.name, row.reason) for row in report.tensors] == [("w1", None), ("w1_bias", "a bias")]
    fst.prune(dense.w1.data, "50%", out=dense.w1.data)
    x = torch.randn(5, 24 if how in TRANSPOSED else 48)
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-5)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    model(ours).square().sum().backward()
    dense(theirs).square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)
    if how not in ("addmm", "grouped"):  # which autocast does not cover, or whose dense form has other roundings
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            torch.testing.assert_close(model(x).float(), dense(x).float(), rtol=5e-2, atol=5e-1)


@pytest.mark.parametrize("how", ["linear", "matmul"])
def test_experts_are_copied_saved_and_loaded(how, tmp_path):
    torch.manual_seed(0)
    model = Experts((3, 24, 44), how)  # rows that do not end on bytes
    dense = copy.deepcopy(model)
    save_file({"w1": dense.w1.data, "w1_bias": dense.w1_bias.data}, tmp_path / "dense.safetensors")
    checkpoint.compress(tmp_path / "dense.safetensors", tmp_path / "packed.safetensors", "50%")
    fst.sparsify(model, "50%")
    x = torch.randn(5, 24 if how == "matmul" else 44)
    y = x @ model.w1[0] if how == "matmul" else F.linear(x, model.w1[0])
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other) is type(model)
        assert torch.equal(model(x), other(x))
    assert type(model).__name__ == "Experts"
    assert isinstance(model, Experts)
    state = model.state_dict()
    assert sorted(state) == ["w1", "w1.bitmask", "w1.compressed", "w1.row_offsets", "w1.shape", "w1_bias"]
    save_file(state, tmp_path / "again.safetensors")
    packed = [checkpoint.open(tmp_path / f"{name}.safetensors")["w1"] for name in ("packed", "again")]
    assert packed[0] == packed[1] == fst.compress(dense.w1, "50%")
    for start in (dense, model):
        fresh = copy.deepcopy(start)
        report = fst.load(fresh, tmp_path / "packed.safetensors")
        assert report.packed == 1
        assert torch.equal(fresh(x), model(x))
    fresh = Experts((3, 24, 44), how)
    fst.sparsify(fresh, "80%")
    fresh.load_state_dict(load_file(tmp_path / "again.safetensors"))
    assert torch.equal(fresh(x)[0], y)
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert half.w1.dtype == torch.bfloat16
    torch.testing.assert_close(half(x.bfloat16()).float(), model(x), rtol=5e-2, atol=5e-1)
    with pytest.raises(RuntimeError, match=r"Missing key.*w1\.compressed"):
        fresh.load_state_dict({"w1_bias": state["w1_bias"]})
    again = fst.sparsify(model, "75%")
    assert {row.name: row.reason for row in again.tensors} == {"w1": "packed already", "w1_bias": "a bias"}
    back = fst.to_dense(model)
    assert type(back) is Experts
    assert torch.equal(back.w1, fst.prune(dense.w1.detach(), "50%"))
    assert isinstance(back.w1, nn.Parameter)


def test_what_reads_a_packed_parameter_gets_it_dense_and_is_warned():
    torch.manual_seed(0)
    model = nn.ModuleDict({"experts": Experts((3, 24, 48), "linear")})
    fst.sparsify(model, "50%")
    w = model["experts"].w1
    assert (w.shape, w.dtype, w.device.type, w[1].shape) == ((3, 24, 48), torch.float32, "cpu", (24, 48))
    assert (w.abs() > 0).sum() == 3 * 24 * 24
    with pytest.warns(UserWarning, match=r"layer 'experts\.w1': code computes with its dense weight"):
        total = torch.einsum("eij->", w)
    assert total == w.sum()
    for change in (
        lambda: w.mul_(2),
        lambda: w[0].zero_(),
        lambda: setattr(model["experts"], "w1", nn.Parameter(torch.zeros(3, 24, 48))),
    ):
        with pytest.raises(fs.FastSparseError, match="read-only"):
            change()


def test_compiled_and_exported_models_unpack_experts():
    torch.manual_seed(0)
    model = Experts((3, 24, 48), "linear")
    fst.sparsify(model, "50%")
    x = torch.randn(5, 48)
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), model(x))
        torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))


def attention(model, x, memory, **options):
    return model(x, memory, memory, **options)


@pytest.mark.parametrize(("kdim", "bias", "first"), list(itertools.product((None, 40), (True, False), (True, False))))
def test_attentions_of_torch(kdim, bias, first):
    torch.manual_seed(0)
    dense = nn.MultiheadAttention(64, 4, bias=bias, batch_first=first, kdim=kdim, vdim=kdim, add_bias_kv=bias).eval()
    model = copy.deepcopy(dense)
    report = fst.sparsify(model, "50%")
    names = [row.name for row in report.tensors if row.reason is None]
    projections = ["in_proj_weight"] if kdim is None else ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
    assert sorted(names) == sorted([*projections, "out_proj.weight"])
    for name in names:
        fst.prune(dense.get_parameter(name).data, "50%", out=dense.get_parameter(name).data)
    x, memory = torch.randn(5, 6, 64), torch.randn(5, 6, kdim or 64)
    mask = torch.ones(6, 6, dtype=torch.bool).triu(1) if first else torch.ones(5, 5, dtype=torch.bool).triu(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
            for options in ({}, {"need_weights": False}, {"attn_mask": mask}):
                with mode():
                    ours, theirs = attention(model, x, memory, **options), attention(dense, x, memory, **options)
                    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
                    if kdim is None:
                        torch.testing.assert_close(model(x, x, x), dense(x, x, x), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(pickle.loads(pickle.dumps(model))(x, memory, memory)[0], model(x, memory, memory)[0])
    fresh = nn.MultiheadAttention(64, 4, bias=bias, batch_first=first, kdim=kdim, vdim=kdim, add_bias_kv=bias).eval()
    fst.sparsify(fresh, "75%")
    fresh.load_state_dict(model.state_dict())
    back = fst.to_dense(fresh)
    assert back.state_dict().keys() == dense.state_dict().keys()
    assert all(torch.equal(back.state_dict()[name], w) for name, w in dense.state_dict().items())


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
def test_conv1d_of_transformers(kind, tmp_path):
    torch.manual_seed(0)
    dense = nn.Sequential(Conv1D(96, 64), Conv1D(64, 96)).to(kind)
    model = copy.deepcopy(dense)
    fst.sparsify(model, Recipe(default="2:4"))
    assert [type(layer) for layer in model] == [fst.SparseConv1D] * 2
    assert (model[0].nx, model[0].nf, tuple(model[0].weight.shape)) == (64, 96, (64, 96))
    for layer in dense:
        fst.prune(layer.weight.data, "2:4", out=layer.weight.data)
    x = torch.randn(2, 3, 64).to(kind)
    bound = 1e-5 if kind is torch.float32 else 5e-2
    torch.testing.assert_close(model(x), dense(x), rtol=bound, atol=bound)
    assert torch.equal(model[1].weight, dense[1].weight)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    assert checkpoint.open(tmp_path / "model.safetensors")["0.weight"] == fst.pack(dense[0].weight)
    fresh = nn.Sequential(Conv1D(96, 64), Conv1D(64, 96)).to(kind)
    assert fst.load(fresh, tmp_path / "model.safetensors").packed == 2
    assert torch.equal(fresh(x), model(x))
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    back = fst.to_dense(fresh)
    assert [type(layer) for layer in back] == [Conv1D] * 2
    assert torch.equal(back[0].weight, dense[0].weight)
    eight = copy.deepcopy(back)
    rows = fst.sparsify(eight, "nonzero", weight_bits=8).tensors
    assert [row.bits for row in rows if row.reason is None] == [None, None]
    assert torch.equal(eight(x), model(x))


@pytest.mark.parametrize(
    ("dense", "shape"),
    [
        (nn.Conv1d(64, 96, 1), (2, 64, 7)),
        (nn.Conv1d(64, 96, 1, bias=False, padding="same"), (64, 7)),
        (nn.Conv2d(64, 96, 1, stride=(2, 1)), (2, 64, 5, 6)),
        (nn.Conv3d(64, 96, 1), (2, 64, 2, 3, 4)),
    ],
    ids=str,
)
def test_convolutions_with_kernels_of_one(dense, shape):
    model = nn.Sequential(copy.deepcopy(dense))
    assert fst.sparsify(model, "75%").packed == 1
    assert type(model[0]) is fst.SparseConv
    fst.prune(dense.weight.data, "75%", out=dense.weight.data)
    x = torch.randn(shape)
    torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-5)
    fresh = nn.Sequential(copy.deepcopy(dense))
    fst.sparsify(fresh, "80%")
    fresh.load_state_dict(model.state_dict())
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(fresh, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), dense(x), rtol=1e-4, atol=1e-5)
    back = fst.to_dense(fresh)[0]
    assert torch.equal(back(x), dense(x))
    assert repr(back).replace(", bias=False", "") == repr(dense).replace(", bias=False", "").replace(
        ", padding=same", ""
    )


def test_what_stays_dense():
    class Own(nn.Conv1d):
        pass

    model = nn.ModuleDict(
        {
            "wide": nn.Conv2d(64, 64, 3),
            "groups": nn.Conv1d(128, 128, 1, groups=2),
            "padded": nn.Conv1d(64, 64, 1, padding=1),
            "own": Own(64, 64, 1),
            "bilinear": nn.Bilinear(64, 64, 3),
        }
    )
    report = fst.sparsify(model, "50%")
    reasons = {row.name: row.reason for row in report.tensors if len(row.shape) > 1}
    assert reasons == {
        "wide.weight": "of a Conv2d, not a Linear",
        "groups.weight": "of a Conv1d, not a Linear",
        "padded.weight": "of a Conv1d, not a Linear",
        "own.weight": "of a Own, not a Linear",
        "bilinear.weight": "of a Bilinear, not a Linear",
    }
    with pytest.raises(fs.FastSparseError, match="cannot be replaced in place; put it into a module"):
        fst.sparsify(Conv1D(64, 64), "50%")


def test_a_state_is_saved_by_torch_too():
    model = nn.Sequential(Conv1D(96, 64), nn.MultiheadAttention(64, 4))
    fst.sparsify(model, "50%")
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = nn.Sequential(Conv1D(96, 64), nn.MultiheadAttention(64, 4))
    fst.sparsify(other, "75%")
    other.load_state_dict(torch.load(file))
    assert other[1].in_proj_weight_packed.packed == model[1].in_proj_weight_packed.packed


@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")
def test_adapters_learn_on_packed_layers():
    """LoRA of the peft package beside a packed layer."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64))
    model = copy.deepcopy(dense)
    fst.sparsify(model, "50%")
    config = peft.LoraConfig(target_modules=["0", "2"], r=4)
    config._register_custom_module({fst.SparseLinear: peft.tuners.lora.Linear})
    adapted = peft.get_peft_model(model, config)
    before = model[0].base_layer.packed
    x = torch.randn(8, 64)
    optimizer = torch.optim.SGD([w for w in adapted.parameters() if w.requires_grad], lr=0.1)
    losses = []
    for _ in range(5):
        loss = (adapted(x) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert model[0].base_layer.packed == before
