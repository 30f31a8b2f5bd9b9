"""What is drawn: weights of every dtype and shape, rich in ties and extremes, and patterns that fit them."""

import math

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

import fastsparse as fs

DTYPES = [
    np.dtype(t)
    for t in (
        np.float64,
        np.float32,
        np.float16,
        ml_dtypes.bfloat16,
        ml_dtypes.float8_e4m3fn,
        ml_dtypes.float8_e5m2,
        np.int8,
        np.uint8,
    )
]
NAMES = [t.name for t in DTYPES]
FLOATS = [t for t in DTYPES if t.name not in ("int8", "uint8")]
WITH_INFINITY = [t for t in FLOATS if t.name != "float8_e4m3fn"]

# Around the mask byte, the mask word and a few vectors, where kernels change gear.
LENGTHS = [0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 200, 257]


def weights(shape, dtype, seed, kind="normal"):
    """Deterministic weights: `normal`, `ties` (few values, both zeros), `equal`, `zeros`, `wild` (any finite bits)."""
    rng = np.random.default_rng([seed, math.prod(shape), len(shape)])
    dtype = np.dtype(dtype)
    if kind == "wild":
        words = rng.integers(0, 256, (*shape, dtype.itemsize), np.uint8)
        w = np.ascontiguousarray(words).view(dtype)[..., 0]
        with np.errstate(invalid="ignore"):  # a signalling NaN warns where it is converted
            finite = np.isfinite(w.astype(np.float64))
        return np.where(finite, w, np.ones((), dtype))
    if dtype.kind == "u":
        numbers = {"normal": lambda: rng.integers(0, 256, shape), "ties": lambda: rng.integers(0, 3, shape)}
    elif dtype.kind == "i":
        numbers = {"normal": lambda: rng.integers(-128, 128, shape), "ties": lambda: rng.integers(-2, 3, shape)}
    else:
        numbers = {
            "normal": lambda: rng.standard_normal(shape),
            "ties": lambda: rng.choice([-1.5, -0.5, -0.0, 0.0, 0.5, 1.5], shape),
        }
    numbers["equal"] = lambda: np.full(shape, 3)
    numbers["zeros"] = lambda: np.zeros(shape)
    return np.asarray(numbers[kind]()).astype(dtype)


KINDS = ["normal", "ties", "equal", "zeros", "wild"]


def shapes():
    small = st.lists(st.integers(0, 6), min_size=0, max_size=4).map(tuple)
    line = st.sampled_from(LENGTHS).map(lambda n: (n,))
    table = st.tuples(st.integers(1, 5), st.sampled_from(LENGTHS))
    return st.one_of(small, line, table)


@st.composite
def tensors(draw, dtypes=DTYPES, shape=None):
    shape = draw(shapes()) if shape is None else shape
    return weights(shape, draw(st.sampled_from(dtypes)), draw(st.integers(0, 2**16)), draw(st.sampled_from(KINDS)))


def sparsities():
    return st.one_of(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, 1 / 3]), st.floats(0, 1))


@st.composite
def patterns(draw, ndim=2):
    """A pattern whose axis suits a tensor of that many dimensions."""
    axis = draw(st.integers(-max(ndim, 1), max(ndim, 1) - 1))
    tail = draw(st.sampled_from(["proportional", "keep"]))
    of = draw(st.one_of(st.sampled_from([1, 2, 4, 8, 16, 32, 64]), st.integers(1, 80)))
    number = draw(st.integers(0, of))
    norm = draw(st.sampled_from(["l2", "l1", "max"]))
    return draw(
        st.one_of(
            st.builds(fs.Unstructured, sparsities(), st.sampled_from(["tensor", "row"])),
            st.just(fs.NM(zeros=number, of=of, axis=axis, tail=tail)),
            st.just(fs.TopK(number, of=of, axis=axis, tail=tail)),
            st.builds(fs.Block, st.tuples(st.integers(1, 9), st.integers(1, 9)), sparsities(), norm=st.just(norm)),
            st.builds(fs.Block, st.integers(1, 9), sparsities(), axis=st.just(axis), norm=st.just(norm)),
            st.builds(fs.Threshold, st.sampled_from([-1.0, 0.0, 0.5, 0.6745, 1.5, 100.0])),
            st.just(fs.Nonzero()),
        )
    )
