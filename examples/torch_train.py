"""Training under a mask that is chosen anew every few steps, with a sparsity that grows along a polynomial.

    python examples/torch_train.py [--sparsity 0.9] [--steps 600] [--every 20]

The schedule is that of Zhu and Gupta, "To prune, or not to prune" (2017): from a dense start the sparsity rises as
``s · (1 − (1 − t)³)``, fast at first, while there is much to spare, and levels off; the last third of the steps train
what is left. Choosing takes about as long as reading the weights, so it may happen often. At the end the model is
packed.
"""

import argparse

import torch
from torch import Tensor, nn

import fastsparse as fs
import fastsparse.torch as fst
from fastsparse import checkpoint


def make_model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 16))


def train(model: nn.Module, x: Tensor, y: Tensor, pruner: fst.Pruner, steps: int) -> list[float]:
    """Trains all linear layers under masks; returns the losses."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        at = torch.randint(len(x), (128,))
        loss = nn.functional.mse_loss(model(x[at]), y[at])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pruner.step()
        losses.append(loss.item())
    return losses


def main(arguments: list[str] | None = None) -> None:
    """Trains, packs, and compares the packed model with the dense one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--every", type=int, default=20)
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    x = torch.randn(4096, 64)
    with torch.no_grad():
        y = make_model()(x)  # what there is to learn: another network
        y /= y.std()
    model = make_model()
    every_layer = checkpoint.Recipe(default=fs.Unstructured(options.sparsity), min_size=0)
    pruner = fst.Pruner(model, every_layer, end=max(1, options.steps * 2 // 3), every=options.every)
    losses = train(model, x, y, pruner, options.steps)
    dense = model(x).detach()
    report = pruner.finish()
    print(f"loss: {losses[0]:.3f} at first, {sum(losses[-20:]) / 20:.3f} at the end, {y.var().item():.3f} by guessing")
    print(f"{report.sparsity:.1%} of the packed weights are zero")
    print(f"weights: {report.bytes_after / 1e3:.1f} kB, dense {report.bytes_before / 1e3:.1f} kB")
    print(f"packed and dense differ by at most {(model(x) - dense).abs().max().item():.1e}")


if __name__ == "__main__":
    main()
