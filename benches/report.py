"""Measures everything and writes the results into docs/performance/NAME.md, with pictures beside it: `make bench`.

NAME is that of the processor and its instruction set, unless `--name` says another.

Four processes measure: all cases and peers; NumPy's AVX2 path, chosen by its environment, since on some CPUs it is
the faster one; packing with pages that the allocator keeps; linear layers.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import linear
import render

HERE = Path(__file__).parent
ROOT = HERE.parent
NUMPY_AVX2 = {"NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR"}
# No mmap for large arrays and nothing given back: the pages of one result serve the next.
KEEP_PAGES = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(1 << 28)}
AVX2_CASES = "^(select|row|nm|compress-(50|2:4))-"

# Name of the run, its script and arguments, its environment.
RUNS: dict[str, tuple[list[str], dict[str, str]]] = {
    "cases": (["worker.py", "--isas"], {}),
    "numpy-avx2": (["worker.py", "--only", AVX2_CASES, "--peers", "^NumPy (partition|sort)"], NUMPY_AVX2),
    "kept-pages": (["worker.py", "--only", "^(pack|compress|unpack-fresh)", "--no-peers"], KEEP_PAGES),
    "extras": (["extras.py"], {}),
    "linear": (["linear.py"], {}),
}


def measure(name: str, results: Path, small: bool, cases: str | None) -> None:
    (script, *arguments), environment = RUNS[name]
    if small:
        arguments += ["--shape", "256", "1024"]
        arguments += {"extras.py": ["--largest", "16"], "linear.py": ["--seconds", "0"]}.get(script, ["--rounds", "2"])
    if cases is not None and script == "worker.py":
        arguments += ["--only", cases]
    print(f"measuring {name} ...", file=sys.stderr, flush=True)
    with (results / f"{name}.jsonl").open("w") as out:
        command = [sys.executable, str(HERE / script), *arguments]
        subprocess.run(command, stdout=out, env={**os.environ, **environment}, check=True)


def loaded(results: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (results / f"{name}.jsonl").read_text().splitlines()]


def joined(rows: list[dict[str, Any]], avx2: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """NumPy's other path as one more peer of the same case; each kept its ratio to ours of its own run."""
    others = {row["name"]: row for row in avx2}
    for row in rows:
        other = others.get(row["name"], {"peers": []})
        for peer in other["peers"]:
            row["peers"].append(f"{peer}, AVX2 path")
            for key in ("ms", "over_ours"):
                row[key][f"{peer}, AVX2 path"] = other[key][peer]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="256 × 1024 weights: to try the program, not the kernels")
    parser.add_argument("--cases", help="only those whose name matches, such as ^select-50-")
    parser.add_argument("--only", choices=["none", *RUNS], help="measure this, take the rest from the last time")
    parser.add_argument("--results", type=Path, default=ROOT / "target" / "bench")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "performance")
    parser.add_argument("--name", default=render.machine_name(), help="of the page, [default: %(default)s]")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    load_before = os.getloadavg()[0]
    for name in RUNS if options.only is None else [options.only]:
        if name != "none":
            measure(name, options.results, options.small, options.cases)
    machine = options.results / "machine.json"
    if options.only is None or not machine.exists():
        machine.write_text(json.dumps(render.machine(load_before)))
    rows = joined(loaded(options.results, "cases"), loaded(options.results, "numpy-avx2"))
    kept, extras = loaded(options.results, "kept-pages"), loaded(options.results, "extras")
    page = options.docs / f"{options.name}.md"
    render.write(page, json.loads(machine.read_text()), rows, kept, extras)
    linear.write(page, loaded(options.results, "linear"))


if __name__ == "__main__":
    main()
