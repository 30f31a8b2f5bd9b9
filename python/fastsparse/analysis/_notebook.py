"""What notebooks show of packed tensors."""

import numpy as np
from numpy.typing import NDArray

from fastsparse.analysis import _html as html

__all__ = ["array_html"]

_BANDS, _SAMPLES = (24, 48), 8


def array_html(text: str, bits: NDArray[np.uint8], cols: int) -> str:
    """The text of a packed tensor, and where its mask keeps more or less, from a sample of it."""
    rows = len(bits)
    if not rows or not cols:
        return html.fragment(f"<p>{html.escape(text)}</p>")
    down, across = _bands(rows, _BANDS[0]), _bands(bits.shape[1], _BANDS[1])
    lines = []
    for first, end in down:
        some = bits[np.linspace(first, end - 1, min(end - first, _SAMPLES)).astype(np.intp)]
        lines.append(
            (f"rows {first} to {end - 1}", [_cell(some, start, stop, cols, (first, end)) for start, stop in across])
        )
    shares = [cell[1] for _, cells in lines for cell in cells]
    low, high = min(shares), max(shares)
    shown = [
        (label, [(name, (share - low) / (high - low) if high > low else 1.0) for name, share in cells])
        for label, cells in lines
    ]
    caption = "Share of elements kept, by rows and columns of the matrix view; a sample of each cell."
    ends = html.percent(low), html.percent(high)
    alternative = f"{caption} From {ends[0]} to {ends[1]}."
    return html.fragment(f"<p>{html.escape(text)}</p>", html.pictures(html.grid(caption, alternative, shown, ends)))


def _bands(length: int, most: int) -> list[tuple[int, int]]:
    number = min(length, most)
    return [(length * at // number, length * (at + 1) // number) for at in range(number)]


def _cell(rows: NDArray[np.uint8], start: int, stop: int, cols: int, of: tuple[int, int]) -> tuple[str, float]:
    """The name and the share of set bits of some bytes of some rows."""
    picked = np.linspace(start, stop - 1, min(stop - start, _SAMPLES)).astype(np.intp)
    columns = int(np.minimum(8, cols - 8 * picked).sum())
    share = int(np.unpackbits(rows[:, picked]).sum()) / (len(rows) * columns)
    name = f"rows {of[0]} to {of[1] - 1}, columns {8 * start} to {min(8 * stop, cols) - 1}: {html.percent(share, 1)}"
    return name, share
