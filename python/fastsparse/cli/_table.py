"""Reports as tables."""

import json

from fastsparse import checkpoint

__all__ = ["show", "size"]


_CELLS = ("{:<{}}",) * 4 + ("{:>{}}",) * 4 + ("{:<{}}",)


def show(report: checkpoint.Report, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report.to_dict(), indent=2))
        return
    heading = ("tensor", "shape", "dtype", "pattern", "sparsity", "kept energy", "before", "after", "")
    rows: list[tuple[str, ...]] = [heading, *(_row(tensor) for tensor in report.tensors)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(map(str.format, _CELLS, row, widths)).rstrip())
    change = f"{report.bytes_after / report.bytes_before:.1%}" if report.bytes_before else "100.0%"
    print(
        f"{len(report.tensors)} tensors, {report.packed} packed, {report.sparsity:.1%} zeros where pruned: "
        f"{size(report.bytes_before)} → {size(report.bytes_after)} ({change}) in {report.seconds:.2f} s"
        + (f", {len(report.resumed)} finished shards of a killed run taken over" if report.resumed else "")
    )


def _row(tensor: checkpoint.TensorReport) -> tuple[str, ...]:
    """The cells of a tensor's line."""
    return (
        tensor.name,
        "×".join(map(str, tensor.shape)) or ("–" if tensor.dtype == "file" else "scalar"),
        tensor.dtype if tensor.bits is None else f"{tensor.dtype} in {tensor.bits} bits",
        tensor.pattern or "–",
        "–" if tensor.sparsity is None else f"{tensor.sparsity:.1%}",
        "–" if tensor.kept_energy is None else f"{tensor.kept_energy:.2%}",
        size(tensor.bytes_before),
        size(tensor.bytes_after),
        tensor.reason or "",
    )


def size(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
