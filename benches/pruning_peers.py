"""SparseGPT and Wanda of llm-compressor, and SparseGPT of coremltools, for whole models.

Their functions run in the driver that `prune_model` uses: block by block, each on what the blocks before it now give,
layers with one input sharing what is gathered of it. llm-compressor need not be installed with what it depends on
(`pip install --no-deps llmcompressor==0.14.0.1`): of it only two files are read, which import torch and transformers.
"""

import importlib.util
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import fastsparse as fs
from fastsparse.torch._blocks import capture, run, stacks_of


class Peer(Protocol):
    """What a peer gathers of the inputs of layers, and how it prunes one of them."""

    def note(self, layer: nn.Linear, x: Tensor) -> None:
        """Gathers what is known of the input of a layer."""

    def prune(self, layer: nn.Linear, leader: nn.Linear) -> None:
        """Prunes a layer by what was gathered of the input of `leader`."""


def prune(model: nn.Module, batches: list[Any], peer: Peer) -> None:
    """Prunes the linear layers in the blocks of a model, in place."""
    with run(model):
        for stack in stacks_of(model):
            capture(model, stack, batches)
            hidden = stack.inputs
            for path, block in stack.blocks.items():
                calls = [partial(call.run, block) for call in stack.calls[path]]
                for layer, leader in _note(block, calls, hidden, peer).items():
                    peer.prune(layer, leader)
                hidden = [call(x) for call, x in zip(calls, hidden, strict=True)]


def _note(block: nn.Module, calls: list[Any], hidden: list[Tensor], peer: Peer) -> dict[nn.Linear, nn.Linear]:
    """Runs a block; returns for each linear layer the first one that has the same input."""
    leaders: dict[nn.Linear, nn.Linear] = {}
    seen: list[tuple[Tensor, nn.Linear]] = []

    def note(layer: nn.Linear, args: tuple[Tensor, ...]) -> None:
        leader = next((other for x, other in seen if x is args[0]), layer)
        leaders[layer] = leader
        if leader is layer:
            seen.append((args[0], layer))
            peer.note(layer, args[0])

    layers = [module for module in block.modules() if isinstance(module, nn.Linear)]
    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    for call, x in zip(calls, hidden, strict=True):
        call(x)
        seen.clear()
    for handle in handles:
        handle.remove()
    return leaders


class LLMCompressor:
    """`sparsegpt` or `wanda` of llm-compressor, with the defaults of its modifiers."""

    def __init__(self, method: str, pattern: str) -> None:
        self._sparsegpt, self._pattern = method == "sparsegpt", fs.pattern(pattern)
        self._file = _llm_compressor(method, f"{'sgpt' if self._sparsegpt else 'wanda'}_sparsify.py")
        self._gathered: dict[nn.Module, tuple[Tensor, int]] = {}

    def note(self, layer: nn.Linear, x: Tensor) -> None:
        file = self._file
        make, add = (
            (file.make_empty_hessian, file.accumulate_hessian)
            if self._sparsegpt
            else (file.make_empty_row_scalars, file.accumulate_row_scalars)
        )
        gathered, samples = self._gathered.get(layer) or (make(layer), 0)
        self._gathered[layer] = add(x, layer, gathered, samples)

    def prune(self, layer: nn.Linear, leader: nn.Linear) -> None:
        # It computes in the memory of what was gathered.
        gathered = {layer: self._gathered[leader][0].clone()}
        sparsity, zeros, of = _numbers(self._pattern)
        options: dict[str, Any] = {"sparsity": sparsity, "prune_n": zeros, "prune_m": of}
        if self._sparsegpt:
            options |= {"block_size": 128, "dampening_frac": 0.01, "preserve_sparsity_mask": False}
            layer.weight.data = self._file.sparsify_weight(layer, gathered, **options)[1]
        else:
            layer.weight.data = self._file.sparsify_weight(layer, gathered, **options)


class CoreMLTools:
    """`SparseGPT` of coremltools' `LayerwiseCompressor`."""

    def __init__(self, pattern: str) -> None:
        sparsity, zeros, of = _numbers(fs.pattern(pattern))
        self._options = {"n_m_ratio": (zeros, of)} if zeros else {"target_sparsity": sparsity}
        self._gathered: dict[nn.Module, Any] = {}

    def _algorithm(self, layer: nn.Linear) -> Any:
        from coremltools.optimize.torch.layerwise_compression.algorithms import ModuleSparseGPTConfig, SparseGPT

        return SparseGPT(layer, ModuleSparseGPTConfig(weight_dtype="float32", **self._options))

    def note(self, layer: nn.Linear, x: Tensor) -> None:
        if layer not in self._gathered:
            self._gathered[layer] = self._algorithm(layer)
        self._gathered[layer].add_batch(x, torch.zeros(1, layer.out_features))

    def prune(self, layer: nn.Linear, leader: nn.Linear) -> None:
        algorithm = self._algorithm(layer)
        algorithm._hessian = self._gathered[leader]._hessian.clone()
        # It compares outputs at the end; one token costs next to nothing.
        algorithm._inp1, algorithm._out1 = torch.zeros(1, layer.in_features), torch.zeros(1, layer.out_features)
        algorithm._compress_impl()


def _numbers(pattern: fs.Pattern) -> tuple[float, int, int]:
    """Sparsity, and n and m or zeros, as the peers take them."""
    if isinstance(pattern, fs.NM):
        return pattern.zeros / pattern.of, pattern.zeros, pattern.of
    assert isinstance(pattern, fs.Unstructured)
    return pattern.sparsity, 0, 0


def _llm_compressor(method: str, name: str) -> ModuleType:
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
