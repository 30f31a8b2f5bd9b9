"""Packed and pruned models of torch through `coremltools.convert`, read back from the program and from its file."""

import copy

import coremltools as ct
import coremltools.optimize.coreml as cto
import numpy as np
import pytest
import torch
from coremltools.converters.mil.mil import Builder as mb
from torch import nn

import fastsparse as fs
import fastsparse.torch as fst
from fastsparse import coreml

# Models keep temporary folders until they are collected.
pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:Implicitly cleaning up:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
    ),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

TARGETS = {16: ct.target.iOS16, 18: ct.target.iOS18}


def model_of(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 40, bias=False), nn.Linear(40, 8)).eval()


def convert(model, how, ios=18, precision="FLOAT32", x=None):
    x = torch.randn(2, 64) if x is None else x
    if how == "trace":
        made, options = torch.jit.trace(model, x), {"inputs": [ct.TensorType(shape=x.shape)]}
    else:
        made, options = torch.export.export(model, (x,)).run_decompositions({}), {}
    return ct.convert(
        made,
        minimum_deployment_target=TARGETS[ios],
        compute_precision=getattr(ct.precision, precision),
        skip_model_load=True,
        **options,
    )


def operations(mlmodel, kind=""):
    found = mlmodel._mil_program.functions["main"].operations
    return [op for op in found if op.op_type.startswith("constexpr_" + kind)]


def sparse_of(op):
    """What `constexpr_sparse_to_dense` was given."""
    if op.inputs.get("shape") is not None:
        return coreml.from_flat(op.nonzero_data.val, op.mask.val, tuple(op.shape.val.tolist()))
    mask = op.mask.val if op.mask.val is not None else op.mask.op.inputs["data_mask"].val
    values = op.nonzero_data.val if op.nonzero_data.val is not None else op.materialized_val_inference()[mask != 0]
    return fs.BitmaskArray.from_parts(values, fs.Bitmask.from_bool(np.asarray(mask) != 0).bits, mask.shape)


@pytest.mark.parametrize(
    ("how", "ios", "precision"),
    [("trace", 16, "FLOAT16"), ("trace", 18, "FLOAT32"), ("export", 16, "FLOAT32"), ("export", 18, "FLOAT16")],
)
def test_packed_layers_become_sparse_weights(how, ios, precision, tmp_path):
    model = model_of()
    fst.sparsify(model, "75%")
    converted = convert(model, how, ios, precision)
    kind = np.float32 if precision == "FLOAT32" else np.float16
    sparse = operations(converted, "sparse_to_dense")
    assert len(sparse) == len(operations(converted)) == 2
    for op, layer in zip(sparse, (model[0], model[2]), strict=True):
        found = sparse_of(op)
        assert found.mask == layer.packed.mask
        assert np.array_equal(found.values, layer.packed.values.astype(kind))
        assert [child.op_type for child in op.outputs[0].child_ops] == ["linear"]
    converted.save(str(tmp_path / "model.mlpackage"))
    blobs = coreml.read_blobs(tmp_path / "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin").values()
    sizes = [(blob.dtype, blob.size) for blob in blobs]
    assert (np.dtype(kind).name, 96 * 16) in sizes
    assert (np.dtype(kind).name, 96 * 64) not in sizes
    assert ("uint1" if ios == 18 else "uint8", 96 * 64 // (1 if ios == 18 else 8)) in sizes


@pytest.mark.parametrize("how", ["trace", "export"])
def test_weights_of_eight_bits(how, tmp_path, caplog):
    model = model_of()
    fst.sparsify(model, "75%", weight_bits=8)
    converted = convert(model, how)
    scaled = operations(converted, "sparse_blockwise_shift_scale")
    assert [op.op_type for op in operations(converted)] == [scaled[0].op_type, "constexpr_sparse_to_dense"] * 2
    for op, dense, layer in zip(scaled, operations(converted, "sparse_to_dense"), (model[0], model[2]), strict=True):
        q = layer.packed
        assert op.nonzero_data.val.dtype == np.int8
        assert np.array_equal(op.nonzero_data.val, q.packed.values)
        assert np.array_equal(op.scale.val, q.scale[:, None])
        assert np.array_equal(dense.materialized_val_inference(), q.to_dense())
    converted.save(str(tmp_path / "model.mlpackage"))
    blobs = coreml.read_blobs(tmp_path / "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin").values()
    assert ("int8", 96 * 16) in [(blob.dtype, blob.size) for blob in blobs]
    older = convert(model, how, ios=16)
    for op, layer in zip(operations(older), (model[0], model[2]), strict=True):
        assert sparse_of(op) == layer.packed.dequantize()
    assert "sparse weights of 8 bits are for iOS 18" in caplog.text


def test_the_dense_weight_of_a_packed_layer_is_sparse_too():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = fst.SparseLinear.from_linear(nn.Linear(64, 64), "50%")

        def forward(self, x):
            return self.fc(x) @ self.fc.weight

    model = Tied().eval()
    for op in operations(convert(model, "export")):
        assert sparse_of(op) == model.fc.packed


def test_what_is_too_old_is_refused():
    model = model_of()
    fst.sparsify(model, "75%")
    traced = torch.jit.trace(model, torch.randn(2, 64))
    with pytest.raises(fs.FastSparseError, match="packed weights are for iOS 16 and later; pass minimum_deployment"):
        ct.convert(traced, inputs=[ct.TensorType(shape=(2, 64))], skip_model_load=True)


@pytest.mark.parametrize(("how", "ios"), [("trace", 16), ("export", 18)])
def test_pruned_dense_models_are_marked(how, ios):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 24)
    )
    model.eval()
    with torch.no_grad():
        for layer in (model[0], model[4]):
            layer.weight *= 1e-3  # below what coremltools takes for zero
            fst.prune(layer.weight, "60%", out=layer.weight)
    before = copy.deepcopy(model.state_dict())
    with coreml.mark_sparse(model) as names:
        converted = convert(model, how, ios, x=torch.randn(1, 8, 8, 8))
    assert names == ["0.weight", "4.weight"]
    assert list(model.state_dict()) == list(before)
    sparse = operations(converted)
    assert len(sparse) == 2
    for op, layer in zip(sparse, (model[0], model[4]), strict=True):
        assert sparse_of(op) == fst.pack(layer.weight)


def program(w):
    @mb.program(input_specs=[mb.TensorSpec(shape=(2, w.shape[1]))], opset_version=ct.target.iOS18)
    def made(x):
        return mb.linear(x=x, weight=w, name="fc")

    precision = ct.precision.FLOAT32
    return ct.convert(
        made, minimum_deployment_target=ct.target.iOS18, compute_precision=precision, skip_model_load=True
    )


QUANTIZE = cto.OptimizationConfig(cto.OpLinearQuantizerConfig(mode="linear_symmetric"))
PALETTIZE = cto.OptimizationConfig(cto.OpPalettizerConfig(nbits=4, mode="uniform"))
JOINT = {
    "quantised": (cto.linear_quantize_weights, QUANTIZE, "sparse_blockwise_shift_scale"),
    "palettised": (cto.palettize_weights, PALETTIZE, "lut_to_sparse"),
}


@pytest.mark.parametrize(
    ("kind", "pattern"), [("quantised", "75%"), ("quantised", "2:4"), ("palettised", "75%"), ("palettised", "75%/4x1")]
)
def test_joint_forms_of_ios_18(kind, pattern):
    theirs, config, name = JOINT[kind]
    w = np.random.default_rng(0).standard_normal((96, 64)).astype(np.float32)
    kinds = [f"constexpr_{name}", "constexpr_sparse_to_dense"]
    # Pruned here, then compressed by coremltools.
    after = theirs(coreml.prune_weights(program(w), pattern), config, joint_compression=True)
    assert [op.op_type for op in operations(after)] == kinds
    assert np.array_equal(operations(after)[0].inputs[MASKS[kind]].val != 0, fs.select(w, pattern).to_bool())
    # The other way round: ranked by what the compressed weights stand for.
    first = theirs(program(w), config)
    stands_for = operations(first)[0].materialized_val_inference()
    before = coreml.prune_weights(first, pattern, joint_compression=True)
    assert [op.op_type for op in operations(before)] == kinds
    wanted = fs.prune(stands_for, pattern)
    assert np.array_equal(operations(before)[1].materialized_val_inference(), wanted)
    assert np.array_equal(operations(before)[0].inputs[MASKS[kind]].val != 0, wanted != 0)


MASKS = {"quantised": "data_mask", "palettised": "indices_mask"}


def test_what_compressed_weights_do_not_take(caplog):
    w = np.random.default_rng(0).standard_normal((96, 64)).astype(np.float32)
    quantised = cto.linear_quantize_weights(program(w), QUANTIZE)
    theirs = cto.OptimizationConfig(cto.OpMagnitudePrunerConfig(n_m_ratio=(2, 4)))
    with pytest.raises(
        fs.FastSparseError, match="weight 'fc_weight_0_quantized': config: coremltools has no structure"
    ):
        coreml.prune_weights(quantised, theirs, joint_compression=True)
    # 10 % of eight bits are less than the mask.
    assert [op.op_type for op in operations(coreml.prune_weights(quantised, "10%", joint_compression=True))] == [
        "constexpr_blockwise_shift_scale"
    ]
    assert "not applicable for 10% configuration" in caplog.text
