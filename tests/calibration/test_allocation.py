"""Ratios over layers: totals are exact, and the numbers those of the paper."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastsparse as fs
from fastsparse.calibration import allocation


def zeros(ratios, sizes):
    return [round(ratio * size) for ratio, size in zip(ratios, sizes, strict=True)]


LAYERS = st.lists(
    st.tuples(st.integers(0, 10**6), st.floats(0, 0.2), st.lists(st.floats(0, 10), min_size=5, max_size=5)),
    min_size=1,
    max_size=9,
)


@given(LAYERS, st.floats(0, 1), st.floats(0, 0.3))
def test_totals_are_exact(layers, sparsity, spread):
    sizes, shares, losses = zip(*layers, strict=True)
    losses = np.sort(losses, axis=1)
    for ratios in (
        allocation.uniform(sizes, sparsity),
        allocation.owl(shares, sizes, sparsity, spread=spread),
        allocation.loss(losses, [0, 0.3, 0.5, 0.8, 1], sizes, sparsity),
    ):
        assert sum(zeros(ratios, sizes)) == round(sparsity * sum(sizes))
        assert all(0 <= ratio <= 1 for ratio in ratios)
        for ratio, size in zip(ratios, sizes, strict=True):
            # The pattern that it becomes prunes as many.
            if 0 < size < 5000:
                assert fs.select(np.ones(size), fs.Unstructured(ratio)).count == size - round(ratio * size)


@given(LAYERS, st.floats(0.3, 0.7))
def test_bounds_hold(layers, sparsity):
    sizes, shares, losses = zip(*layers, strict=True)
    for ratios in (
        allocation.owl(shares, sizes, sparsity, spread=0.3, least=0.2, most=0.8),
        allocation.loss(np.sort(losses, axis=1), [0, 0.3, 0.5, 0.8, 1], sizes, sparsity, least=0.2, most=0.8),
    ):
        counts = zeros(ratios, sizes)
        assert sum(counts) == round(sparsity * sum(sizes))
        assert all(round(0.2 * n) <= count <= round(0.8 * n) for count, n in zip(counts, sizes, strict=True))


def test_owl_is_that_of_the_paper():
    """`1 − D`, scaled to a range of 2λ, centred on the sparsity: as its code does for layers of one size."""
    rng = np.random.default_rng(0)
    shares, spread, sparsity = rng.random(32) * 0.1, 0.08, 0.7
    scaled = (shares - shares.min()) / (shares.max() - shares.min()) * 2 * spread
    expected = 1 - (scaled - scaled.mean() + 1 - sparsity)
    np.testing.assert_allclose(allocation.owl(shares, [10**7] * 32, sparsity, spread=spread), expected, atol=1e-6)


def test_loss_is_the_best_there_is():
    """Against all combinations, for losses that grow ever faster."""
    rng = np.random.default_rng(1)
    grid = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    for _ in range(20):
        losses = np.cumsum(np.sort(rng.random((4, 5)), axis=1), axis=1)
        sizes = [100] * 4
        ratios = allocation.loss(losses, grid, sizes, 0.5)
        cost = sum(np.interp(ratio, grid, row) for ratio, row in zip(ratios, losses, strict=True))
        best = min(
            sum(row[at] for row, at in zip(losses, choice, strict=True))
            for choice in itertools.product(range(5), repeat=4)
            if sum(choice) == 8
        )
        assert cost == pytest.approx(best)


def test_loss_follows_the_hull():
    """A layer whose second step is free is not stopped by its first, which is dear."""
    assert allocation.loss([[0, 5, 5], [0, 4, 8]], [0, 0.5, 1], [10, 10], 0.5) == [1.0, 0.0]


def test_outliers():
    rng = np.random.default_rng(2)
    w, norms = rng.standard_normal((50, 40)).astype(np.float32), rng.random(40) + 0.1
    scores = np.abs(w) * norms
    assert allocation.outliers(w, norms, m=3) == np.mean(scores > 3 * scores.mean())
    assert allocation.outliers(np.zeros((2, 3)), np.ones(3)) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: allocation.uniform([1, -1], 0.5), r"sizes\[1\]: expected an integer ≥ 0, got -1"),
        (lambda: allocation.uniform([1], 1.5), "sparsity: expected a number from 0 to 1, got 1.5"),
        (lambda: allocation.owl([0.1], [1, 2], 0.5), r"outliers: expected shape \(2,\), got \(1,\)"),
        (
            lambda: allocation.owl([0.1, np.nan], [1, 2], 0.5),
            "outliers: expected finite numbers ≥ 0, got nan",
        ),
        (lambda: allocation.owl([0.1], [10], 0.5, spread=-1), "spread: expected a number from 0 to 1, got -1"),
        (lambda: allocation.owl([0.1], [10], 0.5, least=0.6), "least: with 0.6 for each layer 0.5 of all cannot"),
        (lambda: allocation.owl([0.1], [10], 0.5, most=0.4), "most: with 0.4 for each layer 0.5 of all cannot"),
        (lambda: allocation.loss([[0, 1]], [0, 0.4], [10], 0.5), "most: with 0.4 for each layer 0.5 of all cannot"),
        (lambda: allocation.loss([[0, 1]], [0.5, 0.4], [10], 0.5), "sparsities: expected two or more ascending"),
        (lambda: allocation.loss([[0, 1]], [0, 0.4, 1], [10], 0.5), r"losses: expected shape \(1, 3\), got \(1, 2\)"),
        (lambda: allocation.loss([[0, np.inf]], [0, 1], [10], 0.5), "losses: inf among them"),
        (lambda: allocation.loss([["a", 1]], [0, 1], [10], 0.5), "losses: expected numbers, got"),
        (
            lambda: allocation.loss([[0, 1]], [0, 1], [10], 0.5, least="a"),
            "least: expected a number from 0 to 1, got 'a'",
        ),
        (lambda: allocation.uniform(5, 0.5), "sizes: expected the number of weights of each layer, got 5"),
        (lambda: allocation.outliers(np.ones((2, 3)), [1, 2]), r"norms: expected shape \(3,\), got \(2,\)"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(fs.FastSparseError, match=message):
        call()
