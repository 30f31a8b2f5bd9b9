"""Weights for the comparison with peers whose order among ties is not defined."""

from collections.abc import Callable

import numpy as np
import pytest


@pytest.fixture
def distinct() -> Callable[[tuple[int, ...], np.dtype], np.ndarray]:
    """Makes finite normal numbers of either sign, no two of the same magnitude."""

    def make(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        rng = np.random.default_rng(20)
        unsigned = np.dtype(f"u{dtype.itemsize}")
        # Codes of 2^-14 … 2^15, the normal numbers of float16: positive floats are ordered as their
        # bits are.
        low, high = np.array([2.0**-14, 2.0**15], dtype).view(unsigned).tolist()
        codes = low + rng.choice(high - low, size=shape, replace=False)
        sign = rng.integers(0, 2, size=shape) << (8 * dtype.itemsize - 1)
        return (codes | sign).astype(unsigned).view(dtype)

    return make
