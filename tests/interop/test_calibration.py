"""Wanda and SparseGPT against coremltools' `LayerwiseCompressor`, the maintained implementation of the latter."""

import calibration_oracle as oracle
import numpy as np
import pytest
import torch
from coremltools.optimize.torch.layerwise_compression import LayerwiseCompressor, LayerwiseCompressorConfig

import fastsparse as fs
from fastsparse import calibration

PATTERNS = {
    "50%": {"target_sparsity": 0.5},
    "70%": {"target_sparsity": 0.7},
    "2:4": {"n_m_ratio": (2, 4)},
}


def of_the_peer(w, x, options):
    """The weights that coremltools leaves of a linear layer."""
    layer = torch.nn.Linear(w.shape[1], w.shape[0], bias=False)
    layer.weight.data = torch.from_numpy(w.copy())
    config = LayerwiseCompressorConfig.from_dict(
        {
            "global_config": {"algorithm": "sparse_gpt", "weight_dtype": "float32", **options},
            "calibration_nsamples": 1,
        }
    )
    compressor = LayerwiseCompressor(torch.nn.Sequential(layer), config)
    return compressor.compress([torch.from_numpy(x)], device="cpu")[0].weight.detach().numpy()


@pytest.mark.parametrize("outliers", [False, True], ids=["even", "outliers"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_sparsegpt(pattern, outliers):
    w, x = oracle.layer(192, 512, outliers=outliers)
    gram = calibration.Gram(512)
    gram.update(x)
    peer = of_the_peer(w, x, PATTERNS[pattern])
    _, mask = calibration.sparsegpt(w, gram, pattern, rounding="peer")
    assert np.mean(mask.to_bool() == (peer != 0)) >= 0.999
    exact, _ = calibration.sparsegpt(w, gram, pattern)
    assert np.count_nonzero(exact == 0) == w.size - fs.select(w, pattern).count
    error = oracle.layer_error(w, exact, x)
    theirs = oracle.layer_error(w, peer, x)
    assert error <= 1.001 * theirs
    refined = calibration.refine(w, gram, exact != 0, start=exact)
    assert oracle.layer_error(w, refined, x) < 0.95 * theirs
