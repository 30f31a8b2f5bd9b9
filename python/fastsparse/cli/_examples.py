"""What the help of each command shows to be typed."""

__all__ = ["EXAMPLES"]

EXAMPLES = {
    "demo": ("fastsparse demo",),
    "compress": (
        "fastsparse compress model.safetensors small.safetensors --pattern 50%",
        "fastsparse compress model-folder small-folder --pattern 2:4",
        "fastsparse compress model-folder small-folder --pattern 60% --global",
        "fastsparse compress model-folder --pattern 75%/4x1 --plan",
    ),
    "prune": (
        "fastsparse prune model-folder small-folder --pattern 50% --data text.txt",
        "fastsparse prune model-folder small-folder --pattern 2:4 --data text.txt \\",
        "    --method wanda --samples 128",
        "fastsparse prune model-folder small-folder --recipe recipe.toml",
    ),
    "calibrate": ("fastsparse calibrate model-folder statistics.safetensors --data text.txt",),
    "eval": ("fastsparse eval small-folder --data other-text.txt",),
    "decompress": ("fastsparse decompress small.safetensors dense.safetensors",),
    "convert": (
        "fastsparse convert orphaned-folder dense-folder --to dense",
        "fastsparse convert pruned-folder packed-folder --to sparse-bitmask",
    ),
    "inspect": (
        "fastsparse inspect small.safetensors",
        "fastsparse inspect a.safetensors b.safetensors --json",
    ),
    "verify": (
        "fastsparse verify small.safetensors",
        "fastsparse verify small.safetensors --against model.safetensors",
    ),
    "sweep": (
        "fastsparse sweep model-folder",
        "fastsparse sweep model-folder --pattern 50% --pattern 2:4 --pattern 75%/4x1",
        "fastsparse sweep model-folder --total 60% --recipe recipe.toml",
    ),
    "report": ("fastsparse report model-folder --html report.html",),
    "bench": (
        "fastsparse bench",
        "fastsparse bench --shape 4096x4096 --dtype bfloat16 --batch 1 --sparsity 90%",
    ),
}
