"""What no input may do: end the process, be counted wrongly, reach a kernel in a form that it is not made for."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import fastsparse as fs

_core = pytest.importorskip("fastsparse._core", reason="the native module")

SHORT_OF_MEMORY = """
import resource, sys
import ml_dtypes, numpy as np
import fastsparse as fs
from fastsparse import _core

n = 1 << 22
w = np.random.default_rng(0).standard_normal(n).astype(np.float32).reshape(1024, -1)
w16, scale = w.astype(ml_dtypes.bfloat16), np.ones(w.shape[1])
mask = fs.select(w, "50%")  # the threads are there before memory is short
packed = fs.pack(w, mask)
dense, low = np.empty_like(w), np.float64(1.0).view(np.uint64)
calls = {
    "tensor": lambda: fs.select(w, "50%"),
    "rows": lambda: fs.select(w, "50%/row", column_scale=scale),
    "scaled": lambda: fs.select(w, "50%", column_scale=scale),
    "bfloat16": lambda: fs.select(w16, "75%"),
    "n:m": lambda: fs.select(w, "2:4"),
    "long groups": lambda: fs.select(w.reshape(-1), fs.NM(zeros=n // 2, of=n)),
    "long groups across": lambda: fs.select(w.T, fs.NM(zeros=512, of=1024)),
    "blocks": lambda: fs.select(w, "50%/2x2"),
    "large blocks": lambda: fs.select(w16, "50%/1024x2048"),
    "scaled blocks": lambda: fs.select(w16, "50%/1024x2048", column_scale=scale),
    "block norms": lambda: _core.block_norms(w.reshape(-1), n // 2, 0),
    "check of blocks": lambda: _core.check_pattern(w.shape, mask.bits, ("block", (1, 1), 0.5, -1, "l1")),
    "counts": lambda: _core.count_magnitudes(w, 0, 42),
    "rank": lambda: _core.rank_magnitudes(w, int(low)),
    "compress": lambda: fs.compress(w, "50%"),
    "prune": lambda: fs.prune(w, "50%", out=dense),
    "unpack": lambda: packed.to_dense(dense),
}
for name, call in calls.items():
    outcomes = []
    for room in (0, 1 << 17, 1 << 20, 3 << 20, 6 << 20, 12 << 20, 64 << 20):
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + room, resource.RLIM_INFINITY))
        try:
            call()
            outcomes.append(".")
        except MemoryError:
            outcomes.append("M")
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(name, "".join(outcomes))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are Linux's")
@pytest.mark.parametrize("threads", [1, 2])
def test_short_memory_is_an_error_and_not_the_end(threads):
    # Whatever is large goes back to the system when it is freed.
    malloc = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    environment = os.environ | malloc | {"FASTSPARSE_NUM_THREADS": str(threads)}
    run = subprocess.run([sys.executable, "-c", SHORT_OF_MEMORY], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stdout + run.stderr
    outcomes = dict(line.rsplit(" ", 1) for line in run.stdout.splitlines())
    assert len(outcomes) == 17
    assert all(outcome.endswith(".") for outcome in outcomes.values()), outcomes  # with room enough all work
    for name in ("long groups", "large blocks", "scaled blocks", "block norms", "counts"):
        assert "M" in outcomes[name], outcomes


def _select(w, pattern):
    """A mask, or the error."""
    try:
        return fs.select(w, pattern, threads=2)
    except fs.FastSparseError as error:
        return error


def test_masks_of_weights_that_change_are_counted_as_they_are():
    w = np.random.default_rng(1).standard_normal(1 << 20).astype(np.float32)
    over = threading.Event()

    def write():
        while not over.is_set():
            w[::2] *= -1.5
            np.clip(w, -1e30, 1e30, out=w)
            w[1::2] = 1e-3

    writer = threading.Thread(target=write)
    writer.start()
    try:
        outcomes = [_select(w, pattern) for pattern in ("50%", "50%/row", "2:4", "50%/2", "threshold=0.5") * 4]
    finally:
        over.set()
        writer.join()
    for outcome in outcomes:
        if isinstance(outcome, fs.Bitmask):
            assert outcome.count == np.unpackbits(outcome.bits).sum()
        else:
            assert str(outcome) == "w was changed by another thread during the call"


def misaligned(array):
    """A copy of an array that begins one byte after an aligned address."""
    memory = np.empty(array.nbytes + 1, np.uint8)
    shifted = memory[1:].view(array.dtype).reshape(array.shape)
    shifted[...] = array
    return shifted


def swapped(array):
    """A copy of an array in the other byte order."""
    return array.astype(array.dtype.newbyteorder("S"))


@pytest.mark.parametrize("broken", [misaligned, swapped])
def test_private_functions_check_what_they_are_given(broken):
    w = np.random.default_rng(2).standard_normal((8, 64)).astype(np.float32)
    s = fs.compress(w, "50%")
    parts = (s.values, s.bitmask, s.row_offsets)
    x = np.ones((1, 64), np.float32)
    with pytest.raises(fs.FormatError, match="row_offsets: expected contiguous, aligned int64"):
        _core.unpack(*parts[:2], broken(s.row_offsets), s.shape, None)
    with pytest.raises(fs.FormatError, match="row_offsets: expected contiguous, aligned int64"):
        _core.linear(*parts[:2], broken(s.row_offsets), s.shape, x, None, None, None)
    values, columns, steps, starts = _core.index(*parts, s.shape, False)
    for layout in (
        (columns, broken(steps), starts),
        (broken(columns), steps, starts),
        (columns, steps, broken(starts)),
    ):
        with pytest.raises(fs.FormatError, match=r"columns: |row_offsets: "):
            _core.linear_indexed(values, *layout, s.shape, x, None, None)
        with pytest.raises(fs.FormatError, match=r"columns: |row_offsets: "):
            _core.unindex(values, *layout, s.shape, s.nnz)
    if broken is misaligned:
        assert _core.unpack(broken(s.values), *parts[1:], s.shape, None).tolist() == s.to_dense().tolist()
        assert fs.select(broken(w), "50%") == s.mask
        assert _core.sum_of_squares(broken(w)) == _core.sum_of_squares(w)
    else:
        for call in (
            lambda: _core.unpack(broken(s.values), *parts[1:], s.shape, None),
            lambda: _core.sum_of_squares(broken(w)),
            lambda: _core.count_magnitudes(broken(w), 0, 42),
            lambda: _core.block_norms(broken(w), 4, 1),
        ):
            with pytest.raises(fs.FastSparseError, match="byte order of this machine"):
                call()
    with pytest.raises(fs.FastSparseError, match="out: expected a writeable C-contiguous array"):
        _core.unpack(*parts, s.shape, broken(w))


@pytest.mark.parametrize("offsets", [[0, 4, 0, 4], [0, 3, 5, 4], [1, 2, 3, 4], [0, -1, 2, 4], [0, 2, 2, 5]])
def test_offsets_that_are_no_offsets(offsets):
    keep = np.eye(3, 100, dtype=bool)
    keep[2, 7] = True
    s = fs.pack(np.ones(keep.shape, np.float32), keep)
    assert s.row_offsets.tolist() == [0, 1, 2, 4]
    good = _core.unpack(s.values, s.bitmask, s.row_offsets, s.shape, None)
    assert good.tolist() == keep.astype(np.float32).tolist()
    with pytest.raises(
        fs.FormatError, match=r"^row offset [0-3] is out of order: they go up from 0 to the number of values$"
    ):
        _core.unpack(s.values, s.bitmask, np.array(offsets), s.shape, None)


@pytest.mark.parametrize(
    "spec",
    [
        ("nm", 5, 4, -1, "keep"),
        ("nm", 0, 0, -1, "keep"),
        ("topk", 5, 4, -1, "keep"),
        ("topk", 0, 0, -1, "keep"),
        ("block", 0, 0.5, -1, "l1"),
        ("block", (0, 1), 0.5, -1, "l1"),
        ("block", (1, 0), 0.5, -1, "l1"),
    ],
)
def test_patterns_that_are_none(spec):
    w = np.ones((4, 8), np.float32)
    with pytest.raises(fs.FastSparseError, match=r"spec: .* is no pattern"):
        _core.select(w, spec, None, None, None)
    with pytest.raises(fs.FastSparseError, match=r"spec: .* is no pattern"):
        _core.check_pattern(w.shape, np.zeros((4, 1), np.uint8), spec)


def test_half_a_mask_is_refused():
    w = np.ones((4, 8), np.float32)
    for half in ((w.shape, None), (None, np.zeros((4, 1), np.uint8))):
        with pytest.raises(fs.FastSparseError, match="mask: expected shape and bits, or neither"):
            _core.pack(w, *half)


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads as Linux shows them")
def test_more_threads_do_not_stay():
    program = """
import os, time
import numpy as np, fastsparse as fs
w = np.zeros(1 << 22, np.float32)
for threads in range(2, 33):
    fs.select(w, "50%", threads=threads)
for _ in range(400):
    count = len(os.listdir("/proc/self/task"))
    if count <= 64:
        break
    time.sleep(0.01)
print(count)
"""
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert int(run.stdout) <= 64  # 31 pools that stay have 496
