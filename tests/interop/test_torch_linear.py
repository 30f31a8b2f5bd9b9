"""The packed layer beside a dense one with the same pruned weight."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import set_module_tensor_to_device
from huggingface_hub import save_torch_model
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

import fastsparse as fs
import fastsparse.torch as fst
from fastsparse import _backend, checkpoint

KINDS = [torch.float32, torch.float16, torch.bfloat16]
# Sums differ in their order: a few roundings of the result, for which torch's layer is computed in
# float32.
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
    for needs_gradient in (True, False):
        with pytest.raises(
            fs.FastSparseError, match="packed weights get no gradient; train a dense layer under a mask"
        ):
            layer(torch.randn(1, 100, requires_grad=needs_gradient))
    assert [name for name, _ in layer.named_parameters()] == ["bias"]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_dense_weight_is_there_to_look_at(kind, monkeypatch):
    dense, layer = pair(kind)
    unpacked = []
    monkeypatch.setattr(fs.BitmaskArray, "to_dense", lambda s, f=fs.BitmaskArray.to_dense: unpacked.append(s) or f(s))
    w, weight = layer.weight, dense.weight.detach()
    assert w is layer.weight
    assert isinstance(w, torch.Tensor)
    assert (w.dtype, w.device, w.shape, w.stride()) == (kind, weight.device, weight.shape, weight.stride())
    assert (w.numel(), w.nbytes, w.requires_grad, w.is_floating_point()) == (7200, weight.nbytes, False, True)
    assert w.detach().dtype == w.data.dtype == kind
    assert not unpacked
    assert torch.equal(w, weight)
    assert len(unpacked) == 1
    assert set(layer.state_dict()) == {"bias", "shape", "compressed", "bitmask", "row_offsets"}


@pytest.mark.filterwarnings("ignore:layer .*code computes with its dense weight")
def test_what_torch_makes_of_the_dense_weight():
    dense, layer = pair()
    w, weight = layer.weight, dense.weight.detach()
    x = torch.randn(3, 100, requires_grad=True)
    results = [torch.autograd.grad(nn.functional.linear(x, v).square().sum(), x)[0] for v in (w, weight)]
    assert torch.equal(*results)
    for look in (
        lambda v: v.T @ v,
        lambda v: v[3:5, ::2].reshape(-1),
        lambda v: torch.cat([row.flip(0) for row in v.split(8)]),
        lambda v: v.to(torch.float64),
        lambda v: torch.from_numpy(v.numpy().copy()),
        lambda v: torch.tensor(v.tolist()),
        lambda v: copy.deepcopy(v),
        lambda v: pickle.loads(pickle.dumps(v)),
        lambda v: fst.prune(v, "75%"),
        lambda v: fst.unpack(fst.pack(v)),
    ):
        ours = look(w)
        assert torch.equal(ours, look(weight))
    assert type(copy.deepcopy(w)) is torch.Tensor
    assert repr(w) == repr(weight)
    layer.bfloat16()
    assert torch.equal(layer.weight, weight.bfloat16())
    compiled = torch.compile(lambda x: x @ layer.weight.T, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 100).bfloat16()
    assert torch.equal(compiled(x), x @ weight.bfloat16().T)


@pytest.mark.filterwarnings("ignore:layer .*code computes with its dense weight")
def test_the_dense_weight_is_read_only():
    _, layer = pair()
    before = layer.packed.copy()
    plain = torch.zeros(72, 100)
    for change in (
        lambda: layer.weight.mul_(2),
        lambda: layer.weight.data.zero_(),
        lambda: layer.weight[0].add_(1),
        lambda: layer.weight.t().__setitem__((0, 0), 1),
        lambda: torch.add(plain, plain, out=layer.weight),
        lambda: torch._foreach_mul_([layer.weight], 2.0),
        lambda: nn.init.normal_(layer.weight),
        lambda: layer.weight.requires_grad_(),
        lambda: nn.Parameter(layer.weight),
        lambda: setattr(layer.weight, "data", plain),
        lambda: setattr(layer.weight, "requires_grad", True),
        lambda: setattr(layer, "weight", plain),
        lambda: setattr(layer, "weight", nn.Parameter(plain)),
    ):
        with pytest.raises(fs.FastSparseError, match="its dense form is read-only; change a dense layer"):
            change()
    layer.weight.requires_grad_(False)
    assert layer.packed == before
    with pytest.raises(ValueError, match="read-only"):
        layer.weight.numpy()[0, 0] = 1


def test_computing_with_the_dense_weight_warns_once():
    _, layer = pair()
    layer.name = "encoder.q"
    x = torch.randn(2, 100)
    nn.functional.linear(x, layer.weight)
    with pytest.warns(UserWarning, match=r"layer 'encoder.q': code computes with its dense weight.*exclude the layer"):
        nn.functional.linear(x, layer.weight)
    nn.functional.linear(x, layer.weight)


REPLACE = {
    "functional_call": lambda layer, new, x: torch.func.functional_call(layer, new, x),
    "attributes": lambda layer, new, x: [setattr(layer, *item) for item in new.items()] and layer(x),
    "accelerate": lambda layer, new, x: (
        [set_module_tensor_to_device(layer, name, "cpu", value=part) for name, part in new.items()] and layer(x)
    ),
    "data": lambda layer, new, x: (
        [setattr(layer.get_buffer(name), "data", part) for name, part in new.items()] and layer(x)
    ),
    "in place": lambda layer, new, x: [layer.get_buffer(n).data.copy_(part) for n, part in new.items()] and layer(x),
    "through the state dict": lambda layer, new, x: (
        (
            [
                layer.state_dict()[{"values": "compressed"}.get(n, n)].copy_(p)
                for n, p in new.items()
                if n != "row_offsets"
            ]
            and setattr(layer, "row_offsets", new.get("row_offsets", layer.row_offsets))
        )
        or layer(x)
    ),
}


@pytest.mark.parametrize("way", REPLACE)
@pytest.mark.parametrize("names", [("values",), ("values", "bitmask", "row_offsets")], ids=len)
@pytest.mark.parametrize("pattern", ["50%", "2:4"])
def test_buffers_that_are_replaced_count(way, names, pattern):
    """Whichever way, with gradients and without, and where the mask no longer obeys the pattern."""
    torch.manual_seed(3)
    w = torch.randn(2, 8, 64)
    layer = fst.SparseLinear.from_packed(fst.compress(w[0], pattern))
    other = fst.SparseLinear.from_packed(fst.compress(w[1], "50%"))
    new = {name: other.get_buffer(name).clone() for name in names}
    mask = (layer if names == ("values",) else other).packed.mask
    weight = torch.zeros(8, 64).masked_scatter_(fst.as_tensor(mask), new["values"])
    x = torch.randn(3, 64)
    for inputs in (x, x.clone().requires_grad_()):
        copied = copy.deepcopy(layer)
        torch.testing.assert_close(REPLACE[way](copied, new, inputs), x @ weight.T)
        if way != "functional_call":
            assert torch.equal(copied.weight, weight)
            assert copied.packed.pattern == (layer.packed.pattern if names == ("values",) else None)
            twin = copy.deepcopy(copied)
            assert twin.packed == copied.packed == fst.pack(weight)


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ({"values": torch.ones(3)}, "values"),
        ({"values": torch.ones(256, dtype=torch.float64)}, "float32, float16 or bfloat16, got torch.float64"),
        ({"values": torch.ones(512)[::2]}, "values: expected a contiguous tensor"),
        ({"values": torch.ones(256, device="meta")}, "values: expected a tensor on the CPU"),
        ({"bitmask": torch.full((8, 8), 255, dtype=torch.uint8)}, "values"),
        ({"bitmask": torch.tensor([255, 0] * 32, dtype=torch.uint8).view(8, 8)}, "row_offsets"),
        ({"row_offsets": torch.zeros(9, dtype=torch.int64)}, "row_offsets: they are not those of the mask"),
        ({"row_offsets": None}, "row_offsets: expected a tensor, got NoneType"),
    ],
)
def test_buffers_that_contradict_each_other_are_refused(new, message):
    torch.manual_seed(3)
    layer = fst.SparseLinear.from_packed(fst.compress(torch.randn(8, 64), "50%"))
    layer.name = "mlp.up"
    for name, part in new.items():
        setattr(layer, name, part)
    for use in (
        lambda: layer(torch.ones(64)),
        lambda: layer(torch.ones(64, requires_grad=True)),
        lambda: layer.packed,
        layer.state_dict,
        layer.bfloat16,
    ):
        with pytest.raises(fs.FastSparseError, match=f"layer 'mlp.up': .*{message}"):
            use()


@pytest.mark.parametrize("way", ["safetensors", "huggingface_hub"])
def test_models_are_saved_and_loaded(way, tmp_path):
    """A module in two places among them."""
    saved, fresh = (nn.ModuleDict({"a": model(pattern)[0], "b": model(pattern)[2]}) for pattern in ("50%", "75%"))
    for made in (saved, fresh):
        made["again"] = made["a"]
    if way == "safetensors":
        save_model(saved, tmp_path / "model.safetensors")
    else:
        save_torch_model(saved, tmp_path)
    load_model(fresh, tmp_path / "model.safetensors")
    assert fresh["again"] is fresh["a"]
    for name in "ab":
        assert fresh[name].packed == saved[name].packed


def test_accelerate_saves_and_loads_its_state(tmp_path):
    layer = model("50%")
    before = layer[0].packed.copy()
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(layer)
    accelerator.save_state(tmp_path)
    layer.load_state_dict(model("75%").state_dict())
    accelerator.load_state(tmp_path)
    assert layer[0].packed == before


def model(pattern="50%"):
    torch.manual_seed(1)
    made = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 64, bias=False))
    for at in (0, 2):
        made[at] = fst.SparseLinear.from_linear(made[at], pattern)
    return made


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_in_one_piece(backend):
    torch.compiler.reset()  # torch gives up on a function that other tests have compiled often enough
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


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning")
def test_is_scripted_saved_and_loaded():
    plain = model().eval()
    scripted = torch.jit.script(plain)
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    x = torch.randn(3, 64, requires_grad=True)
    for made in (scripted, torch.jit.load(file)):
        assert torch.equal(made(x), plain(x))
        assert torch.equal(*(torch.autograd.grad(m(x).sum(), x)[0] for m in (made, plain)))
    assert isinstance(plain[0], fst.SparseLinear)
    assert scripted[0].values.data_ptr() == plain[0].values.data_ptr()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning")
def test_onnx_is_refused_with_what_to_do():
    with pytest.raises(
        fs.FastSparseError, match=r"ONNX has no packed layers; export .* fastsparse.torch.to_dense makes"
    ):
        torch.onnx.export(model(), (torch.ones(1, 64),), io.BytesIO(), dynamo=False)


@pytest.mark.filterwarnings("ignore:.*torch.distributed:UserWarning")
def test_distributed_checkpoints_go_by_a_file(tmp_path):
    """Into a state dict they go only where the sizes are the same."""
    plain, same, other = model("50%"), model("50%"), model("75%")
    dcp.save(plain.state_dict(), checkpoint_id=tmp_path / "dcp")
    with torch.no_grad():
        same[0].values.zero_()
    dcp.load(same.state_dict(), checkpoint_id=tmp_path / "dcp")
    assert same[0].packed == plain[0].packed
    with pytest.raises(dcp.api.CheckpointException, match="Size mismatch"):
        dcp.load(other.state_dict(), checkpoint_id=tmp_path / "dcp")
    dcp_to_torch_save(tmp_path / "dcp", tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert other[0].packed == plain[0].packed


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


def decoded(layer, x, calls=20):
    """The last result of many calls with one row."""
    for _ in range(calls):
        with torch.no_grad():
            y = layer(x)
    return y


@pytest.fixture
def indices_are_fast(monkeypatch):
    monkeypatch.setattr(_backend.active, "prefers_indices", lambda values, shape, batch: batch == 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("indices_are_fast")
def test_one_row_again_and_again(kind):
    dense, layer = pair(kind, "90%")
    x = torch.randn(3, 1, 100, dtype=kind)
    saved = {name: part.clone() for name, part in layer.state_dict().items()}
    with torch.no_grad():
        first = layer(x[0])
    assert layer.forms == ("mask",)
    assert_close(first, dense, x[0])
    assert_close(decoded(layer, x[0]), dense, x[0])
    assert layer.forms == ("mask", "indices")
    assert_close(decoded(layer, x), dense, x)  # the mask again
    # What is saved and copied is the mask alone.
    assert all(torch.equal(part, saved[name]) for name, part in layer.state_dict().items())
    assert len(layer.state_dict()) == len(saved)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert again.forms == ("mask",)
        assert_close(decoded(again, x[1]), dense, x[1])
    # Other weights, another layout.
    other, replacement = pair(kind, "95%")
    layer.load_state_dict(replacement.state_dict())
    assert layer.forms == ("mask",)
    assert_close(decoded(layer, x[1]), other, x[1])
    with torch.no_grad():
        layer.values.mul_(2)
    assert layer.forms == ("mask",)


@pytest.mark.usefixtures("indices_are_fast")
def test_both_forms_take_no_more_than_the_dense_weight(monkeypatch):
    x = torch.randn(1, 100)
    for pattern, forms in [("50%", ("mask",)), ("90%", ("mask", "indices"))]:
        _, layer = pair(pattern=pattern, shape=(144, 100))
        decoded(layer, x)
        assert layer.forms == forms
    _, layer = pair(pattern="90%")
    layer.forms_up_to = 0
    decoded(layer, x)
    assert layer.forms == ("mask",)
    monkeypatch.setattr(fst.SparseLinear, "forms_up_to", 4)
    _, layer = pair(pattern="50%")
    decoded(layer, x)
    assert layer.forms == ("mask", "indices")
    _, layer = pair(pattern="90%")
    monkeypatch.setattr(fs.BitmaskArray, "prepare", refuse_memory)
    decoded(layer, x)
    assert layer.forms == ("mask",)


def refuse_memory(*_, **__):
    raise MemoryError
