"""A Core ML program, pruned here and by coremltools: times, and that both are the same to the byte. Runs on Linux too.

pip install 'fastsparse-py[coreml]'
python examples/coreml_model.py [MODEL.mlpackage]
"""

import sys
import time
from typing import Any

import coremltools as ct
import numpy as np
from coremltools.converters.mil.mil import Builder as mb
from coremltools.optimize.coreml import OpMagnitudePrunerConfig, OptimizationConfig, prune_weights

from fastsparse import coreml


def make_model() -> Any:
    """A convolution and two linear layers with random weights."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 16, 32, 32))], opset_version=ct.target.iOS16)
    def program(x: Any) -> Any:
        x = mb.conv(x=x, weight=normal(64, 16, 3, 3), pad_type="same")
        x = mb.reduce_mean(x=mb.relu(x=x), axes=[2, 3])
        x = mb.relu(x=mb.linear(x=x, weight=normal(1024, 64)))
        return mb.linear(x=x, weight=normal(512, 1024))

    return ct.convert(program, convert_to="mlprogram", minimum_deployment_target=ct.target.iOS16)


def weights(model: Any) -> bytes:
    """The weight file of a model."""
    with open(f"{model.weights_dir}/weight.bin", "rb") as file:
        return file.read()


def main(path: str | None = None) -> None:
    """Prune three quarters of the weights."""
    model = ct.models.MLModel(path) if path else make_model()
    config = OptimizationConfig(OpMagnitudePrunerConfig(target_sparsity=0.75))
    results = {}
    for name, prune in (
        ("coremltools", prune_weights),
        (
            "fastsparse, the same to the bit",
            lambda model, config: coreml.prune_weights(model, config, compat="coremltools"),
        ),
        ("fastsparse, exact counts", coreml.prune_weights),
    ):
        started = time.perf_counter()
        results[name] = prune(model, config)
        print(f"{name}: {time.perf_counter() - started:.2f} s, loading and saving the program included")
    theirs, same, exact = results.values()
    assert same.get_spec() == theirs.get_spec()
    assert weights(same) == weights(theirs)
    print(f"weight file: {len(weights(model))} → {len(weights(exact))} bytes")
    for offset, blob in coreml.read_blobs(f"{exact.weights_dir}/weight.bin").items():
        print(f"  blob at {offset}: {blob.size} × {blob.dtype}")


if __name__ == "__main__":
    main(*sys.argv[1:])
