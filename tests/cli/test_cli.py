"""The command line: exit codes, what goes to stdout and what to stderr."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import rich.console
import typer.core

from fastsparse import checkpoint
from fastsparse.cli import _commands, _progress


@pytest.fixture
def src(tmp_path):
    rng = np.random.default_rng(3)
    tensors = {f"layer.{i}.weight": rng.standard_normal((64, 64), np.float32) for i in range(2)}
    checkpoint.save({**tensors, "lm_head.weight": tensors["layer.0.weight"], "bias": np.ones(9, "f")}, tmp_path / "src")
    return tmp_path / "src"


def sparsities(text):
    return {row["name"]: row["sparsity"] for row in json.loads(text)["tensors"]}


def test_there_and_back(run, src, tmp_path, monkeypatch):
    monkeypatch.setattr(_progress, "_DELAY", 0)
    packed, dense = tmp_path / "packed", tmp_path / "dense"
    code, out, err = run("compress", src, packed, "--pattern", "75%", "--json")
    assert code == 0
    assert sparsities(out) == {"layer.0.weight": 0.75, "layer.1.weight": 0.75, "lm_head.weight": None, "bias": None}
    events = [json.loads(line) for line in err.splitlines()]
    assert [event["tensor"] for event in events[-4:]] == list(checkpoint.open(src))
    assert all(event["event"] == "progress" and event["rate"] > 0 and event["eta"] >= 0 for event in events)
    assert [event["done"] for event in events] == sorted({event["done"] for event in events})
    assert (events[-1]["done"], events[-1]["eta"]) == (events[-1]["total"], 0)
    code, out, _ = run("inspect", packed)
    assert code == 0
    assert "layer.0.weight" in out
    assert "75.0%" in out
    assert "4 tensors, 2 packed" in out
    assert run("inspect", packed, "--json")[0] == 0
    assert run("verify", packed, "--against", src)[0] == 0
    code, _, err = run("decompress", packed, dense)
    assert code == 0
    assert re.search(r"^100 %  .*/s, 0 s left  ", err, re.MULTILINE)
    code, out, err = run("verify", dense, "--against", src)
    assert (code, out) == (1, "")
    assert "tensor 'layer.0.weight': it differs from the source" in err
    assert np.count_nonzero(checkpoint.open(dense)["layer.1.weight"]) == 1024


def test_what_to_prune_can_be_said(run, src, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[[rule]]\nmatch = 'layer.0'\npattern = '2:4'\n")
    for options, expected in (
        (["--pattern", "50%", "--include", "lm_head"], {"layer.0.weight", "layer.1.weight", "lm_head.weight"}),
        (["--pattern", "50%", "--exclude", "layer.0", "--exclude", "b.as"], {"layer.1.weight"}),
        (["--pattern", "50%", "--min-size", "4096"], set()),
        (["--recipe", str(recipe)], {"layer.0.weight"}),
        (["--pattern", "50%", "--global", "--min-sparsity", "0.45"], {"layer.0.weight", "layer.1.weight"}),
    ):
        code, out, _ = run("compress", src, tmp_path / "dst", "--overwrite", "--json", *options)
        assert code == 0
        assert {name for name, sparsity in sparsities(out).items() if sparsity is not None} == expected


def test_a_plan_writes_nothing(run, src, tmp_path):
    code, out, _ = run("compress", src, "--pattern", "2:4", "--plan", "--json")
    assert code == 0
    assert sparsities(out)["layer.0.weight"] == 0.5
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_failures_are_one_line_on_stderr(run, src, tmp_path):
    (tmp_path / "there").write_text("mine")
    (tmp_path / "recipe.toml").write_text("x = 1")
    for arguments, why in (
        (["inspect", tmp_path / "none"], "none"),
        (["inspect", tmp_path / "there"], "there"),
        (["compress", src, tmp_path / "there", "--pattern", "50%"], "exists already; --overwrite replaces it"),
        (["compress", src, src, "--pattern", "50%", "--overwrite"], "same file"),
        (["compress", src, tmp_path / "x", "--recipe", tmp_path / "recipe.toml"], "unknown key"),
        (["compress", src, tmp_path / "x", "--recipe", tmp_path / "none"], "none"),
        (["compress", src, tmp_path / "x", "--pattern", "2:4@axis=5", "--include", "."], "axis"),
        (["compress", src, tmp_path / "x", "--pattern", "2:4", "--global"], "global"),
        (["compress", src, tmp_path / "x", "--pattern", "50%", "--max-sparsity", "0.5"], "--max-sparsity: "),
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (1, "")
        assert err.splitlines()[-1].startswith("fastsparse: ")
        assert why in err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("command", ["compress", "verify"])
def test_an_interrupt_is_one_line(run, src, tmp_path, monkeypatch, command):
    monkeypatch.setattr(_progress._Lines, "__call__", lambda *_: signal.raise_signal(signal.SIGINT))
    code, out, err = run(command, src, *([tmp_path / "dst", "--pattern", "50%"] if command == "compress" else []))
    assert (code, out, err) == (130, "", "fastsparse: interrupted; what was begun is removed\n")
    assert os.listdir(tmp_path) == ["src"]


INTERRUPTED = (130, "", "fastsparse: interrupted; what was begun is removed\n")


def test_an_interrupt_while_it_is_loaded_is_one_line(run, src, monkeypatch):
    """It waits until the command begins: one in a class body, a callback or an extension would be wrapped or lost."""
    reached = []

    class Loading:
        @property
        def run(self):
            signal.raise_signal(signal.SIGINT)
            reached.append("loaded")
            return _commands.run

    monkeypatch.setitem(sys.modules, "fastsparse.cli._commands", Loading())
    monkeypatch.setattr(checkpoint, "inspect", lambda *_, **__: reached.append("begun"))
    assert run("inspect", src) == INTERRUPTED
    assert reached == ["loaded"]


def test_an_interrupt_while_arguments_are_parsed_is_one_line(run, src, monkeypatch):
    def parse(*arguments, parse=typer.core.TyperCommand.parse_args):
        signal.raise_signal(signal.SIGINT)
        return parse(*arguments)

    monkeypatch.setattr(typer.core.TyperCommand, "parse_args", parse)
    assert run("inspect", src) == INTERRUPTED
    code, _, err = run("inspect", "--help")  # where no command begins
    assert (code, err) == (INTERRUPTED[0], INTERRUPTED[2])


@pytest.mark.parametrize("wrapping", [RuntimeError, ImportError, SystemError])
def test_an_interrupt_that_a_library_wraps_is_one_line(run, src, monkeypatch, wrapping):
    """As Python 3.11 does in a class body: the error names the interrupt, if at all, as its cause."""

    def inspect(*_, **__):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise wrapping("Error calling __set_name__")

    monkeypatch.setattr(checkpoint, "inspect", inspect)
    assert run("inspect", src) == INTERRUPTED


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["prune"],
        ["compress", "a", "b"],
        ["compress", "a", "b", "--pattern", "50"],
        ["compress", "a", "--pattern", "50%"],
        ["compress", "a", "b", "--pattern", "50%", "--recipe", "r"],
        ["compress", "a", "b", "--pattern", "50%", "--include", "("],
        ["compress", "a", "b", "--pattern", "50%", "--min-size", "-1"],
        ["compress", "a", "b", "--pattern", "50%", "--global", "--min-sparsity", "2"],
        ["decompress", "a"],
        ["inspect"],
    ],
)
def test_a_command_line_that_is_not_understood(run, arguments):
    code, out, err = run(*arguments)
    assert code == 2
    assert "Usage" in out + err


def test_the_module_is_the_program(src):
    command = [sys.executable, "-m", "fastsparse", "inspect", str(src), "--headers", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["totals"]["packed"] == 0
    assert done.stderr == ""
    assert subprocess.run([*command[:3], "--version"], capture_output=True, text=True).stdout.strip()


def test_what_the_terminal_cannot_print_is_escaped(src):
    command = [sys.executable, "-m", "fastsparse", "inspect", str(src), "--headers"]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb" \u2192 " in done.stdout


def test_importing_the_package_imports_nothing_of_the_command():
    code = "import sys, fastsparse; print(sorted({'typer', 'rich', 'click'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_commands_import_no_calibration_before_they_need_it():
    code = "import sys, fastsparse.cli._commands; print('fastsparse.calibration' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_terminal_shows_a_bar():
    pty = pytest.importorskip("pty", reason="a Unix module")
    parent, child = pty.openpty()
    code = """if True:
        from fastsparse.cli import _progress
        _progress._DELAY = 0
        with _progress.progress_of(False) as tell:
            tell._timer.join()
            tell.begin([("counting", 2000), ("packing", 1000)])
            tell(2000, 3000, "layers.1.weight")
            tell(2500, 3000, "layers.2.weight")
            tell._bar.refresh()"""
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    subprocess.run([sys.executable, "-c", code], stderr=child, env=environment, check=True)
    os.close(child)
    shown = os.read(parent, 100_000).decode()
    os.close(parent)
    assert "━" in shown
    assert "packing" in shown
    assert "0.5/1.0 kB" in shown
    assert "layers.2.weight" in shown


@pytest.mark.parametrize("terminal", ["xterm", "dumb"])
def test_a_bar_begins_after_a_second(monkeypatch, terminal):
    monkeypatch.setenv("TERM", terminal)
    for delay, empty in ((60, True), (0, False)):
        monkeypatch.setattr(_progress, "_DELAY", delay)
        console = rich.console.Console(file=io.StringIO(), force_terminal=True, width=80)
        with _progress._Bar(console) as bar:
            if not empty:
                bar._timer.join()
            bar(1, 2, "layers.0.weight")
        assert (console.file.getvalue() == "") == empty


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_bench(run, dtype):
    wanted = ["--shape", "64x300", "--dtype", dtype, "--seconds", 0, "--batch", 1, "--batch", 5]
    code, out, err = run("bench", *wanted, "--sparsity", "95%", "--sparsity", 0.5, "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert (result["shape"], result["dtype"]) == ([64, 300], dtype)
    rows = result["rows"]
    assert [(row["batch"], row["sparsity"]) for row in rows] == [(1, 0.5), (1, 0.95), (5, 0.5), (5, 0.95)]
    for row in rows:
        assert all(ms > 0 for ms in [row["packed"], *row["dense"].values()])
        fastest = min(row["packed"], row["prepared"] or row["packed"])
        assert row["speed_up"] == min(row["dense"].values()) / fastest
    assert [wins["batch"] for wins in result["wins_from"]] == [1, 5]
    code, out, err = run("bench", *wanted, "--sparsity", 90)
    assert (code, err) == (0, "")
    assert "times as fast as the best dense layer" in out
    assert re.search("batch 5: (packed wins from 90% on|dense wins)", out)


def test_bench_says_where_packed_wins():
    from fastsparse.cli._measure import Bench, Row

    def rows(*packed):
        return [
            Row(1, sparsity, {"numpy": 2.0}, ms, None) for sparsity, ms in zip((0.5, 0.75, 0.9), packed, strict=True)
        ]

    for packed, lowest in [((3, 1, 1), 0.75), ((1, 3, 1), 0.9), ((1, 1, 3), None), ((1, 1, 1), 0.5)]:
        assert Bench((4, 4), "float32", 2, rows(*packed)).wins_from(1) == lowest
    assert Row(1, 0.9, {"numpy": 2.0, "torch": 3.0}, 1.0, 0.5).speed_up == 4


@pytest.mark.parametrize(
    "wrong", [["--shape", "3"], ["--shape", "0x4"], ["--dtype", "int8"], ["--batch", "0"], ["--sparsity", "half"]]
)
def test_bench_refuses(run, wrong):
    code, out, err = run("bench", *wrong)
    assert code in (1, 2)
    assert out == ""
    assert "Error" in err or "fastsparse:" in err
