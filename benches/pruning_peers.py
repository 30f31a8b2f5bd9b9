"""SparseGPT and Wanda of llm-compressor, and SparseGPT of coremltools, for whole models.

Their functions run in the driver that `prune_model` uses, and get the Gram matrices that it gathers by products of
torch: layers with one input share one, block by block, each on what the blocks before it now give. llm-compressor need
not be installed with what it depends on (`pip install --no-deps llmcompressor==0.14.0.1`): of it two files are read,
which import torch, transformers and loguru.
"""

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

import fastsparse as fs
from fastsparse.calibration import Gram, _products
from fastsparse.checkpoint._recipe import Recipe
from fastsparse.torch._blocks import Place, run
from fastsparse.torch._layers import Layer, layers_of
from fastsparse.torch._products import TorchProducts
from fastsparse.torch._walk import walk

Prune = Callable[[nn.Module, Gram], None]


def prune(model: nn.Module, batches: list[Any], pattern: str, prune_layer: Prune) -> None:
    """Prunes what `prune_model` would prune, in place."""

    def visit(layers: Mapping[str, Layer], grams: Mapping[str, Gram]) -> None:
        for name, layer in layers.items():
            prune_layer(layer.module, grams[name])

    layers, _ = layers_of(model, Recipe(default=fs.pattern(pattern)))
    with run(model), _products.using(TorchProducts()):
        walk(model, batches, layers, visit, Place())


def llm_compressor(method: str, pattern: str) -> Prune:
    """`sparsegpt` or `wanda` of llm-compressor, with the defaults of its modifiers."""
    sparsity, zeros, of = _numbers(fs.pattern(pattern))
    file = _file(method, f"{'sgpt' if method == 'sparsegpt' else 'wanda'}_sparsify.py")
    options: dict[str, Any] = {"sparsity": sparsity, "prune_n": zeros, "prune_m": of}

    def sparsegpt(layer: nn.Module, gram: Gram) -> None:
        # It computes in the memory of the matrix.
        hessian = {layer: torch.from_numpy(gram.matrix.copy())}
        more = {"block_size": 128, "dampening_frac": 0.01, "preserve_sparsity_mask": False}
        layer.weight.data = file.sparsify_weight(layer, hessian, **options, **more)[1]

    def wanda(layer: nn.Module, gram: Gram) -> None:
        layer.weight.data = file.sparsify_weight(layer, {layer: torch.from_numpy(gram.norms).float() ** 2}, **options)

    return sparsegpt if method == "sparsegpt" else wanda


def coremltools(pattern: str) -> Prune:
    """`SparseGPT` of coremltools' `LayerwiseCompressor`."""
    from coremltools.optimize.torch.layerwise_compression.algorithms import ModuleSparseGPTConfig, SparseGPT

    sparsity, zeros, of = _numbers(fs.pattern(pattern))
    options: dict[str, Any] = {"n_m_ratio": (zeros, of)} if zeros else {"target_sparsity": sparsity}

    def prune_layer(layer: nn.Module, gram: Gram) -> None:
        algorithm = SparseGPT(layer, ModuleSparseGPTConfig(weight_dtype="float32", **options))
        algorithm._hessian = torch.from_numpy(gram.matrix.copy())
        # It compares outputs at the end; one token costs next to nothing.
        algorithm._inp1, algorithm._out1 = torch.zeros(1, layer.in_features), torch.zeros(1, layer.out_features)
        algorithm._compress_impl()

    return prune_layer


def _numbers(pattern: fs.Pattern) -> tuple[float, int, int]:
    """Sparsity, and n and m or zeros, as the peers take them."""
    if isinstance(pattern, fs.NM):
        return pattern.zeros / pattern.of, pattern.zeros, pattern.of
    assert isinstance(pattern, fs.Unstructured)
    return pattern.sparsity, 0, 0


def _file(method: str, name: str) -> ModuleType:
    found = importlib.util.find_spec("llmcompressor")
    if found is None or found.origin is None:
        raise SystemExit("llm-compressor is missing: pip install --no-deps llmcompressor==0.14.0.1 loguru")
    file = Path(found.origin).parent / "modifiers" / "pruning" / method / name
    spec = importlib.util.spec_from_file_location(f"peer_{method}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
