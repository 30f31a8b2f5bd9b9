"""Capsules of DLPack, as NumPy makes and reads them: the same memory, kept as long as anybody has it."""

import gc
import weakref

import ml_dtypes
import numpy as np
import pytest

_core = pytest.importorskip("fastsparse._core", reason="the native module")

# NumPy makes capsules of these; bfloat16 is tried with torch.
SHARED = [np.int8, np.int32, np.int64, np.uint8, np.float16, np.float32, np.float64, np.bool_]


class Exported:
    """What NumPy takes a capsule from."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return _core.to_dlpack(self.array)

    def __dlpack_device__(self):
        return 1, 0


class Owner(np.ndarray):
    """An array that can be watched."""


@pytest.mark.parametrize("dtype", SHARED, ids=lambda dtype: dtype.__name__)
def test_there_and_back(dtype):
    whole = np.arange(24 * 40).reshape(24, 40).astype(dtype)
    for a in (whole, whole.T, whole[::2, 1::3], whole[0], whole[:0], whole[0, :1].reshape(())):
        for got in (_core.from_dlpack(a.__dlpack__()), np.from_dlpack(Exported(a))):
            assert got.dtype == a.dtype
            assert got.shape == a.shape
            assert a.size == 0 or got.ctypes.data == a.ctypes.data
            assert np.array_equal(got, a)
    _core.from_dlpack(whole.__dlpack__())[3, 5] = 1
    assert whole[3, 5] == 1


def test_memory_lives_as_long_as_it_is_seen():
    for export in (lambda a: _core.from_dlpack(a.__dlpack__()), lambda a: np.from_dlpack(Exported(a))):
        owner = np.arange(1000.0).view(Owner)
        gone = weakref.ref(owner)
        seen = export(owner)[10:20]
        del owner
        gc.collect()
        assert gone() is not None
        assert np.array_equal(seen, np.arange(10.0, 20.0))
        del seen
        gc.collect()
        assert gone() is None


def test_capsules_that_nobody_takes_let_go():
    owner = np.arange(1000.0).view(Owner)
    gone = weakref.ref(owner)
    capsule = _core.to_dlpack(owner)
    del owner
    gc.collect()
    assert gone() is not None
    del capsule
    gc.collect()
    assert gone() is None


def test_what_is_no_tensor():
    read_only = np.zeros(4)
    read_only.flags.writeable = False
    swapped = np.zeros(4, np.dtype(np.float32).newbyteorder())
    record = np.zeros(4, [("a", np.int8), ("b", np.float32)])["b"]  # five bytes apart
    for a in (read_only, np.zeros(4)[::-1], swapped, record, np.zeros(4, np.complex64), np.array(["a"])):
        with pytest.raises(BufferError):
            _core.to_dlpack(a)
    with pytest.raises(BufferError):
        _core.to_dlpack(np.zeros(4, ml_dtypes.float8_e5m2))


def test_what_is_no_array():
    with pytest.raises(BufferError):
        _core.from_dlpack(np.zeros(4, np.complex64).__dlpack__())
    with pytest.raises(BufferError):
        _core.from_dlpack(np.zeros(4, np.int16).__dlpack__())
    taken = np.zeros(4).__dlpack__()
    exported = Exported(None)
    exported.__class__ = type("Taken", (Exported,), {"__dlpack__": lambda self, **options: taken})
    np.from_dlpack(exported)
    with pytest.raises(ValueError, match="name"):
        _core.from_dlpack(taken)
    with pytest.raises(TypeError):
        _core.from_dlpack(np.zeros(4))
