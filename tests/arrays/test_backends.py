"""The backends are one: the same names, results and messages; and what only the interface between them has."""

import ast
import inspect
from pathlib import Path

import numpy as np
import oracle
import pytest
from conftest import BACKENDS
from strategies import DTYPES, NAMES, weights

import fastsparse as fs
from fastsparse import _backend, _numpy

# Checkpoints need the native module: the twin has nothing for them.
FOR_FILES = {"count_magnitudes", "digest", "rank_magnitudes", "sum_of_squares"}
# A faster way for tensors, which have another.
FOR_TENSORS = {"from_dlpack", "to_dlpack"}
STUB = ast.parse((Path(fs.__file__).parent / "_core.pyi").read_text())


@pytest.mark.parametrize("module", dict.fromkeys(module for module, _ in BACKENDS), ids=lambda module: module.__name__)
def test_interface_is_that_of_the_stub(module):
    declared = {node.name: node for node in STUB.body if isinstance(node, ast.FunctionDef)}
    for name, node in declared.items():
        if module is _numpy and name in FOR_FILES | FOR_TENSORS:
            continue
        parameters = inspect.signature(getattr(module, name)).parameters
        assert list(parameters) == [argument.arg for argument in node.args.args], name


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES)
def test_exact_counts(backend, dtype):
    w = weights((37, 101), dtype, 1, "ties")
    values = oracle.ranked(w)
    for zeros in (0, 1, 100, w.size // 2, w.size - 1, w.size):
        shape, bits, count = _backend.active.select(w, ("exact", zeros), None, None, None)
        assert (shape, count) == (w.shape, w.size - zeros)
        assert np.array_equal(bits, oracle.bits_of(oracle.largest(values, count).reshape(w.shape)))
    for zeros in (w.size + 1, 2**40):
        with pytest.raises(fs.FastSparseError, match=f"zeros: {zeros} of 3737 elements cannot be dropped"):
            _backend.active.select(w, ("exact", zeros), None, None, None)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (2, 0, 3), (0,)])
def test_norms_of_nothing(backend, shape):
    for axis in range(len(shape)):
        blocks = (*shape[:axis], -(-shape[axis] // 2), *shape[axis + 1 :])
        norms = _backend.active.block_norms(np.zeros(shape, np.float32), 2, axis)
        assert (norms.shape, norms.dtype) == (blocks, np.float32)
        assert _backend.active.blocks_above(norms, shape, 1.0, 2, axis)[2] == 0


def test_names_of_instruction_sets(backend):
    active = _backend.active
    assert active.get_isa() == backend
    assert backend in active.available_isas()
    for name in ("", "mmx", "AVX2", "avx512f"):
        with pytest.raises(fs.FastSparseError, match="isa: "):
            active.set_isa(name)
    assert active.get_isa() == backend


NAN = weights((3, 9), np.float32, 2)
NAN[1, 7] = np.nan
CALLS = {
    "NaN": lambda: fs.select(NAN, "50%"),
    "NaN in a group": lambda: fs.compress(NAN, "2:4@axis=0"),
    "NaN in a block": lambda: fs.prune(NAN, "50%/2x2"),
    "NaN in scores": lambda: fs.select(np.ones((3, 9)), "50%", scores=NAN),
    "block of NaN": lambda: fs.select(np.ones(4), "50%/2", scores=[1, 2, np.inf, -np.inf]),
    "dtype": lambda: fs.select([1, 2], "50%"),
    "bool": lambda: fs.select([True, False], "50%"),
    "complex": lambda: fs.pack(np.ones(3, complex)),
    "byte order": lambda: fs.select(np.ones(3, ">f8"), "50%"),
    "ragged": lambda: fs.select([[1.0], [1.0, 2.0]], "50%"),
    "scores of another shape": lambda: fs.select(np.ones(3), "50%", scores=np.ones((3, 1))),
    "scores of another dtype": lambda: fs.select(np.ones(3), "50%", scores=np.ones(3, np.int32)),
    "scores and scale": lambda: fs.select(np.ones(3), "50%", scores=np.ones(3), column_scale=np.ones(3)),
    "nonzero with scores": lambda: fs.select(np.ones(3), "nonzero", scores=np.ones(3)),
    "nonzero with scale": lambda: fs.select(np.ones(3), "nonzero", column_scale=np.ones(3)),
    "scale of another length": lambda: fs.select(np.ones((2, 3, 4)), "50%", column_scale=np.ones(5)),
    "scale of two dimensions": lambda: fs.select(np.ones((2, 3)), "50%", column_scale=np.ones((1, 3))),
    "negative scale": lambda: fs.select(np.ones((2, 3)), "50%", column_scale=[1.0, -0.5, 1.0]),
    "NaN in scale": lambda: fs.select(np.ones((2, 3)), "50%", column_scale=[1.0, 1.0, np.nan]),
    "inf in scale": lambda: fs.select(np.ones((2, 3)), "50%", column_scale=[1.0, 1.0, np.inf]),
    "scale beyond float32": lambda: fs.select(np.ones((2, 3), "f4"), "50%", column_scale=[1.0, 1e39, 1.0]),
    "scale of float16": lambda: fs.select(np.ones((1, 2)), "50%", column_scale=np.float16([np.inf, 1])),
    "inf times 0": lambda: fs.prune(np.float32([[1, np.inf]]), "1:2", column_scale=[1, 0]),
    "inf times 0 in a block": lambda: fs.prune(np.float16([[1, np.inf]]), "50%/1", column_scale=[1, 0]),
    "bool scale": lambda: fs.select(np.ones((2, 3)), "50%", column_scale=[True] * 3),
    "threads": lambda: fs.select(np.ones(3), "50%", threads=0),
    "threads of another type": lambda: fs.select(np.ones(3), "50%", threads=2.0),
    "set_num_threads": lambda: fs.set_num_threads(-1),
    "tail": lambda: fs.select(np.ones((2, 7)), "2:4@tail=error"),
    "axis": lambda: fs.select(np.ones((2, 7)), "2:4@axis=2"),
    "axis of a scalar": lambda: fs.select(1.0, "50%/3@axis=-2"),
    "mask of another shape": lambda: fs.pack(np.ones(3), np.ones(4, bool)),
    "mask of another dtype": lambda: fs.pack(np.ones(3), np.ones(3)),
    "out of another shape": lambda: fs.prune(np.ones(3), "50%", out=np.ones(4)),
    "out of another dtype": lambda: fs.prune(np.ones(3), "50%", out=np.ones(3, np.float32)),
    "out that is no array": lambda: fs.prune(np.ones(3), "50%", out=[1.0] * 3),
    "out in Fortran order": lambda: fs.prune(np.ones((3, 3)), "50%", out=np.asfortranarray(np.ones((3, 3)))),
    "padding of bits": lambda: fs.Bitmask.from_bits(np.uint8([[1], [8]]), (2, 3)),
    "shape of bits": lambda: fs.Bitmask.from_bits(np.uint8([[1, 8]]), (2, 3)),
    "dtype of bits": lambda: fs.Bitmask.from_bits(np.int8([[1], [1]]), (2, 3)),
    "padding of parts": lambda: fs.BitmaskArray.from_parts([1.0], np.uint8([[8]]), (3,)),
    "number of values": lambda: fs.BitmaskArray.from_parts([1.0], np.uint8([[3]]), (3,)),
    "values of two dimensions": lambda: fs.BitmaskArray.from_parts([[1.0]], np.uint8([[1]]), (3,)),
    "dtype of values": lambda: fs.BitmaskArray.from_parts([1], np.uint8([[1]]), (3,)),
    "dtype of bitmask": lambda: fs.BitmaskArray.from_parts([1.0], np.int8([[1]]), (3,)),
    "huge shape": lambda: fs.BitmaskArray.from_parts([1.0], np.uint8([[1]]), (2**62, 2**62)),
    "pattern that is not obeyed": lambda: fs.BitmaskArray.from_parts([1.0], np.uint8([[1]]), (4,), pattern="2:4"),
    "blocks that are cut": lambda: fs.BitmaskArray.from_parts([1.0], np.uint8([[1]]), (4,), pattern="50%/2"),
    "blocks of another number": lambda: fs.BitmaskArray.from_parts([1.0], np.uint8([[1]]), (4,), pattern="50%/1"),
    "huge shape before values": lambda: fs.BitmaskArray.from_parts([1], np.uint8([[1]]), (2**62, 2**62)),
    "scores before nonzero": lambda: fs.select(np.ones(3), "nonzero", scores=np.ones(4)),
    "scores before out": lambda: fs.prune(np.ones(3), "50%", scores=np.ones(4), out=np.ones(2)),
    "out before axis": lambda: fs.prune(np.ones(3), "2:4@axis=4", out=np.ones(2)),
    "axis before NaN": lambda: fs.select(NAN, "2:4@axis=4"),
    "tail before NaN": lambda: fs.select(NAN, "2:4@tail=error"),
    "zeros before NaN": lambda: _backend.active.select(NAN, ("exact", 99), None, None, None),
    "nonzero before NaN": lambda: fs.select(NAN, "nonzero", scores=NAN),
    "pattern of another kind": lambda: _backend.active.check_pattern((3,), np.uint8([[1]]), ("nonzero",)),
    "norms of float64": lambda: _backend.active.block_norms(np.ones((2, 3)), 2, 1),
    "norms of no length": lambda: _backend.active.block_norms(np.ones((2, 3), "f4"), 0, 1),
    "norms along no axis": lambda: _backend.active.block_norms(np.ones((2, 3), "f4"), 2, 2),
    "norms of another shape": lambda: _backend.active.blocks_above(np.ones((2, 3), "f4"), (2, 3), 1.0, 2, 1),
    "norms of another dtype": lambda: _backend.active.blocks_above(np.ones((2, 2)), (2, 3), 1.0, 2, 1),
    "tail that is forbidden": lambda: fs.BitmaskArray.from_parts(
        [1.0], np.uint8([[1]]), (3,), pattern="1:2@tail=error"
    ),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_messages_are_the_same(backend, call, monkeypatch):
    with pytest.raises(fs.FastSparseError) as caught:
        call()
    monkeypatch.setattr(_backend, "active", _numpy)
    with pytest.raises(fs.FastSparseError) as wanted:
        call()
    assert (caught.type, str(caught.value)) == (wanted.type, str(wanted.value))
