"""Fuzzing the record in the metadata of a file: read against the keys, it raises `FormatError` or is sound.

    python tests/fuzz/record.py tests/fuzz/corpus/record -max_total_time=60

runs it under libFuzzer, by atheris (`make fuzz`); `test_corpus.py` reads the corpus without either.
"""

import inspect
import json
import sys

from fastsparse import FormatError, patterns
from fastsparse.checkpoint import _format
from fastsparse.checkpoint._format import Entry, Packed

_PACKED = (
    Packed("fc.weight", "fc", "F32", (4, 10), None, True),
    Packed("experts.up", "experts.up", "BF16", (2, 3, 8), None, True, stub=True),
    Packed("two.weight", "two", "F16", (4, 8), _format.TWO_FOUR, True, "2:4"),
    Packed("last.weight", "last", "F8_E4M3", (2, 3, 9), None, False, "last-axis"),
    Packed("q.weight", "q", "F32", (4, 16), None, True, bits=8),
)
ENTRIES = {
    entry.key: entry
    for entry in (
        *(entry for packed in _PACKED for entry in packed.entries(12 if packed.layout != "2:4" else 16).values()),
        Entry("dense.weight", "F32", (64, 64), 4 * 64 * 64),
    )
}
"""The keys of a file with one tensor of each layout, and a dense one."""


def check(data: bytes) -> None:
    """Reads a record; the first byte says which keys are missing from the file."""
    if not data:
        return
    text = data[1:].decode("utf-8", "replace")
    entries = {key: entry for i, (key, entry) in enumerate(ENTRIES.items()) if not data[0] or i % 8 != data[0] % 9 - 1}
    try:
        record = _format.read_record(entries, text)
        tensors = _format.tensors_of(entries, record.packed)
    except FormatError:
        return
    if record.stale is None:
        written = json.loads(text)
        assert {packed.name for packed in record.packed} == set(written["packed"])
    for packed in record.packed:
        assert tensors[packed.name] is packed
        assert all(key in entries for key in packed.keys)


if __name__ == "__main__":
    import atheris

    for module in (_format, patterns):
        for name, value in vars(module).items():
            if inspect.isfunction(value) and value.__module__.startswith("fastsparse"):
                setattr(module, name, atheris.instrument_func(value))
    atheris.Setup(sys.argv, atheris.instrument_func(check))
    atheris.Fuzz()
