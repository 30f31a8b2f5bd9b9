"""Sweeps of checkpoints against what `compress` does; recipes that spread zeros."""

import itertools
import json
import os
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

import fastsparse as fs
from fastsparse import checkpoint
from fastsparse.analysis._budget import Choice, cheapest
from fastsparse.checkpoint import Allocation, Calibration, Recipe, Rule
from fastsparse.cli import main
from fastsparse.cli._outputs import write_outputs

RNG = np.random.default_rng(0)
TENSORS = {
    "layers.0.a.weight": RNG.standard_t(3, (48, 64)).astype(np.float32),
    "layers.1.a.weight": (RNG.standard_normal((48, 64)) / 50).astype(ml_dtypes.bfloat16),
    "layers.10.a.weight": fs.prune(RNG.standard_normal((48, 64)).astype(np.float16), "2:4"),
    "norm.weight": np.ones(64, np.float32),
    "counts": np.arange(5),
}
SWEPT = ["layers.0.a.weight", "layers.1.a.weight", "layers.10.a.weight"]


@pytest.fixture
def path(tmp_path):
    checkpoint.save(TENSORS, tmp_path / "dense.safetensors")
    return tmp_path / "dense.safetensors"


def by_name(swept):
    return {tensor.name: tensor for tensor in swept.tensors}


@pytest.mark.parametrize("pattern", ["10%", "50%", "2:4", "75%/4x1", "50%/row"])
def test_rows_are_what_compress_makes(path, pattern):
    swept = checkpoint.sweep(path, [pattern])
    report = checkpoint.compress(path, path.with_name("packed.safetensors"), pattern)
    rows = {row.name: row for row in report.tensors}
    assert [tensor.name for tensor in swept.swept] == SWEPT
    for tensor in swept.swept:
        row = rows[tensor.name]
        if row.kept_energy is not None:  # else it stays dense
            assert tensor.rows[0].kept_energy == pytest.approx(row.kept_energy, rel=1e-12)
        if pattern == "75%/4x1" and tensor.zeros:
            assert tensor.rows[0].packed_bytes > row.bytes_after
            return
        assert tensor.rows[0].packed_bytes == row.bytes_after
    (total,) = swept.totals
    assert total.packed_bytes == report.bytes_after
    assert total.ratio == report.bytes_after / report.bytes_before
    others = {tensor.name: tensor.reason for tensor in swept.tensors if not tensor.rows}
    assert others == {name: rows[name].reason for name in ("norm.weight", "counts")}


def test_zeros_are_found_in_dense_and_packed_files(path):
    packed = path.with_name("packed.safetensors")
    checkpoint.compress(path, packed, Recipe(rules=[Rule("10.a", "nonzero"), Rule("0.a", "75%/4x1")]))
    found = {tensor.name: tensor.found for tensor in checkpoint.sweep(path, "50%").tensors}
    assert found == {**dict.fromkeys(TENSORS, ()), "layers.10.a.weight": ("2:4", "50%/row", "50%")}
    swept = {tensor.name: tensor for tensor in checkpoint.sweep(packed, "50%").tensors}
    assert swept["layers.0.a.weight"].found == ("75%/4x1", "75%")
    assert swept["layers.0.a.weight"].rows[0].kept_energy == 1
    assert swept["layers.10.a.weight"].found[0] == "2:4"
    assert swept["counts"].zeros is None


def test_eight_bits_are_swept_as_they_are(path):
    packed = path.with_name("packed.safetensors")
    checkpoint.compress(path, packed, Recipe(default="50%", bits=8))
    tensor = by_name(checkpoint.sweep(packed, "50%"))["layers.0.a.weight"]
    assert tensor.zeros == 0.5
    assert tensor.rows[0].kept_energy == 1


def test_what_cannot_be_ranked_says_so(path):
    broken = {**TENSORS, "layers.0.a.weight": np.full((48, 64), np.nan, np.float32)}
    checkpoint.save(broken, path, overwrite=True)
    first, second = map(by_name(checkpoint.sweep(path, "50%")).get, SWEPT[:2])
    assert first.rows == ()
    assert "NaN at index (0, 0)" in first.reason
    assert second.rows[0].sparsity == 0.5


def test_an_infinite_weight_does_not_make_a_recipe_miss_its_total(path):
    broken = TENSORS["layers.0.a.weight"].copy()
    broken[3, 4] = np.inf
    checkpoint.save({**TENSORS, "layers.0.a.weight": broken}, path, overwrite=True)
    swept = checkpoint.sweep(path, [f"{percent}%" for percent in range(10, 100, 10)])
    assert [tensor.name for tensor in swept.swept] == SWEPT[1:]
    assert "energy is infinite" in by_name(swept)[SWEPT[0]].reason
    assert swept.totals[0].kept_energy is not None
    assert sum(shares(swept.recipe(0.6)).values()) == pytest.approx(2 * 0.6, abs=1e-3)


def test_totals_of_nothing_are_json(path):
    checkpoint.save({"a.weight": np.ones((0, 64), np.float32)}, path, overwrite=True)
    found = json.loads(json.dumps(checkpoint.sweep(path, "50%", include=["a"], min_size=0).to_dict(), allow_nan=False))
    assert found["totals"][0]["ratio"] is None


def test_some_pattern_has_to_be_given(path):
    with pytest.raises(fs.FastSparseError, match="patterns: expected at least one"):
        checkpoint.sweep(path, [])


def test_which_tensors_are_swept(path):
    assert len(checkpoint.sweep(path, "50%", exclude=["10"]).swept) == 2
    assert len(checkpoint.sweep(path, "50%", include=["norm"]).swept) == 4
    assert checkpoint.sweep(path, "50%", min_size=10**6).swept == ()
    assert checkpoint.sweep(path, "50%", min_size=10**6).totals[0].kept_energy == 1
    with pytest.raises(fs.FastSparseError, match="matches no tensor"):
        checkpoint.sweep(path, "50%", include=["nothing"])


@pytest.mark.parametrize("transposed", [False, True])
def test_weights_count_times_their_inputs(path, transposed):
    w = TENSORS["layers.0.a.weight"]
    norms = np.linspace(0, 4, 48 if transposed else 64).astype(np.float32)
    statistics = {"layers.0.a": SimpleNamespace(norms=norms, transposed=transposed)}
    first, second = map(by_name(checkpoint.sweep(path, ["50%", "2:4"], statistics=statistics)).get, SWEPT[:2])
    scaled = np.abs(w) * (norms[:, None] if transposed else norms)
    assert first.weighted
    assert not second.weighted
    for row in first.rows:
        assert row.kept_energy == pytest.approx(fs.sweep(scaled, row.pattern)[0].kept_energy, rel=1e-12)


def shares(recipe):
    return {rule.match: rule.pattern.sparsity for rule in recipe.rules}


@pytest.mark.parametrize("loss", ["share", "energy"])
@pytest.mark.parametrize("total", [0.0, 0.3, 0.5, 0.77, 0.9])
def test_a_recipe_reaches_its_total_exactly_and_loses_least(path, loss, total):
    swept = checkpoint.sweep(path, [f"{percent}%" for percent in range(5, 100, 5)], exclude=["10.a"])
    recipe = swept.recipe(total, loss=loss)
    file = path.with_name("recipe.toml")
    file.write_text(recipe.to_toml())
    assert Recipe.from_toml(file) == recipe
    report = checkpoint.plan(path, recipe).report
    zeros = sum(tensor.elements * (tensor.sparsity or 0) for tensor in report.tensors)
    # The last share is one that pays: packed, a tensor with fewer zeros would be larger than dense.
    assert 0 <= round(zeros) - round(total * 2 * 48 * 64) < 0.15 * 48 * 64
    assert total in (0.5, 0.9) or round(zeros) == round(total * 2 * 48 * 64)

    def lost(name, share):
        w = TENSORS[name]
        kept = fs.sweep(w, f"{100 * share:.17g}%")[0].kept_energy
        energy = 1 if loss == "share" else float(np.square(w.astype(np.float64)).sum())
        return energy * (1 - kept)

    chosen = {rule.match.strip("^$").replace("\\", ""): rule.pattern.sparsity for rule in recipe.rules}
    ours = sum(lost(name, share) for name, share in chosen.items())
    assert ours <= sum(lost(name, total) for name in SWEPT[:2]) * (1 + 1e-9)


def test_zeros_that_are_there_cost_nothing(path):
    recipe = checkpoint.sweep(path, ["50%", "60%"]).recipe(1 / 6)
    assert shares(recipe) == {r"^layers\.10\.a\.weight$": 0.5}


def test_a_recipe_of_groups_reaches_at_least_its_total(path):
    swept = checkpoint.sweep(path, ["1:4", "2:4", "3:4"])
    report = checkpoint.plan(path, swept.recipe(0.4)).report
    assert 0.4 <= report.sparsity * sum(t.sparsity is not None for t in report.tensors) / 3 < 0.5
    with pytest.raises(fs.FastSparseError, match=r"sparsity: 0.8 of all cannot be reached, the patterns make 0.75"):
        swept.recipe(0.8)
    with pytest.raises(fs.FastSparseError, match="sparsity: expected a number"):
        swept.recipe(2)
    with pytest.raises(fs.FastSparseError, match="loss: expected share or energy"):
        swept.recipe(0.5, loss="other")


def test_the_cheapest_choices_of_all():
    """Against every combination, for convex losses."""
    rng = np.random.default_rng(1)
    for _ in range(50):
        tensors = []
        for _ in range(3):
            steps = np.sort(rng.random(4)).cumsum()
            tensors.append([Choice(10 * (at + 1), float(loss), at) for at, loss in enumerate(steps)])
        for wanted in range(0, 130, 10):
            found = cheapest(tensors, wanted)
            assert sum(needed for _, needed in found) == min(wanted, 120)
            ours = sum(choice.loss for choice, _ in found if choice is not None)
            with_nothing = [[Choice(0, 0.0, -1), *own] for own in tensors]
            enough = [
                some for some in itertools.product(*with_nothing) if sum(c.zeros for c in some) >= min(wanted, 120)
            ]
            assert ours == pytest.approx(min(sum(c.loss for c in some) for some in enough))


def test_a_recipe_in_toml_is_read_back(tmp_path):
    recipe = Recipe(
        rules=[Rule('a"b\\.\x7f\té', "2:4@axis=0"), Rule("^x$", skip=True), Rule("y", "50%", method="wanda")],
        default="50%",
        include=["one", "two"],
        scope="global",
        max_sparsity=0.75,
        min_size=0,
        calibration=Calibration(data="t.txt", sequential=False),
        allocation=Allocation(kind="owl", least=0.2),
    )
    (tmp_path / "r.toml").write_text(recipe.to_toml(), "utf-8")
    assert Recipe.from_toml(tmp_path / "r.toml") == recipe
    assert Recipe().to_toml() == ""


def test_inspect_reads_zeros_where_it_is_asked_to(path):
    assert {row.zeros for row in checkpoint.inspect(path).tensors} == {None}
    report = checkpoint.inspect(path, detect=True)
    rows = {row.name: row for row in report.tensors}
    assert rows["layers.10.a.weight"].found[0] == "2:4"
    assert rows["layers.10.a.weight"].zeros == 0.5
    assert rows["counts"].zeros is None
    line = next(line for line in str(report).splitlines() if "layers.10" in line)
    assert "2:4" in line
    assert "50.0%" in line


def test_reports_are_shown_as_tables(path):
    swept = checkpoint.sweep(path, ["50%", "2:4"])
    lines = str(swept).splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["pattern", "50%", "2:4", "3"]
    for report in (swept, checkpoint.inspect(path), checkpoint.plan(path, "50%")):
        assert repr(report) == str(report)


def test_the_command_line(path, capsys):
    html, recipe = path.with_name("out.html"), path.with_name("recipe.toml")
    assert main(["sweep", str(path), "--html", str(html), "--recipe", str(recipe), "--total", "60%"]) == 0
    out = capsys.readouterr().out
    assert "50%" in out
    assert "does not say whether the model still works" in " ".join(out.split())
    assert sum(shares(Recipe.from_toml(recipe)).values()) == pytest.approx(3 * 0.6, abs=1e-3)
    assert main(["sweep", str(path), "--html", str(html)]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main(["report", str(path), "--html", str(html), "--overwrite"]) == 0
    assert html.read_text("utf-8").startswith("<!doctype html>")
    capsys.readouterr()
    assert main(["sweep", str(path), "--pattern", "2:4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["pattern"] for row in found["totals"]] == ["2:4"]
    assert [tensor["rows"][0]["sparsity"] for tensor in found["tensors"] if tensor["rows"]] == [0.5] * 3
    assert main(["inspect", str(path)]) == 0
    assert "2:4" in capsys.readouterr().out
    assert main(["inspect", str(path), "--headers"]) == 0
    assert "2:4" not in capsys.readouterr().out


def refused(capsys, *arguments):
    """What a command says that fails and prints nothing."""
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert (code in (1, 2), out) == (True, "")
    return err


def test_what_is_read_is_not_replaced(path, tmp_path, capsys):
    statistics, folder = tmp_path / "statistics.safetensors", tmp_path / "model"
    statistics.write_bytes(b"statistics")
    folder.mkdir()
    checkpoint.save(TENSORS, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    (tmp_path / "link").symlink_to(path)
    for source, target in (
        (path, path),
        (path, tmp_path / "link"),
        (path, statistics),
        (folder, folder / "model.safetensors"),
        (folder, folder / "config.json"),
    ):
        before = target.read_bytes()
        for options in (["report", source, "--html", target], ["sweep", source, "--recipe", target]):
            assert "is an input" in refused(capsys, *options, "--statistics", statistics, "--overwrite")
        assert target.read_bytes() == before
    assert main(["report", str(folder), "--html", str(folder / "page.html")]) == 0


def test_outputs_are_checked_before_work_and_written_together(path, tmp_path, capsys, monkeypatch):
    html, recipe, there = tmp_path / "a.html", tmp_path / "a.toml", tmp_path / "there"
    there.write_text("mine")
    names = sorted(os.listdir(tmp_path))
    # One that cannot be reached is found after the work: then nothing is written or replaced.
    unreachable = ["--pattern", "2:4", "--recipe", recipe, "--total", "90%", "--overwrite"]
    assert "cannot be reached" in refused(capsys, "sweep", path, "--html", there, *unreachable)
    monkeypatch.setattr(checkpoint, "sweep", lambda *_, **__: pytest.fail("it has begun"))
    for options, why in (
        (["--html", html, "--recipe", html], "another output"),
        (["--html", html, "--recipe", tmp_path / "none" / ".." / "a.html"], "another output"),
        (["--html", html, "--recipe", tmp_path / "none" / "a.toml"], "there is no folder to write it in"),
        (["--html", there], "--overwrite"),
        (["--html", tmp_path, "--overwrite"], "names a folder"),
        (["--html", html, "--total", "60%"], "--recipe"),
    ):
        assert why in refused(capsys, "sweep", path, *options)
    assert sorted(os.listdir(tmp_path)) == names
    assert there.read_text() == "mine"


def test_outputs_that_cannot_all_be_written_leave_what_was_there(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("mine")
    with pytest.raises(UnicodeEncodeError):
        write_outputs({first: "new", second: "\ud800"})
    assert (first.read_text(), os.listdir(tmp_path)) == ("mine", ["first"])
    write_outputs({first: "new", second: "other"})
    assert (first.read_text(), second.read_text()) == ("new", "other")
    assert sorted(os.listdir(tmp_path)) == ["first", "second"]
