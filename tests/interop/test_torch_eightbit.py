"""Packed layers of eight bits, beside `fs.linear` and a dense layer with the weight that they stand for."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call

import fastsparse as fs
import fastsparse.torch as fst
from fastsparse import _backend, _numpy

KINDS = [torch.float32, torch.float16, torch.bfloat16]


def layer_of(kind=torch.bfloat16, pattern="50%", shape=(72, 100), bias=True):
    torch.manual_seed(4)
    return fst.SparseLinear.from_linear(nn.Linear(shape[1], shape[0], bias=bias, dtype=kind), pattern, weight_bits=8)


def model_of(kind=torch.bfloat16):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.Linear(64, 4)).to(kind).eval()
    return model, torch.randn(5, 64).to(kind)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("active", [_numpy, None], ids=["numpy", "native"])
def test_computes_what_the_arrays_do(kind, active, monkeypatch):
    if active is not None:
        monkeypatch.setattr(_backend, "active", active)
    torch.manual_seed(4)
    dense = nn.Linear(100, 72, dtype=kind)
    layer = fst.SparseLinear.from_linear(dense, "2:4", weight_bits=8)
    q = fst.compress(dense.weight, "2:4").quantize()
    assert layer.packed == q
    assert layer.packed.pattern == fs.pattern("2:4")
    assert layer.dtype == layer.weight.dtype == kind
    assert (layer.values.dtype, layer.row_scale.dtype) == (torch.int8, torch.float32)
    for x in (torch.randn(3, 5, 100), torch.randn(100).to(kind), torch.randn(0, 100), torch.randn(1, 100).bfloat16()):
        y = layer(x)
        assert y.dtype == x.dtype
        bias = fst.as_array(dense.bias)
        assert torch.equal(y.detach(), fst.as_tensor(fs.linear(fst.as_array(x), q, bias)))
        with torch.inference_mode():
            assert torch.equal(layer(x), y)
    again = layer.to_dense()
    assert again.bias is dense.bias
    assert torch.equal(again.weight, fst.as_tensor(q.to_dense()))
    assert torch.equal(layer.weight @ torch.ones(100, dtype=kind), again.weight @ torch.ones(100, dtype=kind))
    x = torch.randn(40, 100)
    assert (layer(x) - again.float()(x)).abs().max() < 0.02 * again(x).abs().max()


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of torch's own check
def test_gradients_are_those_of_the_weight_that_it_stands_for():
    layer = layer_of(torch.float32)
    dense = layer.to_dense()
    x = torch.randn(3, 100, requires_grad=True)
    g = torch.randn(3, 72)
    layer(x).backward(g)
    torch.testing.assert_close(x.grad, g @ dense.weight.detach())
    torch.testing.assert_close(layer.bias.grad, g.sum(0))
    torch.library.opcheck(
        torch.ops.fastsparse.linear.default,
        (x, layer.values, layer.bitmask, layer.row_offsets, 100, layer.bias, layer.row_scale),
    )
    parts = (layer.values, layer.bitmask, layer.row_offsets, 100, layer.row_scale, torch.float16)
    torch.library.opcheck(torch.ops.fastsparse.to_dense.default, parts)


def test_five_bits_a_weight():
    model = nn.Sequential(nn.Linear(4096, 512, bias=False, dtype=torch.bfloat16))
    report = fst.sparsify(model, "50%", weight_bits=8)
    (row,) = report.tensors
    assert row.bits == 8
    assert row.bytes_after == model[0].packed.nbytes == 4096 * 512 * 5 // 8 + 12 * 512 + 8
    assert report.bytes_before == 2 * 4096 * 512
    assert repr(model[0]) == (
        "SparseLinear(in_features=4096, out_features=512, bias=False, bfloat16 in 8 bits, 50.0 % sparse)"
    )
    (again,) = fst.sparsify(model, "50%").tensors
    assert (again.bits, again.reason) == (8, "packed already")


def test_a_model_and_back():
    model, x = model_of()
    pruned = copy.deepcopy(model)
    fst.sparsify(pruned, "50%")
    report = fst.sparsify(model, fs.checkpoint.Recipe(default="50%", bits=8))
    assert [row.bits for row in report.tensors if row.reason is None] == [8, 8]
    assert [row.bits for row in report.tensors if row.reason is not None] == [None] * 4
    for at in (0, 2):
        assert model[at].packed == pruned[at].packed.quantize()
    y = model(x)
    assert (y - pruned(x)).abs().max() < 0.05 * y.abs().max()
    fst.to_dense(model)
    assert torch.equal(model[0].weight, fst.as_tensor(pruned[0].packed.quantize().to_dense()))


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), "torch.save"])
def test_copies(how):
    layer = layer_of()
    if how == "torch.save":
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = how(layer)
    x = torch.randn(2, 100)
    assert torch.equal(layer(x), other(x))
    assert (other.packed, other.dtype) == (layer.packed, layer.dtype)
    assert other.values.data_ptr() != layer.values.data_ptr()


@pytest.mark.parametrize("assign", [False, True])
def test_state_goes_to_layers_of_any_kind(assign):
    layer, x = layer_of(torch.float16), torch.randn(2, 100)
    state = layer.state_dict()
    assert set(state) == {"bias", "shape", "compressed", "bitmask", "row_offsets", "row_scale", "weight"}
    assert (state["weight"].shape, state["weight"].dtype) == ((0,), torch.float16)
    for fresh in (fst.SparseLinear(100, 72, dtype=torch.float16), layer_of(torch.bfloat16, "25%")):
        fresh.load_state_dict(state, assign=assign)
        assert fresh.packed.packed == layer.packed.packed
        assert torch.equal(fresh(x), layer(x)) == (assign or fresh.bias.dtype == torch.float16)
        assert fresh.dtype == (torch.float16 if assign else fresh.bias.dtype)
    plain = fst.SparseLinear.from_linear(nn.Linear(100, 72, dtype=torch.float16), "50%")
    layer.load_state_dict(plain.state_dict(), assign=assign)
    assert layer.row_scale is None
    assert torch.equal(layer(x), plain(x))


def test_state_that_lacks_the_scale_is_refused():
    layer, fresh = layer_of(), fst.SparseLinear(100, 72)
    state = layer.state_dict()
    scale = state.pop("row_scale")
    with pytest.raises(RuntimeError, match=r'Missing key.*"row_scale"'):
        fresh.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"scale: expected float32 of shape \(72,\), got bfloat16"):
        fresh.load_state_dict({**state, "row_scale": scale.bfloat16()})
    assert not fresh.packed.nnz


def test_conversions_keep_the_scales():
    layer = layer_of(torch.float32)
    before, scale = layer.packed.packed.copy(), layer.row_scale.clone()
    for kind in (torch.bfloat16, torch.float16, torch.float32):
        layer.to(kind)
        assert layer.dtype == layer.weight.dtype == layer.bias.dtype == kind
        assert layer.row_scale.dtype == torch.float32
        assert torch.equal(layer.row_scale, scale)
        assert layer.packed.packed == before
    layer.share_memory()
    assert layer.row_scale.is_shared()
    assert layer.packed.packed == before
    assert layer(torch.randn(1, 100)).shape == (1, 72)
    with pytest.raises(fs.FastSparseError, match="cannot move to meta"):
        layer.to("meta")
    with pytest.raises(fs.FastSparseError, match="weights of 8 bits are int8"):
        layer.type(torch.float16)
    with pytest.raises(fs.FastSparseError, match="SparseLinear computes in"):
        layer.double()
    assert layer.dtype == torch.float32


def test_buffers_that_are_replaced_count():
    layer, x = layer_of(torch.float32, bias=False), torch.randn(2, 100)
    y = layer(x).detach()
    assert torch.equal(functional_call(layer, {"row_scale": 2 * layer.row_scale}, (x,)), 2 * y)
    layer.row_scale = layer.row_scale * 2
    assert torch.equal(layer(x), 2 * y)
    with torch.no_grad():
        layer.row_scale *= 2
    assert torch.equal(layer(x), 4 * y)
    layer.row_scale = None
    with pytest.raises(fs.FastSparseError, match="SparseLinear computes in"):
        layer(x)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning")
def test_compiles_exports_and_traces(tmp_path):
    model, x = model_of()
    fst.sparsify(model, "50%", weight_bits=8)
    with torch.no_grad():
        y = model(x)
        assert torch.equal(torch.compile(model, backend="aot_eager", fullgraph=True)(x), y)
        program = torch.export.export(model, (x,))
        torch.export.save(program, tmp_path / "model.pt2")
        assert torch.equal(torch.export.load(tmp_path / "model.pt2").module()(x), y)
        assert torch.equal(torch.jit.trace(model, x)(x), y)
        assert torch.equal(torch.jit.script(model)(x), y)
        gram = torch.compile(lambda: model[0].weight.T @ model[0].weight, backend="aot_eager", fullgraph=True)
        assert torch.equal(gram(), model[0].to_dense().weight.T @ model[0].to_dense().weight)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # it calls once for each
def test_transforms_and_autocast():
    layer = layer_of(torch.float32, bias=False)
    xs = torch.randn(4, 3, 100)
    assert torch.equal(torch.vmap(layer)(xs), torch.stack([layer(one) for one in xs]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(1, 100, dtype=torch.float64)).dtype == torch.float32


def test_an_infinity_is_refused_before_anything_changes():
    model, _ = model_of(torch.float32)
    with torch.no_grad():
        model[2].weight[3, 5] = torch.inf
    with pytest.raises(fs.FastSparseError, match=r"tensor '2\.weight': it holds an infinity"):
        fst.sparsify(model, "50%", weight_bits=8)
    assert type(model[0]) is nn.Linear
    for wrong in (4, True, "8"):
        with pytest.raises(fs.FastSparseError, match="weight_bits: expected 8, or None"):
            fst.sparsify(model, "50%", weight_bits=wrong)
