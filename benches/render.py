"""The tables of a machine, docs/performance/NAME.md, and their picture."""

import datetime
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib
import peers
from cases import Target

import fastsparse as fs
from fastsparse import _core
from fastsparse.cli._measure import cpu_fields, cpu_name

Row: TypeAlias = dict[str, Any]
BEGIN, END = "<!-- measured by make bench -->", "<!-- end of what make bench writes -->"
PACKAGES = ["numpy", "ml_dtypes", "torch", "coremltools", "compressed-tensors", "scipy"]


def machine_name() -> str:
    """A name for a page: the processor's family and model, and the highest instruction set."""
    fields = cpu_fields()
    family = f"family{fields['cpu family']}-model{fields['model']}" if "model" in fields else platform.machine()
    return f"{family}-{_core.available_isas()[-1]}"


def machine(load_before: float) -> Row:
    versions = [("fastsparse", fs.__version__), ("Python", platform.python_version())]
    for package in PACKAGES:
        try:
            versions.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpu": f"{cpu_name()}; {os.cpu_count()} cores; instruction sets {', '.join(_core.available_isas())}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions),
        "date": datetime.date.today().isoformat(),
        "load": f"{load_before:.1f} before, {os.getloadavg()[0]:.1f} at the end",
        "skipped": ", ".join(peers.MISSING) or "none",
    }


def table(heads: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in [heads, ["---"] * len(heads), *rows]]
    return "\n".join(lines) + "\n"


def short(value: float) -> str:
    """Three digits."""
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


def over(row: Row, side: str) -> float:
    """Our time over that of a probe."""
    return 1 / float(row["over_ours"][side])


def over_read(row: Row, side: str) -> float:
    """The time of one of our sides over the read probe."""
    return float(row["over_ours"][side] / row["over_ours"]["read"])


def over_byte_limit(row: Row) -> float:
    """Our time over that of moving the least bytes as fast as the faster read probe reads."""
    reads = max(over(row, "read"), over(row, "read, 2 threads"))
    return float(reads * row["bytes"] / row["moved"])


def best(row: Row, name: str = "") -> str | None:
    found = [peer for peer in row["peers"] if peer.startswith(name)]
    return min(found, key=lambda peer: row["over_ours"][peer]) if found else None


def reached(row: Row) -> list[tuple[str, bool]]:
    """Every target that can be judged here, with what was reached."""
    found = []
    for target in (Target(**fields) for fields in row["targets"]):
        if target.probe:
            allowed = target.factor * row["over_ours"][target.probe]
            if target.plus:
                allowed += row["over_ours"][target.plus]
            found.append((f"{short(target.factor / allowed)} ({target})", allowed >= 1))
        elif peer := best(row, target.peer):
            lead = row["over_ours"][peer]
            found.append((f"{short(lead)} ({target})", lead >= target.factor))
    return found


def judged(row: Row) -> str:
    return "; ".join(text if met else f"**{text}**" for text, met in reached(row)) or "–"


def standard(rows: list[Row]) -> str:
    heads = [
        "kernel",
        "",
        "type",
        "ms",
        "1 thread",
        "read",
        "copy",
        "× read",
        "× copy",
        "× bytes",
        "best peer",
        "×",
        "reach",
    ]
    lines = []
    for row in rows:
        ms, peer = row["ms"], best(row)
        times = [ms["ours"], ms[one_thread(row)], ms["read"], ms["copy"], over(row, "read"), over(row, "copy")]
        lead = [f"{peer}, {short(ms[peer])} ms", short(row["over_ours"][peer])] if peer else ["–", "–"]
        cells = [row["kernel"], row["detail"], row["dtype"], *map(short, times), short(over_byte_limit(row)), *lead]
        lines.append([*cells, judged(row)])
    return table(heads, lines)


def one_thread(row: Row) -> str:
    """The best instruction set is the first that was measured with one thread."""
    return next(str(side) for side in row["ms"] if side.endswith(" 1"))


def all_peers(rows: list[Row]) -> str:
    lines = [
        [row["kernel"], row["detail"], row["dtype"], peer, short(row["ms"][peer]), short(row["over_ours"][peer])]
        for row in rows
        for peer in sorted(row["peers"], key=lambda peer: row["over_ours"][peer])
    ]
    return table(["kernel", "", "type", "peer", "ms", "× ours"], lines)


def isas(rows: list[Row]) -> str:
    """Times over the read probe."""
    names = list(reversed(_core.available_isas()))
    sides = [(isa, threads) for isa in names for threads in (2, 1)]
    lines = []
    for row in rows:
        keys = ["ours" if side == (names[0], 2) else f"{side[0]} {side[1]}" for side in sides]
        if all(key in row["ms"] for key in keys):
            values = [short(over_read(row, key)) for key in keys]
            lines.append([row["kernel"], row["detail"], row["dtype"], *values])
    return table(["kernel", "", "type", *(f"{isa}, {threads}" for isa, threads in sides)], lines)


def small(extras: list[Row]) -> str:
    lines = [
        [
            row["name"],
            row["dtype"],
            short(1e3 * row["ms"]["ours"]),
            ("≤ {}" if 1e3 * row["ms"]["ours"] <= row["target_us"] else "**≤ {}**").format(row["target_us"]),
            short(1e3 * row["ms"]["NumPy"]),
        ]
        for row in extras
        if row["group"] == "small"
    ]
    return table(["1,000 weights", "type", "µs", "reach", "NumPy, µs"], lines)


def growth(extras: list[Row]) -> str:
    rows = [row for row in extras if row["group"] == "growth"]
    kernels = list(dict.fromkeys(row["name"] for row in rows))
    lines = []
    for power in sorted({row["power"] for row in rows}):
        here = {row["name"]: row for row in rows if row["power"] == power}
        spent = [here[name]["ms"]["ours"] for name in kernels]
        beside = [here[kernels[0]]["ms"][probe] for probe in ("read", "copy")]
        lines.append([f"2^{power}", *(f"{1e6 * ms / (1 << power):.3f}" for ms in [*spent, *beside])])
    return table(["weights", *kernels, "read", "copy"], lines)


def adversarial(extras: list[Row]) -> str:
    lines = []
    for row in extras:
        if row["group"] == "adversarial":
            figures = [row["ms"]["ours"], over(row, "read"), row["ms"]["NumPy partition"]]
            lines.append([row["name"], row["dtype"], *map(short, [*figures, row["over_ours"]["NumPy partition"]])])
    return table(["input", "type", "ms", "× read", "NumPy partition, ms", "× ours"], lines)


def detections(extras: list[Row]) -> str:
    lines = []
    for row in extras:
        if row["group"] == "detect":
            reach = ("≤ {}" if over(row, "read") <= row["factor"] else "**≤ {}**").format(row["factor"])
            lines.append([row["name"], short(row["ms"]["ours"]), short(over(row, "read")), reach])
    return table(["zeros", "ms", "× read", "reach"], lines)


def shortfalls(rows: list[Row], title: str) -> list[str]:
    return [
        f"- {title}{row['kernel']} {row['detail']} {row['dtype']}: {text}"
        for row in rows
        for text, met in reached(row)
        if not met
    ]


def measured(drawing: str, about: Row, rows: list[Row], kept: list[Row], extras: list[Row]) -> str:
    importing = next(row["ms"]["ours"] for row in extras if row["group"] == "import")
    missed = shortfalls(rows, "") + shortfalls(kept, "kept pages: ")
    return "\n".join(
        [
            f"- CPU: {about['cpu']}",
            f"- Versions: {about['versions']}; peers skipped: {about['skipped']}",
            f"- {about['date']}, `make bench`; load average {about['load']}\n",
            f"![Against the peers, and against the limit]({drawing})\n",
            "### The standard case\n",
            standard(rows),
            "### Pages that the allocator keeps\n",
            standard(kept),
            "### Not reached\n",
            "\n".join(missed) + "\n" if missed else "Nothing: every figure above meets its reach.\n",
            "### Every peer\n",
            all_peers(rows),
            "### Instruction sets and threads, time over the read probe\n",
            isas(rows),
            "### Small inputs\n",
            small(extras),
            f"`import fastsparse` after NumPy and ml_dtypes: {short(importing)} ms (reach: ≤ 25).\n",
            "### Growth, nanoseconds a weight\n",
            growth(extras),
            "### Inputs that are hard on a selection\n",
            adversarial(extras),
            "### `detect`: patterns that zeros obey\n",
            detections(extras),
        ]
    )


def picture(path: Path, about: Row, rows: list[Row]) -> None:
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "fastsparse"
    from matplotlib import pyplot

    labels = list(dict.fromkeys(f"{row['kernel']} {row['detail']}" for row in rows))
    place = {label: i for i, label in enumerate(labels)}
    figure, (left, right) = pyplot.subplots(1, 2, sharey=True, figsize=(12, 0.3 * len(labels) + 1.5))
    for dtype, shift, colour in [("f32", -0.18, "#1f5fa8"), ("bf16", 0.18, "#d9822b")]:
        shown = [row for row in rows if row["dtype"] == dtype]
        at = [place[f"{row['kernel']} {row['detail']}"] + shift for row in shown]
        leads = [row["over_ours"][best(row)] if best(row) else 0 for row in shown]
        left.barh(at, leads, 0.36, color=colour, label=dtype)
        right.plot(
            [over_byte_limit(row) for row in shown], at, "o", color=colour, label=f"{dtype}, over the byte limit"
        )
        right.plot([over(row, "read") for row in shown], at, "|", color=colour, label=f"{dtype}, over the read probe")
    left.set(xscale="log", xlabel="times as fast as the best peer", yticks=range(len(labels)), yticklabels=labels)
    left.axvline(1, color="black", linewidth=0.8)
    left.invert_yaxis()
    right.set(xscale="log", xlabel="time over the limit")
    right.xaxis.set_major_formatter("{x:g}")
    right.xaxis.set_minor_formatter("")
    right.axvline(1, color="black", linewidth=0.8)
    for axes in (left, right):
        axes.grid(axis="x", which="both", alpha=0.3)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8, frameon=False)
    figure.suptitle(f"4096 × 11008 weights, 2 threads; {about['cpu'].split(';')[0]}; {about['date']}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def replace_part(page: Path, title: str, begin: str, end: str, part: str) -> None:
    """Puts what was measured between two marks of a page, which is begun where there is none."""
    text = page.read_text() if page.exists() else f"# {page.stem}\n"
    if begin not in text:
        text += f"\n## {title}\n\n{begin}{end}\n"
    before, after = text.split(begin)[0], text.split(end)[1]
    page.write_text(f"{before}{begin}\n\n{part}\n{end}{after}")


def write(page: Path, about: Row, rows: list[Row], kept: list[Row], extras: list[Row]) -> None:
    drawing = page.with_suffix(".svg")
    picture(drawing, about, rows)
    replace_part(page, "Kernels", BEGIN, END, measured(drawing.name, about, rows, kept, extras))
