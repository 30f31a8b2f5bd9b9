"""The packed layer beside a dense one with the same pruned weight."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import fastsparse as fs
import fastsparse.torch as fst
from fastsparse import checkpoint

KINDS = [torch.float32, torch.float16, torch.bfloat16]
# Sums differ in their order: a few roundings of the result, for which torch's layer is computed in float32.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def pair(kind=torch.float32, pattern="50%", shape=(72, 100), bias=True):
    """A dense layer with a pruned weight, and the packed layer."""
    torch.manual_seed(4)
    dense = nn.Linear(shape[1], shape[0], bias=bias, dtype=kind)
    with torch.no_grad():
        fst.prune(dense.weight, pattern, out=dense.weight)
    return dense, fst.SparseLinear.from_linear(dense)


def assert_close(ours, dense, x):
    expected = dense.float()(x.float())
    torch.testing.assert_close(ours.float(), expected, rtol=TOLERANCE[ours.dtype], atol=TOLERANCE[ours.dtype])


def test_the_ways_to_make_one():
    torch.manual_seed(0)
    linear = nn.Linear(64, 32).eval()
    layer = fst.SparseLinear.from_linear(linear, "2:4")
    assert layer.packed == fst.compress(linear.weight, "2:4")
    assert layer.packed.pattern == fs.pattern("2:4")
    assert layer.bias is linear.bias
    assert not layer.training
    assert layer.packed.values.ctypes.data == layer.values.data_ptr()
    assert not layer.packed.values.flags.writeable
    again = fst.SparseLinear.from_packed(layer.packed)
    assert again.packed == layer.packed
    assert again.bias is None
    dense = layer.to_dense()
    assert torch.equal(dense.weight, fst.prune(linear.weight.detach(), "2:4"))
    assert dense.bias is linear.bias
    assert not dense.training
    assert not fst.SparseLinear(8, 4, dtype=torch.bfloat16).packed.nnz


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(), (1,), (3, 5), (40,), (0,)], ids=str)
def test_computes_what_a_dense_layer_does(kind, bias, batch):
    dense, layer = pair(kind, bias=bias)
    x = torch.randn(*batch, 100).to(kind)
    results = [layer(x)]
    with torch.no_grad():
        results.append(layer(x))
    with torch.inference_mode():
        results.append(layer(x))
    assert_close(results[0], copy.deepcopy(dense), x)
    for y in results:
        assert y.dtype == kind
        assert torch.equal(y, results[0])


@pytest.mark.parametrize("kind", KINDS[1:], ids=str)
def test_float32_activations_stay_float32(kind):
    dense, layer = pair(kind)
    x = torch.randn(3, 100)
    with torch.no_grad():
        y = layer(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, dense.float()(x), rtol=1e-5, atol=1e-5)


def test_strides_of_the_input():
    _, layer = pair()
    x = torch.randn(100, 6)
    with torch.no_grad():
        assert torch.equal(layer(x.t()), layer(x.t().contiguous()))


@pytest.mark.parametrize("shape", [(100,), (4, 5, 100), (0, 100)], ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_gradients_of_input_and_bias(kind, shape):
    dense, layer = pair(kind)
    x = torch.randn(shape).to(kind)
    inputs = [x.clone().requires_grad_(), x.float().requires_grad_()]
    ours = torch.autograd.grad(layer(inputs[0]).square().sum(), [inputs[0], layer.bias])
    dense = dense.float()
    theirs = torch.autograd.grad(dense(inputs[1]).square().sum(), [inputs[1], dense.bias])
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == kind
        torch.testing.assert_close(a.float(), b, rtol=4 * TOLERANCE[kind], atol=10 * TOLERANCE[kind])


def test_gradients_of_gradients():
    dense, layer = pair()
    results = []
    for module in (dense, layer):
        x = torch.linspace(-1, 1, 200).view(2, 100).requires_grad_()
        (g,) = torch.autograd.grad(module(x).pow(3).sum(), x, create_graph=True)
        results.append(torch.autograd.grad(g.square().sum(), x)[0])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of torch's own check
def test_the_operators_keep_torchs_rules():
    _, layer = pair(shape=(16, 24))
    x = torch.randn(2, 24)
    arguments = (layer.values, layer.bitmask, layer.row_offsets)
    for bias in (None, layer.bias):
        torch.library.opcheck(torch.ops.fastsparse.linear.default, (x.requires_grad_(), *arguments, 24, bias))
    torch.library.opcheck(torch.ops.fastsparse.to_dense.default, (*arguments, 24))


def test_the_weight_gets_no_gradient():
    _, layer = pair()
    layer.values.requires_grad_()
    with pytest.raises(fs.FastSparseError, match="packed weights get no gradient; train a dense layer under a mask"):
        layer(torch.randn(1, 100, requires_grad=True))
    with pytest.raises(AttributeError, match="no dense weight; use packed"):
        layer.weight  # noqa: B018
    assert not hasattr(layer, "weight")
    assert [name for name, _ in layer.named_parameters()] == ["bias"]


def model(pattern="50%"):
    torch.manual_seed(1)
    made = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 64, bias=False))
    for at in (0, 2):
        made[at] = fst.SparseLinear.from_linear(made[at], pattern)
    return made


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_in_one_piece(backend):
    plain = model()
    compiled = torch.compile(plain, fullgraph=True, backend=backend)
    x = torch.randn(3, 64, requires_grad=True)
    torch.testing.assert_close(compiled(x), plain(x))
    torch.testing.assert_close(
        torch.autograd.grad(compiled(x).square().sum(), x), torch.autograd.grad(plain(x).square().sum(), x)
    )
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), plain(x))


@pytest.mark.parametrize("strict", [True, False])
def test_is_exported_saved_and_loaded(strict):
    plain = model()
    batch = torch.export.Dim("batch")
    program = torch.export.export(plain, (torch.randn(3, 64),), dynamic_shapes=({0: batch},), strict=strict)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    x = torch.randn(7, 64)
    assert torch.equal(loaded(x), plain(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_tracers_and_modes_see_the_operator():
    plain = model().eval()
    x = torch.randn(2, 64)
    with torch.no_grad():
        traced = torch.fx.experimental.proxy_tensor.make_fx(plain)(x)
        assert "fastsparse.linear" in traced.code
        jitted = torch.jit.trace(plain, x)
        assert torch.equal(jitted(x + 1), plain(x + 1))
        with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
            assert plain(mode.from_tensor(x)).shape == (2, 64)


def test_autocast_takes_any_dtype():
    _, layer = pair()
    x = torch.randn(2, 100).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert torch.equal(y, layer(x.float()))
    with pytest.raises(fs.FastSparseError, match="x: expected dtype float32 with weights of float32, got bfloat16"):
        layer(x)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # it calls once for each
def test_vmap():
    _, layer = pair()
    x = torch.randn(3, 2, 100)
    with torch.no_grad():
        assert torch.equal(torch.vmap(layer)(x), layer(x))


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_transforms_of_torch_func():
    _, layer = pair()
    dense = layer.to_dense()
    x = torch.randn(5, 100)

    def loss(module):
        return lambda x: module(x).square().sum()

    per_row = torch.vmap(torch.func.grad(loss(layer)))(x)
    torch.testing.assert_close(per_row, torch.vmap(torch.func.grad(loss(dense)))(x))
    torch.testing.assert_close(torch.func.jacrev(layer)(x), torch.func.jacrev(dense)(x))


def test_copies_are_apart():
    plain = model("2:4")
    x = torch.randn(2, 64)
    for twin in (copy.deepcopy(plain), pickle.loads(pickle.dumps(plain))):
        assert twin[0].packed == plain[0].packed
        assert twin[0].packed.pattern == plain[0].packed.pattern
        assert torch.equal(twin(x), plain(x))
        assert twin[0].packed.values.ctypes.data == twin[0].values.data_ptr() != plain[0].values.data_ptr()


@pytest.mark.parametrize("assign", [True, False])
def test_state_goes_to_a_fresh_module(assign):
    plain = model("75%")
    fresh = nn.Sequential(fst.SparseLinear(64, 96), nn.GELU(), fst.SparseLinear(96, 64, bias=False))
    fresh.load_state_dict(plain.state_dict(), assign=assign)
    x = torch.randn(2, 64)
    assert torch.equal(fresh(x), plain(x))
    with torch.no_grad():
        assert torch.equal(fresh(x), plain(x))
    plain.load_state_dict(model("25%").state_dict())
    assert plain[0].packed.nnz == 64 * 96 * 3 // 4
    with torch.no_grad():
        assert torch.equal(plain(x), model("25%")(x))


def test_state_is_cast_unless_assigned():
    state = fst.SparseLinear.from_linear(nn.Linear(32, 8), "50%").state_dict()
    layer = fst.SparseLinear(32, 8, dtype=torch.bfloat16)
    layer.load_state_dict(state)
    assert layer.packed.dtype.name == "bfloat16"
    layer.load_state_dict(state, assign=True)
    assert layer.packed.dtype.name == "float32"


def test_state_is_a_checkpoint(tmp_path):
    plain = model()
    save_file(plain.state_dict(), tmp_path / "model.safetensors")
    checkpoint.verify(tmp_path / "model.safetensors")
    assert checkpoint.open(tmp_path / "model.safetensors")["0.weight"] == plain[0].packed
    dense = {"0.weight": torch.randn(96, 64), "0.bias": torch.randn(96), "2.weight": torch.randn(64, 96)}
    save_file(dense, tmp_path / "dense.safetensors")
    checkpoint.compress(tmp_path / "dense.safetensors", tmp_path / "small.safetensors", "75%")
    plain.load_state_dict(load_file(tmp_path / "small.safetensors"))
    assert plain[0].packed == fst.compress(dense["0.weight"], "75%")


def test_state_that_does_not_fit_is_an_error():
    good = fst.SparseLinear.from_linear(nn.Linear(32, 8), "50%").state_dict()
    cases = {
        "shape: expected": {"shape": torch.tensor([32, 8])},
        "row_offsets": {"row_offsets": good["row_offsets"] + 1},
        "values": {"compressed": good["compressed"][:-1]},
        "bitmask": {"bitmask": good["bitmask"][:, :2]},
        "CPU": {"compressed": good["compressed"].to("meta")},
    }
    for message, wrong in cases.items():
        layer = fst.SparseLinear(32, 8)
        with pytest.raises(RuntimeError, match=message):
            layer.load_state_dict({**good, **wrong})
        assert layer.packed.nnz == 0
    with pytest.raises(RuntimeError, match=r'Missing key.*"bitmask"'):
        fst.SparseLinear(32, 8).load_state_dict({key: good[key] for key in good if key != "bitmask"})
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"more"'):
        fst.SparseLinear(32, 8).load_state_dict({**good, "more": torch.ones(1)})
    layer = fst.SparseLinear.from_linear(nn.Linear(32, 8), "50%")
    missing = layer.load_state_dict({}, strict=False).missing_keys
    assert missing == ["bias", "shape", "compressed", "bitmask", "row_offsets"]
    assert layer.packed.nnz == 128


def test_dtypes_and_devices():
    dense, layer = pair(torch.float32)
    layer.to(torch.bfloat16)
    assert layer.packed == fs.pack(fst.as_array(dense.weight.bfloat16()), layer.packed.mask)
    x = torch.randn(2, 100).bfloat16()
    with torch.no_grad():
        assert torch.equal(layer(x), fst.linear(x, layer.packed, layer.bias))
    assert layer.float().packed.dtype == np.float32
    layer.cpu().share_memory()
    assert layer.values.is_shared()
    assert layer.packed.values.ctypes.data == layer.values.data_ptr()
    for call, message in (
        (lambda: layer.double(), "float32, float16 or bfloat16, got torch.float64"),
        (lambda: layer.to("meta"), "computes on the CPU and cannot move to meta"),
        (lambda: fst.SparseLinear(4, 4, dtype=torch.float64), "got torch.float64"),
        (lambda: fst.SparseLinear.from_linear(nn.Linear(4, 4).double()), "got torch.float64"),
        (lambda: fst.SparseLinear.from_linear(nn.Linear(4, 4, device="meta")), "w: expected a tensor on the CPU"),
        (lambda: fst.SparseLinear.from_linear(nn.Identity()), "expected a torch.nn.Linear"),
        (lambda: fst.SparseLinear.from_packed(fs.pack(np.ones(4, np.float32))), "of two dimensions"),
        (lambda: fst.SparseLinear.from_packed(layer.packed, torch.ones(3)), r"bias: expected shape \(72,\)"),
        (lambda: layer(torch.ones(2, 99)), "x: expected 100 columns"),
        (lambda: layer(torch.ones(2, 100, dtype=torch.float16)), "x: expected dtype float32"),
    ):
        with pytest.raises(fs.FastSparseError, match=message):
            call()
    assert layer.values.dtype == torch.float32


def test_threads_compute_the_same_at_once():
    from concurrent.futures import ThreadPoolExecutor

    _, layer = pair(shape=(512, 512))
    xs = [torch.randn(2, 512) for _ in range(16)]
    with torch.no_grad():
        expected = [layer(x) for x in xs]

    def compute(x):
        with torch.no_grad():
            return layer(x)

    with ThreadPoolExecutor(4) as pool:
        for y, other in zip(pool.map(compute, xs), expected, strict=True):
            assert torch.equal(y, other)
