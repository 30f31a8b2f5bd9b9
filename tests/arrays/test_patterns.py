"""Patterns: validation, short forms, and what they look like."""

import copy
import dataclasses
import decimal
import pickle
import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import patterns, sparsities

import fastsparse as fs

SHORT_FORMS = [
    ("50%", fs.Unstructured(0.5), ("unstructured", 0.5, "tensor")),
    ("50%/row", fs.Unstructured(0.5, per="row"), ("unstructured", 0.5, "row")),
    ("0%", fs.Unstructured(0), ("unstructured", 0.0, "tensor")),
    ("100%", fs.Unstructured(1), ("unstructured", 1.0, "tensor")),
    ("12.5%", fs.Unstructured(0.125), ("unstructured", 0.125, "tensor")),
    ("33.3%", fs.Unstructured(0.333), ("unstructured", 0.333, "tensor")),
    ("top8/64", fs.TopK(8, of=64), ("topk", 8, 64, -1, "proportional")),
    ("top0/1@axis=0,tail=keep", fs.TopK(0, of=1, axis=0, tail="keep"), ("topk", 0, 1, 0, "keep")),
    ("2:4", fs.NM(zeros=2, of=4), ("nm", 2, 4, -1, "proportional")),
    ("3:4@axis=0", fs.NM(zeros=3, of=4, axis=0), ("nm", 3, 4, 0, "proportional")),
    ("3:4@tail=error", fs.NM(zeros=3, of=4, tail="error"), ("nm", 3, 4, -1, "error")),
    ("75%/4x1", fs.Block((4, 1), 0.75), ("block", (4, 1), 0.75, -1, "l2")),
    ("75%/4x1@norm=max", fs.Block((4, 1), 0.75, norm="max"), ("block", (4, 1), 0.75, -1, "max")),
    ("75%/8", fs.Block(8, 0.75), ("block", 8, 0.75, -1, "l2")),
    ("75%/8@axis=-2,norm=l1", fs.Block(8, 0.75, axis=-2, norm="l1"), ("block", 8, 0.75, -2, "l1")),
    ("threshold=0.01", fs.Threshold(0.01), ("threshold", 0.01)),
    ("threshold=-1e-300", fs.Threshold(-1e-300), ("threshold", -1e-300)),
    ("nonzero", fs.Nonzero(), ("nonzero",)),
]


@pytest.mark.parametrize(("text", "pattern", "spec"), SHORT_FORMS, ids=[form[0] for form in SHORT_FORMS])
def test_short_form_and_spec(text, pattern, spec):
    assert str(pattern) == text
    assert fs.pattern(text) == pattern
    assert pattern._spec == spec


@given(st.one_of(patterns(), st.builds(fs.Threshold, st.floats(allow_nan=False, allow_infinity=False))))
def test_short_form_reads_back(pattern):
    read = fs.pattern(str(pattern))
    assert read == pattern
    assert type(read) is type(pattern)
    assert read._spec == pattern._spec
    assert str(read) == str(pattern)


@given(sparsities())
def test_percent_is_exact(sparsity):
    assert fs.pattern(str(fs.Unstructured(sparsity))).sparsity == sparsity
    assert "e" not in str(fs.Unstructured(sparsity)).lower()


@pytest.mark.parametrize("text", [" 50% ", "50 %", "2:4\n"])
def test_white_space_around_is_fine(text):
    assert str(fs.pattern(text)) == text.replace(" ", "").strip()


def test_pattern_of_a_pattern_is_itself():
    p = fs.NM(zeros=2, of=4)
    assert fs.pattern(p) is p


@pytest.mark.parametrize(
    "text",
    [
        "", "50", "0.5", "50%/", "50%/col", "%", "-50%", "1e2%", "2:", ":4", "2:4:8", "2 : 4", "٣:٤", "9" * 5000 + ":4",
        "top8", "top8/", "8/64", "75%/4x", "75%/x4", "75%/4x1x1", "threshold", "threshold=", "threshold=nan",
        "threshold=inf", "threshold=x", "zero", "2:4@", "2:4@axis", "2:4@axis=0,", "2:4@axis=0,axis=1", "2:4@color=red",
        "2:4@axis=0 tail=keep",
    ],
)  # fmt: skip
def test_what_is_no_short_form(text):
    with pytest.raises(fs.FastSparseError, match=r"^pattern: "):
        fs.pattern(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("101%", "sparsity: expected a number from 0 to 1"),
        ("5:4", "zeros: expected an integer from 0 to 4, got 5"),
        ("0:0", "of: expected an integer ≥ 1, got 0"),
        ("top9/8", "keep: expected an integer from 0 to 8, got 9"),
        ("50%/0", "shape: expected an integer ≥ 1, got 0"),
        ("50%/0x2", r"shape\[0\]: expected an integer ≥ 1, got 0"),
        ("2:4@axis=x", "axis: expected an integer"),
        ("2:4@axis=99", "axis: expected an integer from -64 to 63, got 99"),
        ("2:4@tail=2", "tail: expected one of proportional, keep, error, got 2"),
        ("2:4@norm=l1", "takes no option 'norm'"),
        ("50%@axis=0", "takes no option 'axis'"),
        ("nonzero@tail=keep", "takes no option 'tail'"),
        ("75%/8@norm=l3", "norm: expected one of l2, l1, max, got 'l3'"),
        ("75%/4x1@axis=0", "axis: only runs"),
    ],
)
def test_message_names_the_text_and_the_argument(text, message):
    with pytest.raises(fs.FastSparseError, match=message) as caught:
        fs.pattern(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("value", [None, 0.5, 4, b"50%", ["50%"], ("nm", 2, 4), fs.NM])
def test_what_is_no_pattern(value):
    with pytest.raises(fs.FastSparseError, match="pattern: expected a pattern or a short form"):
        fs.pattern(value)
    with pytest.raises(fs.FastSparseError, match="pattern: expected a pattern or a short form"):
        fs.select(np.ones(4), value)


@pytest.mark.parametrize("value", [0, 1, 0.5, -0.0, np.float32(0.25), np.float64(0.5), np.int64(1), Fraction(1, 3)])
def test_sparsity_is_a_number_from_0_to_1(value):
    for p in (fs.Unstructured(value), fs.Block(2, value)):
        assert type(p.sparsity) is float
        assert p.sparsity == float(value)
        assert str(p)[0] != "-"


@pytest.mark.parametrize(
    "value",
    [-0.1, 1.0000001, 50, float("nan"), float("inf"), -float("inf"), True, False, np.True_, "0.5", None, 0.5j, [0.5]],
)
def test_sparsity_that_is_not(value):
    for make in (lambda: fs.Unstructured(value), lambda: fs.Block(2, value)):
        with pytest.raises(
            fs.FastSparseError, match="sparsity: expected a number from 0 to 1, the share of zeros, got "
        ):
            make()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), True, "0.1", None, 10**400])
def test_threshold_is_finite(value):
    with pytest.raises(fs.FastSparseError, match="value: expected a finite number, got "):
        fs.Threshold(value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fs.NM(zeros=-1, of=4), "zeros: expected an integer from 0 to 4, got -1"),
        (lambda: fs.NM(zeros=5, of=4), "zeros: expected an integer from 0 to 4, got 5"),
        (lambda: fs.NM(zeros=2.0, of=4), r"zeros: expected an integer from 0 to 4, got 2\.0"),
        (lambda: fs.NM(zeros=True, of=4), "zeros: expected an integer from 0 to 4, got True"),
        (lambda: fs.NM(zeros=0, of=0), "of: expected an integer ≥ 1, got 0"),
        (lambda: fs.NM(zeros=2, of="4"), "of: expected an integer ≥ 1, got '4'"),
        (lambda: fs.NM(zeros=2, of=4, axis=None), "axis: expected an integer from -64 to 63, got None"),
        (lambda: fs.NM(zeros=2, of=4, tail="drop"), "tail: expected one of proportional, keep, error, got 'drop'"),
        (lambda: fs.NM(zeros=2, of=4, tail=["keep"]), "tail: expected one of"),
        (lambda: fs.TopK(9, of=8), "keep: expected an integer from 0 to 8, got 9"),
        (lambda: fs.TopK(1, of=-8), "of: expected an integer ≥ 1, got -8"),
        (lambda: fs.TopK(1, of=8, tail=None), "tail: expected one of"),
        (lambda: fs.Unstructured(0.5, per="col"), "per: expected one of tensor, row, got 'col'"),
        (lambda: fs.Block((1, 2, 3), 0.5), r"shape: expected an integer or a pair \(rows, columns\), got \(1, 2, 3\)"),
        (lambda: fs.Block((0, 2), 0.5), r"shape\[0\]: expected an integer ≥ 1, got 0"),
        (lambda: fs.Block((2, 2.5), 0.5), r"shape\[1\]: expected an integer ≥ 1, got 2\.5"),
        (lambda: fs.Block("4x1", 0.5), "shape: expected an integer ≥ 1, got '4x1'"),
        (lambda: fs.Block((4, 1), 0.5, axis=0), "axis: only runs .* take one, got 0"),
        (lambda: fs.Block(4, 0.5, norm="L2"), "norm: expected one of l2, l1, max, got 'L2'"),
    ],
)
def test_arguments_that_are_wrong(make, message):
    with pytest.raises(fs.FastSparseError, match=message):
        make()


def test_n_and_m_are_given_by_name():
    with pytest.raises(TypeError, match="positional"):
        fs.NM(2, 4)
    with pytest.raises(TypeError, match="positional"):
        fs.TopK(2, 4)


def test_n_is_the_number_of_zeros_and_says_so():
    assert "3 zeros in every 4 (75 %)" in repr(fs.NM(zeros=3, of=4))
    assert "1 zeros in every 3 (33.3333 %)" in repr(fs.NM(zeros=1, of=3))
    assert fs.select(np.float32([[4, 3, 2, 1]]), "3:4").count == 1


def test_messages_about_groups_say_what_goes(backend):
    with pytest.raises(fs.FastSparseError, match=r"a shorter group of 3 zeros in every 4 \(75 %\)$"):
        fs.select(np.ones(5), "3:4@tail=error")
    with pytest.raises(fs.FormatError, match=r"not a multiple of 8: 7 zeros in every 8 \(87\.5 %\)$"):
        fs.BitmaskArray.from_parts([1.0], np.uint8([[1]]), (5,), pattern="top1/8@tail=error")
    for zeros, of, percent in ((2, 3, "66.6667"), (0, 4, "0"), (4, 4, "100"), (1, 10_000_000, "0")):
        pattern = fs.NM(zeros=zeros, of=of)
        said = f"{zeros} zeros in every {of} ({percent} %)"
        assert said in repr(pattern)
        keep = np.arange(of) < of - zeros
        keep[0] ^= True
        s = fs.pack(np.ones(of), keep)
        with pytest.raises(fs.FormatError, match=re.escape(f"flat index 0 does not fit {said}")):
            fs.BitmaskArray.from_parts(s.values, s.bitmask, s.shape, pattern=pattern)


def test_integers_of_numpy_become_plain_ones():
    p = fs.NM(zeros=np.int8(2), of=np.uint16(4), axis=np.int64(0))
    assert [type(v) for v in (p.zeros, p.of, p.axis)] == [int, int, int]
    assert p == fs.NM(zeros=2, of=4, axis=0)
    assert fs.Block([np.int32(4), 1], 0.5) == fs.Block((4, 1), 0.5)


@given(patterns())
def test_patterns_are_values(pattern):
    pickled = [pickle.loads(pickle.dumps(pattern, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    rebuilt = type(pattern)(**dataclasses.asdict(pattern))
    for twin in (copy.copy(pattern), copy.deepcopy(pattern), rebuilt, *pickled):
        assert twin == pattern
        assert hash(twin) == hash(pattern)
        assert twin._spec == pattern._spec
    assert isinstance(pattern, fs.Pattern)
    assert not hasattr(pattern, "__dict__")
    for field in dataclasses.fields(pattern):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(pattern, field.name, 0)


def test_fields_are_what_the_contract_names():
    for kind, names in (
        (fs.Unstructured, "sparsity per"),
        (fs.TopK, "keep of axis tail"),
        (fs.NM, "zeros of axis tail"),
        (fs.Block, "shape sparsity axis norm"),
        (fs.Threshold, "value"),
        (fs.Nonzero, ""),
    ):
        assert [field.name for field in dataclasses.fields(kind)] == names.split()


def test_short_forms_do_not_depend_on_the_decimal_context():
    with decimal.localcontext(prec=2, Emax=1, Emin=-1):
        for sparsity in (1 / 3, 0.123456789, 5e-324, 1 - 2**-53):
            assert fs.pattern(str(fs.Unstructured(sparsity))).sparsity == sparsity


def test_patterns_of_different_kinds_differ():
    assert fs.NM(zeros=2, of=4) != fs.TopK(2, of=4)
    assert fs.Unstructured(0.5) != fs.Unstructured(0.5, per="row")
    assert dataclasses.replace(fs.NM(zeros=2, of=4), axis=0)._spec == ("nm", 2, 4, 0, "proportional")
