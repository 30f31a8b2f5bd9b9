"""Calibrated pruning against its papers in float64, under every backend and instruction set."""

from itertools import combinations, pairwise

import calibration_oracle as oracle
import ml_dtypes
import numpy as np
import pytest

import fastsparse as fs
from fastsparse import _backend, _numpy, calibration


@pytest.fixture(scope="module")
def made():
    w, x = oracle.layer(96, 320)
    gram = calibration.Gram(320)
    gram.update(x)
    return w, x, gram


def agreement(mask, keep):
    return np.mean(mask.to_bool() == keep)


PATTERNS = {
    "50%": {"sparsity": 0.5},
    "70%": {"sparsity": 0.7},
    "33.3%/row": {"sparsity": 0.333, "per_row": True},
    "2:4": {"groups": (2, 4)},
    "5:7": {"groups": (5, 7), "block": 126},
    "top8/64": {"groups": (56, 64)},
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_sparsegpt_is_that_of_the_paper(backend, made, pattern):
    w, x, gram = made
    expected, keep = oracle.sparsegpt(w, x.T @ x, **PATTERNS[pattern])
    w_new, mask = calibration.sparsegpt(w, gram, pattern)
    assert agreement(mask, keep) >= 0.999
    same = (mask.to_bool() == keep).all(axis=1)
    assert same.mean() > 0.7
    np.testing.assert_allclose(w_new[same], expected[same], rtol=1e-3, atol=1e-3)
    assert not w_new[~mask.to_bool()].any()
    assert mask.count == fs.select(w, pattern).count
    error = oracle.layer_error(w, w_new, x)
    assert error == pytest.approx(oracle.layer_error(w, expected, x), rel=1e-3)
    assert error < 0.8 * oracle.layer_error(w, w * calibration.wanda(w, gram.norms, pattern).to_bool(), x)


@pytest.mark.parametrize("pattern", ["50%", "70%", "2:4"])
def test_rounding_of_the_peers(backend, made, pattern):
    w, x, gram = made
    expected, keep = oracle.sparsegpt(w, x.T @ x, peer=True, **PATTERNS[pattern])
    mask = calibration.sparsegpt(w, gram, pattern, rounding="peer")[1]
    assert agreement(mask, keep) >= 0.999
    if pattern != "2:4":
        assert mask.count < fs.select(w, pattern).count  # a weight too many for each block of columns
    exact, _ = calibration.sparsegpt(w, gram, pattern)
    assert calibration.layer_error(w, exact, gram) <= 1.001 * oracle.layer_error(w, expected, x)


@pytest.mark.parametrize("pattern", ["50%", "70%/row", "2:4", "5:7", "50%/1x4"])
def test_results_are_the_same_everywhere(backend, made, pattern, monkeypatch):
    """Masks and weights to the bit: on every instruction set, for any number of threads, in NumPy."""
    w, _, gram = made
    w_new, mask = calibration.sparsegpt(w, gram, pattern)
    refined = calibration.refine(w, gram, mask, start=w_new)
    _backend.active.set_num_threads(1)
    alone, same = calibration.sparsegpt(w, gram, pattern)
    assert same == mask
    assert np.array_equal(alone, w_new)
    assert np.array_equal(calibration.refine(w, gram, mask, start=w_new), refined)
    monkeypatch.setattr(_backend, "active", _numpy)
    plain, same = calibration.sparsegpt(w, gram, pattern)
    assert same == mask
    assert np.array_equal(plain, w_new)
    np.testing.assert_allclose(calibration.refine(w, gram, mask, start=w_new), refined, rtol=1e-4, atol=1e-5)


def kept_tiles(mask, tile):
    """How many tiles of a bool matrix have something kept, shorter ones at the ends included."""
    by_rows = np.logical_or.reduceat(mask, np.arange(0, mask.shape[0], tile[0]), axis=0)
    return np.logical_or.reduceat(by_rows, np.arange(0, mask.shape[1], tile[1]), axis=1)


TILES = {"75%/1x4": (1, 4), "50%/8": (1, 8), "50%/4@axis=0": (4, 1), "60%/3x5": (3, 5), "50%/2x2@norm=max": (2, 2)}


@pytest.mark.parametrize("pattern", [*TILES, "2:4@axis=0"])
def test_blocks_and_groups_of_rows(backend, made, pattern):
    """Exactly as many blocks as asked for, whole ones, and the update pays."""
    w, x, _ = made
    w, gram = w[:91, :317], x[:, :317].T @ x[:, :317]
    w_new, mask = calibration.sparsegpt(w, gram, pattern, block_size=100)
    kept = mask.to_bool()
    assert np.array_equal(w_new != 0, kept)
    if pattern in TILES:
        tile = TILES[pattern]
        tiles = kept_tiles(kept, tile)
        sparsity = fs.pattern(pattern).sparsity
        assert np.count_nonzero(~tiles) == round(sparsity * tiles.size)
        assert np.array_equal(np.kron(tiles, np.ones(tile, bool))[:91, :317], kept)
    else:
        assert mask.count == fs.select(w, pattern).count
        assert (np.add.reduceat(kept, np.arange(0, 91, 4), axis=0, dtype=int) <= 2).all()
    plain = calibration.wanda(w, np.sqrt(gram.diagonal()), pattern)
    assert calibration.layer_error(w, w_new, gram) < 0.75 * calibration.layer_error(w, w * plain.to_bool(), gram)


def test_order_of_activation(backend, made):
    w, x, gram = made
    for pattern in ("2:4", "75%/1x4"):
        with pytest.raises(fs.FastSparseError, match=f'order: "{pattern}" joins neighbouring columns'):
            calibration.sparsegpt(w, gram, pattern, order="activation")
    order = np.argsort(-gram.norms, kind="stable")
    w_new, mask = calibration.sparsegpt(w, gram, "60%", order="activation")
    expected, keep = oracle.sparsegpt(w[:, order], (x.T @ x)[np.ix_(order, order)], sparsity=0.6)
    assert agreement(mask, keep[:, np.argsort(order)]) >= 0.999
    assert calibration.layer_error(w, w_new, gram) == pytest.approx(
        oracle.layer_error(w[:, order], expected, x[:, order]), rel=1e-3
    )


def test_one_factor_serves_many_layers(backend, made):
    w, _, gram = made
    factor = calibration.factorize(gram, damping=0.1)
    for rows, pattern in ((w[:40], "50%"), (w[40:], "2:4")):
        for shared, own in zip(
            calibration.sparsegpt(rows, factor, pattern),
            calibration.sparsegpt(rows, gram, pattern, damping=0.1),
            strict=True,
        ):
            assert np.array_equal(shared, own) if isinstance(shared, np.ndarray) else shared == own


@pytest.mark.parametrize("pattern", ["0%", "50%", "100%", "50%/row", "2:4", "3:5", "4:4", "0:4"])
def test_shapes(backend, pattern):
    for shape in ((1, 1), (1, 7), (3, 129), (17, 1), (33, 128), (5, 260)):
        check_shape(shape, pattern)


def check_shape(shape, pattern):
    w, x = oracle.layer(*shape)
    w_new, mask = calibration.sparsegpt(w, x.T @ x, pattern)
    assert mask.count == fs.select(w, pattern).count
    assert not w_new[~mask.to_bool()].any()
    assert np.isfinite(w_new).all()
    if mask.count == w.size:
        assert np.array_equal(w_new, w)
    refined = calibration.refine(w, x.T @ x, mask, start=w_new, steps=2)
    assert not refined[~mask.to_bool()].any()


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16], ids=lambda t: np.dtype(t).name)
def test_dtypes(backend, made, dtype):
    w, _, gram = made
    narrow = w.astype(dtype)
    w_new, mask = calibration.sparsegpt(narrow, gram, "50%")
    wide, same = calibration.sparsegpt(narrow.astype(np.float32), gram, "50%")
    assert w_new.dtype == dtype
    assert mask == same
    assert np.array_equal(w_new, wide.astype(dtype))
    refined = calibration.refine(narrow, gram, mask)
    assert refined.dtype == dtype
    assert np.array_equal(refined, calibration.refine(narrow.astype(np.float32), gram, mask).astype(dtype))


def test_dead_columns(backend):
    w, x = oracle.layer(20, 140)
    x[:, [3, 77, 139]] = 0
    w_new, mask = calibration.sparsegpt(w, x.T @ x, "50%")
    _, keep = oracle.sparsegpt(w, x.T @ x, sparsity=0.5)
    assert agreement(mask, keep) >= 0.999
    assert not w_new[:, [3, 77, 139]].any()
    assert np.isfinite(calibration.refine(w, x.T @ x, mask, damping=0)).all()
    assert np.isfinite(calibration.alps(w, x.T @ x, "50%", damping=0)[0]).all()


@pytest.mark.parametrize("pattern", ["50%", "62.5%/row", "2:4", "75%/1x8", "top3/16"])
def test_wanda(backend, made, pattern):
    w, x, gram = made
    norms = np.sqrt(np.square(x.astype(np.float64)).sum(axis=0))
    np.testing.assert_allclose(gram.norms, norms, rtol=1e-5)
    mask = calibration.wanda(w, norms, pattern)
    scores = np.abs(w) * norms.astype(np.float32)
    if "%/" in pattern or pattern == "50%":
        zeros = {"50%": 160, "62.5%/row": 200}.get(pattern)
        if zeros is None:
            assert mask == fs.select(scores, pattern)
            return
        kept = np.zeros(w.shape, bool)
        np.put_along_axis(kept, np.argsort(scores, axis=1)[:, zeros:], True, axis=1)
        assert np.array_equal(mask.to_bool(), kept)
    else:
        assert mask == fs.select(scores, pattern)


@pytest.mark.parametrize("damping", [0.0, 0.01])
def test_refine_finds_the_best_kept_weights(backend, made, damping):
    w, x, gram = made
    w, keep = w[:12], calibration.wanda(w, gram.norms, "50%").to_bool()[:12]
    best = oracle.best_kept_weights(w, x.T @ x, keep, damping)
    found = calibration.refine(w, gram, keep, steps=200, damping=damping)
    np.testing.assert_allclose(found, best, rtol=5e-3, atol=5e-3)
    assert not found[~keep].any()


@pytest.mark.parametrize("pattern", ["50%", "2:4"])
def test_refine_never_makes_it_worse(backend, made, pattern):
    w, _, gram = made
    updated, mask = calibration.sparsegpt(w, gram, pattern)
    errors = [
        calibration.layer_error(w, calibration.refine(w, gram, mask, start=updated, steps=steps, damping=0), gram)
        for steps in (0, 1, 2, 5, 10, 20)
    ]
    assert errors[0] == calibration.layer_error(w, updated, gram)
    assert all(after < before for before, after in pairwise(errors))
    assert errors[4] < 0.9 * errors[0]
    assert calibration.refine(w, gram, np.ones(w.shape, bool)) == pytest.approx(w)


def test_alps_is_near_the_best_mask_there_is(backend):
    """Against all masks of a row of ten, each with its best weights."""
    ratios = []
    for seed in range(10):
        w, x = oracle.layer(1, 10, seed)
        gram = x.T @ x
        masks = [np.isin(np.arange(10), kept)[None] for kept in combinations(range(10), 5)]
        best = min(oracle.layer_error(w, oracle.best_kept_weights(w, gram, mask), x) for mask in masks)
        w_new, mask = calibration.alps(w, gram, "50%", steps=30)
        assert mask.count == 5
        ratios.append(oracle.layer_error(w, w_new, x) / best)
        assert ratios[-1] > 0.999
    assert np.median(ratios) < 1.2


@pytest.mark.parametrize("pattern", ["50%", "75%", "50%/row", "2:4", "75%/1x4"])
def test_alps_beats_the_others(backend, made, pattern):
    w, _, gram = made
    w_new, mask = calibration.alps(w, gram, pattern)
    assert mask.count == fs.select(w, pattern).count
    assert not w_new[~mask.to_bool()].any()
    other, kept = calibration.sparsegpt(w, gram, pattern)
    refined = calibration.refine(w, gram, kept, start=other)
    assert calibration.layer_error(w, w_new, gram) < calibration.layer_error(w, refined, gram)


def test_layer_error_is_that_of_the_outputs(backend, made):
    w, x, gram = made
    w_new = fs.prune(w, "50%")
    expected = oracle.layer_error(w, w_new, x)
    assert calibration.layer_error(w, w_new, gram) == pytest.approx(expected, rel=1e-5)
    assert calibration.layer_error(w, w_new, x.astype(np.float64).T @ x) == pytest.approx(expected, rel=1e-7)
    assert calibration.layer_error(w, w, gram) == 0
    assert calibration.layer_error(w, 0 * w, gram) == 1
    assert np.isnan(calibration.layer_error(0 * w, w, gram))


def test_an_error_is_not_negative():
    rng = np.random.default_rng(0)
    w = rng.standard_normal((64, 256)).astype(np.float32)
    x = (rng.standard_normal((20, 256)) * np.exp(3 * rng.standard_normal(256))).astype(np.float32)
    gram = calibration.Gram(256)
    gram.update(x)
    # Changes that no input notices: what is lost is rounding.
    unseen = np.eye(256) - np.linalg.pinv(x.astype(np.float64)) @ x
    for _ in range(10):
        changed = (w + rng.standard_normal(w.shape) @ unseen).astype(np.float32)
        assert 0 <= calibration.layer_error(w, changed, gram) < 1e-6


def test_a_matrix_is_whole_after_every_update():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 50, 300)).astype(np.float32)
    gram, other = calibration.Gram(300), calibration.Gram(300)
    other.update(x[2])
    for at, add in enumerate((lambda: gram.update(x[0]), lambda: gram.update(x[1]), lambda: gram.merge(other))):
        add()
        flat = x[: at + 1].reshape(-1, 300).astype(np.float64)
        np.testing.assert_allclose(gram.matrix, flat.T @ flat, rtol=1e-4, atol=1e-3)
        assert np.array_equal(gram.matrix, gram.matrix.T)


def test_more_tokens_than_one_piece_and_merging(monkeypatch):
    monkeypatch.setattr(calibration._gram, "_TOKENS", 100)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 111, 24)).astype(np.float32)
    flat = x.reshape(-1, 24).astype(np.float64)
    whole, parts, diagonal = calibration.Gram(24), calibration.Gram(24), calibration.Gram(24, diagonal=True)
    whole.update(x)
    diagonal.update(x.astype(np.float16))
    other = calibration.Gram(24)
    parts.update(x[0])
    other.update(x[1:].astype(np.float64))
    parts.merge(other)
    for gram in (whole, parts):
        assert gram.tokens == 333
        np.testing.assert_allclose(gram.matrix, flat.T @ flat, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(diagonal.norms, whole.norms, rtol=1e-3)
    assert repr(diagonal) == "<Gram of 24 columns, diagonal only: 333 tokens>"


BAD = np.ones((4, 8), np.float32)
BAD[2, 5] = np.nan
LAYER = oracle.layer(4, 8)
GRAM = LAYER[1].T @ LAYER[1]


def one_sided():
    gram = GRAM.copy()
    gram[6, 1] += 1e3
    return gram


@pytest.mark.parametrize("clip", [0.5, 1, 2.5])
def test_loud_tokens_are_clipped(clip):
    rng = np.random.default_rng(3)
    pieces = [rng.standard_normal((n, 12)) * rng.exponential(size=(n, 1)) ** 3 for n in (1, 40, 63)]
    pieces += [
        np.zeros((2, 12)),
        np.vstack([np.zeros((3, 12)), np.ones((1, 12))]),
    ]  # no typical token: nothing to go by
    whole, diagonal = calibration.Gram(12, clip=clip), calibration.Gram(12, clip=clip, diagonal=True)
    expected = np.zeros((12, 12))
    for piece in pieces:
        x = piece.astype(np.float32).astype(np.float64)
        typical = np.median(np.linalg.norm(x, axis=1))
        for token in x:
            norm = np.linalg.norm(token)
            counts = token * (clip * typical / norm if 0 < clip * typical < norm else 1)
            expected += np.outer(counts, counts)
        whole.update(piece.astype(np.float32).reshape(1, -1, 12))
        diagonal.update(piece.astype(np.float32))
    assert np.allclose(whole.matrix, expected, rtol=1e-5, atol=1e-5)
    assert np.allclose(diagonal.norms, np.sqrt(np.diag(expected)), rtol=1e-6)
    assert whole.tokens == sum(map(len, pieces))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.Gram(8).update(BAD), r"x: nan at index \(2, 5\)"),
        (lambda c: c.Gram(8, diagonal=True).update(-np.inf * BAD), r"x: -inf at index \(0, 0\)"),
        (lambda c: c.Gram(8).update(np.full((2, 8), 1e20, np.float32)), "x: numbers up to 1e.20, whose squares"),
        (lambda c: c.Gram(8).update(np.ones((4, 7))), r"x: expected shape \(…, 8\), got \(4, 7\)"),
        (lambda c: c.Gram(8).update(np.ones(8, complex)), "x: expected real numbers, got dtype complex128"),
        (lambda c: c.Gram(0), "cols: expected an integer ≥ 1, got 0"),
        (lambda c: c.Gram(8, clip=0), "clip: expected a number above 0, got 0"),
        (lambda c: c.Gram(8, clip="2"), "clip: expected a number above 0, got '2'"),
        (lambda c: c.Gram(8).matrix, "gram: it holds no tokens"),
        (lambda c: c.Gram(8).norms, "gram: it holds no tokens"),
        (lambda c: c.Gram(8, diagonal=True).matrix, "gram: it holds the diagonal only"),
        (lambda c: c.Gram(8).merge(c.Gram(8, clip=2)), "other: it has clip=2, this one clip=None"),
        (lambda c: c.Gram(2).update([[1, 2], [3]]), "x: .*inhomogeneous"),
        (lambda c: c.Gram(8).merge(c.Gram(8, diagonal=True)), "other: expected a Gram of 8 columns, got <Gram of 8"),
        (lambda c: c.sparsegpt(LAYER[0], c.Gram(8), "50%"), "gram: it holds no tokens"),
        (lambda c: c.sparsegpt(BAD, GRAM, "50%"), r"w: nan at index \(2, 5\)"),
        (lambda c: c.sparsegpt(LAYER[0], GRAM[:7, :7], "50%"), "gram: it is 7 × 7, but w has 8 columns"),
        (lambda c: c.refine(LAYER[0], GRAM[:7, :7], LAYER[0] > 0), "gram: it is 7 × 7, but w has 8 columns"),
        (lambda c: c.sparsegpt(LAYER[0], GRAM[:7], "50%"), r"gram: expected a square matrix, got shape \(7, 8\)"),
        (lambda c: c.sparsegpt(LAYER[0], one_sided(), "50%"), r"gram: not symmetric: .* at \(1, 6\), .* at \(6, 1\)"),
        (lambda c: c.layer_error(LAYER[0], LAYER[0], one_sided()), "gram: not symmetric"),
        (lambda c: c.sparsegpt(LAYER[0], GRAM * np.nan, "50%"), r"gram: nan at index \(0, 0\)"),
        (lambda c: c.sparsegpt(LAYER[0], -GRAM, "50%"), "gram: a sum of squares is negative at index 0"),
        (lambda c: c.sparsegpt(LAYER[0], 0 * GRAM, "50%"), "gram: all of it is zero"),
        (lambda c: c.sparsegpt(LAYER[0], GRAM, "nonzero"), 'pattern: sparsegpt does not take "nonzero"; expected'),
        (lambda c: c.sparsegpt(LAYER[0], GRAM, "threshold=1"), 'pattern: sparsegpt does not take "threshold=1.0"'),
        (lambda c: c.alps(LAYER[0], GRAM, "nonzero"), 'pattern: alps ranks weights, "nonzero" does not'),
        (lambda c: c.alps(LAYER[0], GRAM, "50%", iterations=0), "iterations: expected an integer ≥ 1, got 0"),
        (lambda c: c.alps(LAYER[0], GRAM[:7, :7], "50%"), "gram: it is 7 × 7, but w has 8 columns"),
        (lambda c: c.wanda(LAYER[0], np.ones(8), "nonzero"), 'pattern: wanda ranks weights, "nonzero" does not'),
        (lambda c: c.wanda(LAYER[0], np.ones(7), "50%"), r"column_scale: expected shape \(8,\), got \(7,\)"),
        (lambda c: c.sparsegpt(LAYER[0], GRAM, "2:3@tail=error"), "w: axis of length 8 is not a multiple of 3"),
        (lambda c: c.sparsegpt(LAYER[0], GRAM, "2:4@axis=2"), "axis: 2 is out of range for w with 2 dimensions"),
        (lambda c: c.sparsegpt(LAYER[0], GRAM, "50%/4@axis=2"), "axis: 2 is out of range for w with 2 dimensions"),
        (lambda c: c.sparsegpt(LAYER[0], GRAM, "50%/row", rounding="peer"), 'rounding: "peer" is for "50%" and n:m'),
        (
            lambda c: c.sparsegpt(LAYER[0], GRAM, "50%", rounding="up"),
            "rounding: expected one of exact, peer",
        ),
        (lambda c: c.sparsegpt(LAYER[0], GRAM, "50%", order="up"), "order: expected one of natural, activation"),
        (lambda c: c.sparsegpt(LAYER[0], GRAM, "50%", damping=-1), "damping: expected a finite number ≥ 0, got -1"),
        (lambda c: c.sparsegpt(LAYER[0], GRAM, "50%", block_size=0), "block_size: expected an integer ≥ 1, got 0"),
        (lambda c: c.sparsegpt(LAYER[0][0], GRAM, "50%"), r"w: expected a matrix \(rows, cols\), got shape \(8,\)"),
        (lambda c: c.sparsegpt(LAYER[0].astype(int), GRAM, "50%"), "w: dtype int64 is not supported"),
        (lambda c: c.refine(LAYER[0], GRAM, LAYER[0][:3] > 0), r"mask: shape \(3, 8\) does not match"),
        (lambda c: c.refine(LAYER[0], GRAM, LAYER[0] > 0, start=BAD), r"start: nan at index \(2, 5\)"),
        (lambda c: c.refine(LAYER[0], GRAM, LAYER[0] > 0, steps=-1), "steps: expected an integer ≥ 0, got -1"),
        (lambda c: c.layer_error(LAYER[0], LAYER[0][:3], GRAM), r"w_new: shape \(3, 8\) does not match"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(fs.FastSparseError, match=message):
        call(calibration)


def test_what_was_refused_leaves_no_trace():
    gram = calibration.Gram(8)
    gram.update(LAYER[1])
    before = gram.matrix.copy(), gram.tokens
    with pytest.raises(fs.FastSparseError, match="x: nan"):
        gram.update(np.concatenate([LAYER[1], BAD]))
    assert np.array_equal(gram.matrix, before[0])
    assert gram.tokens == before[1]


def test_damping_is_raised_with_a_warning():
    gram = GRAM.astype(np.float64)
    gram -= (np.linalg.eigvalsh(gram)[0] + 0.03 * gram.diagonal().mean()) * np.eye(8)
    with pytest.warns(RuntimeWarning, match="not positive definite with a damping of 0.01; trying 0.1"):
        factor = calibration.factorize(gram)
    assert factor.damping == 0.1
    upper = np.triu(factor.upper)
    damped = gram + 0.1 * gram.diagonal().mean() * np.eye(8)
    np.testing.assert_allclose(upper @ upper.T, damped, rtol=1e-9, atol=1e-9)
    hopeless = np.full((8, 8), -1.0)
    np.fill_diagonal(hopeless, 1e-3)
    with (
        pytest.warns(RuntimeWarning, match="trying"),
        pytest.raises(fs.FastSparseError, match="not positive definite, not even with a damping of 10"),
    ):
        calibration.factorize(hopeless)


@pytest.mark.parametrize("cols", [1, 200, 256, 700])
def test_factor(cols):
    _, x = oracle.layer(1, cols)
    gram = x.astype(np.float64).T @ x
    upper = np.triu(calibration.factorize(gram, damping=0.02).upper)
    np.testing.assert_allclose(
        upper @ upper.T, gram + 0.02 * gram.diagonal().mean() * np.eye(cols), atol=1e-9 * gram.max()
    )


def test_too_few_tokens_are_named():
    gram = calibration.Gram(8)
    gram.update(LAYER[1][:5])
    for call in (
        lambda: calibration.sparsegpt(LAYER[0], gram, "50%"),
        lambda: calibration.refine(*LAYER[:1], gram, LAYER[0] > 0),
    ):
        with pytest.warns(RuntimeWarning, match="gram: 5 tokens are too few for 8 columns; at least 32") as caught:
            call()
        assert caught[0].filename == __file__
