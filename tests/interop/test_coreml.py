"""`fastsparse.coreml` against coremltools: selection, params, weight files, and whole programs."""

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import types
from coremltools.libmilstoragepython import _BlobStorageReader, _BlobStorageWriter
from coremltools.optimize._utils import SparseParams, SparseParamsIos16
from coremltools.optimize.coreml import (
    OpMagnitudePrunerConfig,
    OpThresholdPrunerConfig,
    OptimizationConfig,
    decompress_weights,
)
from coremltools.optimize.coreml import prune_weights as their_prune_weights
from coremltools.optimize.coreml._quantization_passes import prune_weights as theirs

import fastsparse as fs
from fastsparse import coreml
from fastsparse.coreml import _coremltools_select

# Models keep temporary folders until they are collected.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Implicitly cleaning up:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)

SHAPES = [(24, 40), (17, 23), (16, 24, 3, 3), (12, 8, 5), (32, 16, 1, 1), (64, 1), (9, 16), (600, 300)]


def weights(shape, kind, ties):
    w = np.random.default_rng(3).standard_normal(shape)
    return (np.round(w * 4) / 4 if ties else w).astype(kind)


def assert_same(ours, params):
    flat = coreml.to_flat(ours)
    assert flat.shape == tuple(params.shape)
    assert np.array_equal(flat.mask, params.mask)
    assert flat.nonzero_data.tobytes() == params.nonzero_data.tobytes()
    assert flat.nonzero_data.dtype == params.nonzero_data.dtype


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("shape", SHAPES)
class TestSelection:
    """Bit for bit, ties and rounded percentiles included."""

    @pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.777, 0.9, 0.999, 1.0])
    def test_magnitude(self, shape, kind, ties, share):
        w = weights(shape, kind, ties)
        assert_same(_coremltools_select.by_magnitude(w, share), theirs.compress_by_magnitude(w, share))

    @pytest.mark.parametrize("threshold", [1e-12, 0.1, 0.25, 0.7])
    def test_threshold(self, shape, kind, ties, threshold):
        w = weights(shape, kind, ties)
        assert_same(_coremltools_select.by_threshold(w, threshold), theirs.compress_by_threshold(w, threshold, 0.0))

    @pytest.mark.parametrize("share", [0.3, 0.5, 0.9, 1.0])
    @pytest.mark.parametrize("axis", [0, 1])
    @pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 8, 19, 129])
    def test_blocks(self, shape, kind, ties, length, axis, share):
        w = weights(shape, kind, ties)
        params = theirs.compress_by_magnitude(w, share, length, axis)
        if params is not None:
            assert_same(_coremltools_select.by_block(w, share, length, axis), params)

    @pytest.mark.parametrize(("zeros", "of"), [(1, 2), (2, 4), (3, 4), (4, 4), (1, 5), (4, 5), (6, 8)])
    @pytest.mark.parametrize("axis", [0, 1])
    def test_n_m(self, shape, kind, ties, zeros, of, axis):
        """Ties stay in order for float16; for float32 theirs is not defined, so there are none."""
        if kind == np.float16:
            w = weights(shape, kind, ties)
        else:
            w = (np.arange(1, 1 + np.prod(shape)) * 7919 % 200_003).astype(kind).reshape(shape)
        params = theirs.compress_by_nm_sparsity(w, (zeros, of), axis)
        if params is not None:
            assert_same(_coremltools_select.by_n_m(w, zeros, of, axis), params)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("scale", [1e-4, 300])
def test_norms_that_leave_float16(scale):
    """There a target of half prunes most, or nothing; here only where that is asked for."""
    w = (np.random.default_rng(0).standard_normal((64, 64)) * scale).astype(np.float16)
    params = theirs.compress_by_magnitude(w, 0.5, 4, 0)
    assert_same(_coremltools_select.by_block(w, 0.5, 4, 0), params)
    assert abs(params.nonzero_data.size / w.size - 0.5) > 0.1
    assert fs.compress(w, fs.Block(4, 0.5, axis=0)).sparsity == 0.5


@pytest.mark.parametrize("shape", [(24, 40), (17, 23), (5, 3, 2)])
def test_params(shape):
    w = fs.prune(weights(shape, np.float16, False), "50%")
    s = fs.pack(w)
    new, old = coreml.to_sparse_params(s, ios=18), coreml.to_sparse_params(s)
    assert isinstance(new, SparseParams)
    assert isinstance(old, SparseParamsIos16)
    assert types.builtin_to_string(types.numpy_type_to_builtin_type(new.mask.dtype)) == "uint1"
    for params in (new, old):
        assert np.array_equal(theirs.decompress(params), w)
        assert coreml.from_sparse_params(params) == s
    assert coreml.from_sparse_params(theirs._produce_sparse_param(w)) == s
    peer = theirs._produce_sparse_param(w)
    assert old.nonzero_data.tobytes() == peer.nonzero_data.tobytes()
    assert np.array_equal(old.mask, peer.mask)
    assert old.shape == peer.shape
    with pytest.raises(fs.FastSparseError, match="expected 16 or 18"):
        coreml.to_sparse_params(s, ios=17)
    with pytest.raises(
        fs.FastSparseError, match="Core ML has sparse weights of float32, float16, int8, uint8, got float64"
    ):
        coreml.to_sparse_params(fs.pack(w.astype(np.float64)))


class TestWeightFiles:
    KINDS = ("float16", "float32", "int8", "uint8", "int16", "uint16", "int32", "uint32")

    def call(self, owner, verb, kind):
        short = {"float16": "fp16", "float32": "float"}.get(kind, kind)
        return getattr(owner, f"{verb}_{short}_data")

    def test_what_they_write_is_read(self, tmp_path):
        path = str(tmp_path / "weight.bin")
        writer = _BlobStorageWriter(path)
        written = {}
        for kind in self.KINDS:
            array = np.arange(-5, 36).astype(kind)
            given = array.view(np.uint16) if kind == "float16" else array
            written[self.call(writer, "write", kind)(given)] = kind, array
        for kind, top in (("uint1", 2), ("uint2", 4), ("uint3", 8), ("uint4", 16), ("uint6", 64)):
            array = (np.arange(45) % top).astype(np.uint8)
            written[self.call(writer, "write", kind)(array)] = kind, array
        array = (np.arange(45) % 16 - 8).astype(np.int8)
        written[writer.write_int4_data(array)] = "int4", array
        del writer
        blobs = coreml.read_blobs(path)
        assert list(blobs) == list(written)
        for blob, (kind, array) in zip(blobs.values(), written.values(), strict=True):
            assert (blob.dtype, blob.size) == (kind, array.size)
            assert np.array_equal(blob.array(), array)
        # The same blobs written by us are the same file.
        coreml.write_blobs(tmp_path / "again", blobs.values())
        assert (tmp_path / "again").read_bytes() == (tmp_path / "weight.bin").read_bytes()

    def test_they_read_what_is_written(self, tmp_path):
        path = str(tmp_path / "weight.bin")
        arrays = [np.arange(-5, 36).astype(kind) for kind in self.KINDS]
        mask = fs.Bitmask.from_bool(np.arange(33).reshape(3, 11) % 3 == 0)
        *offsets, last = coreml.write_blobs(path, [*arrays, mask])
        reader = _BlobStorageReader(path)
        for offset, kind, array in zip(offsets, self.KINDS, arrays, strict=True):
            found = np.array(self.call(reader, "read", kind)(offset))
            assert np.array_equal(found.view(np.float16) if kind == "float16" else found, array)
        assert np.array_equal(reader.read_uint1_data(last), mask.to_bool().reshape(-1))

    @pytest.mark.parametrize("kind", KINDS)
    def test_words_that_mean_nothing_may_hold_anything(self, tmp_path, kind):
        """As coremltools 7 left them."""
        path, array = str(tmp_path / "weight.bin"), np.arange(300).astype(kind)
        coreml.write_blobs(path, [array])
        with open(path, "r+b") as file:
            file.seek(64 + 24)
            file.write(np.uint64([11751492080, 6093881488, 4406054292, 11840330032, 6093881552]).tobytes())
        found = np.array(self.call(_BlobStorageReader(path), "read", kind)(64))
        ours = coreml.read_blobs(path)[64].array()
        assert np.array_equal(ours, found.view(np.float16) if kind == "float16" else found)
        assert np.array_equal(ours, array)


def program(target):
    """Convolutions and linear layers, one so small that it is left alone. No magnitude occurs twice in a weight."""
    rng = np.random.default_rng(9)

    def distinct(*shape):
        codes = 0x1400 + rng.choice(0x5000, size=shape, replace=False)  # float16, 2^-10 to 2^10
        return (codes + (rng.integers(0, 2, shape) << 15)).astype(np.uint16).view(np.float16).astype(np.float32)

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 8, 16, 16))], opset_version=target)
    def built(x):
        x = mb.conv(x=x, weight=distinct(32, 8, 3, 3), pad_type="same", name="first")
        x = mb.relu(x=x)
        x = mb.conv(x=x, weight=distinct(64, 32, 3, 3), strides=[2, 2], pad_type="same", name="second")
        x = mb.reduce_mean(x=x, axes=[2, 3])
        x = mb.linear(x=x, weight=distinct(100, 64), bias=distinct(100), name="third")
        return mb.linear(x=x, weight=distinct(10, 100), name="small")

    return ct.convert(
        built,
        convert_to="mlprogram",
        minimum_deployment_target=target,
        compute_units=ct.ComputeUnit.CPU_ONLY,
        compute_precision=ct.precision.FLOAT16 if target == ct.target.iOS18 else ct.precision.FLOAT32,
    )


@pytest.fixture(scope="module", params=[ct.target.iOS16, ct.target.iOS18], ids=["ios16", "ios18"])
def model(request):
    return program(request.param)


CONFIGS = {
    "magnitude": OptimizationConfig(OpMagnitudePrunerConfig(target_sparsity=0.6)),
    "block": OptimizationConfig(OpMagnitudePrunerConfig(target_sparsity=0.5, block_size=4)),
    "n:m": OptimizationConfig(OpMagnitudePrunerConfig(n_m_ratio=(3, 4), dim=0)),
    "threshold": OptimizationConfig(OpThresholdPrunerConfig(threshold=2.0)),
    "by type": OptimizationConfig(
        OpThresholdPrunerConfig(threshold=0.01),
        op_type_configs={"conv": OpMagnitudePrunerConfig(n_m_ratio=(2, 4)), "linear": None},
    ),
    "by name": OptimizationConfig(op_name_configs={"third": OpMagnitudePrunerConfig(target_sparsity=0.9)}),
}


def dense(model):
    """The weights of the program with every sparse one unpacked."""
    program = decompress_weights(model)._mil_program
    consts = (op for op in program.functions["main"].operations if op.op_type == "const")
    return {op.name: op.outputs[0].val for op in consts if getattr(op.outputs[0].val, "size", 0) > 500}


def sparse_ops(model):
    return [op for op in model._mil_program.functions["main"].operations if op.op_type == "constexpr_sparse_to_dense"]


def weight_file(model):
    with open(f"{model.weights_dir}/weight.bin", "rb") as file:
        return file.read()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("config", CONFIGS)
def test_programs_are_the_same(model, config):
    """With compat the program and its weight file are theirs, byte for byte."""
    wanted = their_prune_weights(model, CONFIGS[config])
    ours = coreml.prune_weights(model, CONFIGS[config], compat="coremltools")
    assert ours.get_spec() == wanted.get_spec()
    assert weight_file(ours) == weight_file(wanted)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("config", "pattern"),
    [
        ("magnitude", lambda shape: fs.Unstructured(0.6)),
        ("block", lambda shape: fs.Block(4, 0.5, axis=0)),
        ("n:m", lambda shape: fs.NM(zeros=3, of=4, axis=0)),
        ("threshold", lambda shape: fs.Threshold(2.0)),
    ],
)
def test_programs_by_our_counts(model, config, pattern):
    """Without compat the same weights are sparse, by the pattern that the config means."""
    wanted = their_prune_weights(model, CONFIGS[config])
    ours = coreml.prune_weights(model, CONFIGS[config])
    assert [op.name for op in sparse_ops(ours)] == [op.name for op in sparse_ops(wanted)]
    assert len(sparse_ops(ours)) == 3
    before, after = dense(model), dense(ours)
    assert before.keys() == {name.removesuffix("_sparsified") for name in after} | before.keys()
    sizes = {array.shape: array for array in before.values()}
    for array in after.values():
        w = sizes[array.shape]
        expected = fs.prune(w, pattern(w.shape)) if w.size > 2048 else w
        assert np.array_equal(array, expected)


def test_sparse_weights_are_found_in_the_file(model, tmp_path):
    """Values and masks of a pruned program lie in its weight file as blobs."""
    pruned = coreml.prune_weights(model, CONFIGS["magnitude"])
    blobs = coreml.read_blobs(f"{pruned.weights_dir}/weight.bin")
    held = [blob.data.tobytes() for blob in blobs.values()]
    for array in dense(pruned).values():
        if (array == 0).mean() > 0.5:
            flat = coreml.to_flat(fs.pack(array))
            assert flat.nonzero_data.tobytes() in held
            assert flat.mask.tobytes() in held


@pytest.mark.parametrize(
    ("form", "config"),
    [
        ("60%", OpMagnitudePrunerConfig(target_sparsity=0.6)),
        ("2:4", OpMagnitudePrunerConfig(n_m_ratio=(2, 4))),
        ("75%/4x1", OpMagnitudePrunerConfig(target_sparsity=0.75, block_size=4)),
        (fs.NM(zeros=3, of=4, axis=0), OpMagnitudePrunerConfig(n_m_ratio=(3, 4), dim=0)),
        (fs.Block(4, 0.5), OpMagnitudePrunerConfig(target_sparsity=0.5, block_size=4, dim=1)),
        ("threshold=2.0", OpThresholdPrunerConfig(threshold=2.0)),
    ],
)
def test_a_pattern_is_the_config_that_says_it(model, form, config):
    """The same program with the same weights, with compat theirs."""
    for compat in (None, "coremltools"):
        wanted = coreml.prune_weights(model, OptimizationConfig(config), compat=compat)
        ours = coreml.prune_weights(model, form, compat=compat)
        assert ours.get_spec() == wanted.get_spec()
        assert weight_file(ours) == weight_file(wanted)


@pytest.mark.parametrize("form", ["50%/row", "top2/8", "50%/4x4", "50%/1x8"])
def test_patterns_that_no_config_says(model, form):
    """Convolutions and linear layers by our own selection; groups run over the input channels."""
    pruned = coreml.prune_weights(model, form)
    assert len(sparse_ops(pruned)) == 3
    before = {array.shape: array for array in dense(model).values()}
    chosen = fs.pattern(form)
    if isinstance(chosen, fs.TopK):
        chosen = fs.TopK(keep=2, of=8, axis=1)
    for array in dense(pruned).values():
        w = before[array.shape]
        assert np.array_equal(array, fs.prune(w, chosen) if w.size > 2048 else w)
    with pytest.raises(fs.FastSparseError, match=r"config: .* is nothing that coremltools has"):
        coreml.prune_weights(model, form, compat="coremltools")


def test_a_path_is_a_model(model, tmp_path):
    model.save(str(tmp_path / "x.mlpackage"))
    wanted = coreml.prune_weights(model, "50%")
    for path in (tmp_path / "x.mlpackage", str(tmp_path / "x.mlpackage")):
        assert weight_file(coreml.prune_weights(path, "50%")) == weight_file(wanted)
    with pytest.raises(FileNotFoundError, match="none"):
        coreml.prune_weights(tmp_path / "none.mlpackage", "50%")
    (tmp_path / "x.mlmodelc").mkdir()
    with pytest.raises(fs.FastSparseError, match=r"is compiled; name the \.mlpackage"):
        coreml.prune_weights(tmp_path / "x.mlmodelc", "50%")


def test_what_becomes_no_smaller_stays_dense(model, caplog):
    pruned = coreml.prune_weights(model, "1%")
    assert sparse_ops(pruned) == []
    assert "not applicable for 1% configuration. Skipped." in caplog.text


@pytest.mark.parametrize("config", ["50%", CONFIGS["magnitude"], "2:4", CONFIGS["threshold"]])
def test_an_error_names_the_layer(config):
    w = np.ones((64, 64), np.float32)
    w[3, 4] = np.nan

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 64))], opset_version=ct.target.iOS16)
    def built(x):
        return mb.linear(x=x, weight=w, name="third")

    model = ct.convert(built, convert_to="mlprogram", minimum_deployment_target=ct.target.iOS16, skip_model_load=True)
    with pytest.raises(fs.FastSparseError, match=r"linear 'third\w*', weight 'third_weight\w*': .*NaN"):
        coreml.prune_weights(model, config)


def test_what_is_refused(model):
    with pytest.raises(fs.FastSparseError, match=r"compat: expected None"):
        coreml.prune_weights(model, CONFIGS["magnitude"], compat="x")
    with pytest.raises(fs.FastSparseError, match="50 percent"):
        coreml.prune_weights(model, "50 percent")
    with pytest.raises(fs.FastSparseError, match=r"conv 'first\w*', weight 'first_weight\w*': .*multiple of 7"):
        coreml.prune_weights(model, fs.NM(zeros=1, of=7, axis=1, tail="error"))
    with pytest.raises(ValueError, match="only accept"):
        coreml.prune_weights(model, OptimizationConfig(ct.optimize.coreml.OpPalettizerConfig(mode="kmeans", nbits=4)))
