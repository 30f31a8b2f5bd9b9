"""What the command line shows: lines that fit, hints at slips, help, completion."""

import json
import os
import shlex
import subprocess
import sys

import numpy as np
import pytest
import typer

import fastsparse as fs
from fastsparse import checkpoint
from fastsparse._table import Column, table
from fastsparse.cli import _progress
from fastsparse.cli._commands import app
from fastsparse.cli._examples import EXAMPLES

LAYERS = "model.language_model.encoder.layers"


@pytest.fixture
def src(tmp_path):
    rng = np.random.default_rng(3)
    tensors = {
        f"{LAYERS}.{i}.{part}.weight": rng.standard_normal((64, 64), np.float32)
        for i in (0, 2, 10)
        for part in ("self_attn.q_proj", "mlp.shared_experts_with_a_long_name.gate_up_proj")
    }
    tensors |= {"model.embed_tokens.weight": np.ones((64, 64), "f"), f"{LAYERS}.2.norm.bias": np.ones(9, "f")}
    checkpoint.save(tensors, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture
def packed(src, tmp_path):
    checkpoint.compress(src, tmp_path / "small.safetensors", "50%")
    return tmp_path / "small.safetensors"


def test_nothing_is_wider_than_the_terminal(run, src, packed, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert run("convert", packed, tmp_path / "converted", "--to", "sparse-bitmask")[0] == 0
    for arguments in (
        ["compress", src, "--pattern", "75%/4x1", "--plan"],
        ["compress", src, tmp_path / "x", "--pattern", "2:4"],
        ["decompress", packed, tmp_path / "dense"],
        ["convert", packed, tmp_path / "again", "--to", "dense"],
        ["inspect", src],
        ["inspect", src, packed],
        ["verify", packed, "--against", src],
        ["bench", "--shape", "64x300", "--seconds", 0],
        ["demo"],
        ["-h"],
        *([command, "-h"] for command in EXAMPLES),
    ):
        code, out, err = run(*arguments)
        assert code == 0
        assert max(len(line) for line in (out + err).replace(str(tmp_path), "").splitlines()) <= 80, arguments


def test_narrow_tables_say_what_they_leave_out(run, src, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    _, out, _ = run("compress", src, "--pattern", "50%", "--plan")
    assert "not shown: before, dtype, shape" in out
    assert "[1] an embedding" in out
    assert "[2] fewer than two dimensions" in out
    for layer in ("0", "2", "10"):
        assert f"…{layer}" in out or f".{layer}." in out
    monkeypatch.delenv("COLUMNS")
    _, out, _ = run("compress", src, "--pattern", "50%", "--plan")
    assert f"{LAYERS}.10.mlp.shared_experts_with_a_long_name.gate_up_proj.weight" in out
    assert "not shown" not in out


def test_a_note_that_all_rows_have_is_said_once(run, src):
    out = run("inspect", src)[1]
    assert out.count("stored dense") == 1
    assert "\nall: stored dense\n" in out
    assert run("inspect", src, "--headers")[1].count("stored dense") == 1


def test_rows_are_in_natural_order(run, packed):
    _, out, _ = run("inspect", packed)
    layers = [line.split(".")[4] for line in out.splitlines() if line.startswith(LAYERS)]
    assert layers == ["0", "0", "2", "2", "2", "10", "10"]


def test_a_plan_says_what_would_be_lost(run, src, tmp_path):
    for options in (["--pattern", "50%"], ["--pattern", "50%", "--global"]):
        planned = json.loads(run("compress", src, *options, "--plan", "--json")[1])
        done = json.loads(run("compress", src, tmp_path / "x", *options, "--overwrite", "--json")[1])
        energies = [row["kept_energy"] for row in planned["tensors"]]
        assert energies == [row["kept_energy"] for row in done["tensors"]]
        assert any(energies)
    assert "kept energy 9" in run("compress", src, "--pattern", "50%", "--plan")[1]


def test_verify_gives_its_verdict(run, src, packed, tmp_path):
    assert run("verify", packed)[1].splitlines()[-1] == "ok: every part is right"
    assert "what its recipe makes of the source" in run("verify", packed, "--against", src)[1].splitlines()[-1]
    assert json.loads(run("verify", packed, "--json")[1])["ok"] is True
    changed = {name: -w if w.ndim == 2 else w for name, w in checkpoint.open(src).items()}
    checkpoint.save(changed, tmp_path / "changed.safetensors")
    code, out, err = run("verify", packed, "--against", tmp_path / "changed.safetensors", "--json")
    verdict = json.loads(out)
    assert (code, verdict["ok"], len(verdict["problems"])) == (1, False, 7)
    assert "and 5 more" in err
    with pytest.raises(checkpoint.VerifyError) as caught:
        checkpoint.verify(packed, tmp_path / "changed.safetensors")
    assert list(caught.value.problems) == verdict["problems"]


def test_verify_gives_its_verdict_on_damaged_files(run, packed, tmp_path):
    (tmp_path / "short.safetensors").write_bytes(packed.read_bytes()[:-40])
    (tmp_path / "broken.safetensors").write_bytes(b"\x08" + bytes(7) + b"no json.")
    for name in ("short", "broken"):
        code, out, err = run("verify", tmp_path / f"{name}.safetensors", "--json")
        verdict = json.loads(out)
        assert (code, verdict["ok"], err) == (1, False, f"fastsparse: {verdict['problems'][0]}\n")


def test_names_do_not_control_the_terminal(run, tmp_path, monkeypatch):
    monkeypatch.setattr(_progress, "_DELAY", 0)
    name = "a\x1b[2J\x9b\n\u202eb.weight"
    checkpoint.save({name: np.ones((8, 8), "f")}, tmp_path / "x.safetensors")
    for options in ([], ["--headers"]):
        _, out, err = run("inspect", tmp_path / "x.safetensors", *options)
        assert "a\ufffd[2J\ufffd\ufffd\ufffdb.weight" in out
        assert not {"\x1b", "\x9b", "\u202e"} & set(out + err)
    assert "\x1b" not in "".join(table([Column("a")], [["b"]], ["why \x1b"], 3))


def test_a_wrong_source_is_one_short_line(run, packed, tmp_path):
    checkpoint.save({"other": np.ones((4, 4), "f")}, tmp_path / "other.safetensors")
    for against, why in ((packed, "holds packed tensors"), (tmp_path / "other.safetensors", "another model")):
        code, out, err = run("verify", packed, "--against", against)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert why in err
        assert len(err.replace(str(tmp_path), "")) < 130


def test_several_files_are_inspected(run, src, packed):
    _, out, _ = run("inspect", src, packed)
    assert [line for line in out.splitlines() if line.endswith(".safetensors")] == [str(src), str(packed)]
    reports = json.loads(run("inspect", src, packed, "--json")[1])
    assert [report["totals"]["packed"] for report in reports] == [0, 6]


def test_one_bad_file_does_not_take_the_others_reports(run, src, tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"bad")
    code, out, err = run("inspect", src, tmp_path / "bad.safetensors")
    assert (code, out.splitlines()[0]) == (1, str(src))
    assert f"{LAYERS}.10" in out
    assert "bad.safetensors" in err
    code, out, err = run("inspect", src, tmp_path / "bad.safetensors", "--json")
    assert (code, out, err.count("\n")) == (1, "", 1)  # no progress: no tensor was read


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("0.5", "50%"),
        ("50", "50%"),
        ("0.5/row", "50%/row"),
        ("4:2", "2:4"),
        ("4:2@axis=0", "2:4@axis=0"),
        ("4:4", "100%"),
    ],
)
def test_patterns_that_are_meant_otherwise(run, src, pattern, meant):
    code, _, err = run("compress", src, "--plan", "--pattern", pattern)
    assert code == 2
    assert f"did you mean '{meant}'" in err or f"write {meant}" in err


def test_recipes_take_no_slips_either(run, src, tmp_path):
    (tmp_path / "recipe.toml").write_text('default = "4:4"')
    code, _, err = run("compress", src, "--plan", "--recipe", tmp_path / "recipe.toml")
    assert (code, err.count("\n")) == (1, 1)
    assert "write 100% to prune everything" in err
    assert checkpoint.Recipe(default=fs.NM(zeros=4, of=4)).default == fs.pattern("4:4")


def test_a_share_is_a_number_or_percent(run, src):
    options = ["compress", src, "--plan", "--json", "--pattern", "50%", "--global", "--min-sparsity"]
    as_percent, as_number = (json.loads(run(*options, share)[1])["tensors"] for share in ("49%", "0.49"))
    assert as_percent == as_number
    code, _, err = run(*options, "49")
    assert code == 2
    assert "did you mean 49%?" in err


@pytest.mark.parametrize(
    ("name", "download"),
    [
        ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B --local-dir Llama-3.2-1B"),
        ("hf://org/name", "org/name --local-dir name"),
        ("hf://org/name@main/model.bin", None),
        ("https://huggingface.co/org/name/tree/main", "org/name --local-dir name"),
        ("huggingface.co/org/name", "org/name --local-dir name"),
        ("some/file.safetensors", None),
        ("../org/name", None),
        ("/org/name", None),
        ("a/b/c", None),
    ],
)
def test_models_of_a_hub_are_downloaded_first(run, tmp_path, monkeypatch, name, download):
    monkeypatch.chdir(tmp_path)
    for arguments in (["inspect", name], ["verify", name], ["compress", name, "x", "--pattern", "50%"]):
        code, out, err = run(*arguments)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert (f"hf download {download}\n" in err) if download else ("hf download" not in err)
    with pytest.raises(OSError, match="hf download" if download else None):
        checkpoint.open(name)


def test_a_folder_of_that_name_is_no_model_of_a_hub(run, src, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.makedirs("org/name")
    os.link(src, "org/name/model.safetensors")
    assert run("inspect", "org/name")[0] == 0


@pytest.mark.parametrize("command", EXAMPLES)
def test_examples_of_the_help_are_understood(run, command):
    _, out, _ = run(command, "-h")
    for example in "\n".join(EXAMPLES[command]).replace("\\\n", "").splitlines():
        name, *arguments = shlex.split(example)[1:]
        assert name == command
        typer.main.get_command(app).commands[name].make_context(name, arguments).close()
        assert " ".join(example.split()[:4]) in out


def test_every_command_has_examples():
    assert set(EXAMPLES) == set(typer.main.get_command(app).commands)


def test_the_help_says_what_exit_codes_mean(run):
    code, out, _ = run("-h")
    assert code == 0
    assert "Exit codes: 0 done, 1 failed" in out
    assert "--show-completion" in out


def test_the_help_cuts_nothing_short(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert "..." not in run("-h")[1].replace("COMMAND [ARGS]...", "")


def test_a_shell_completes_commands():
    environment = {"_FASTSPARSE_COMPLETE": "complete_bash", "COMP_WORDS": "fastsparse ver", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "fastsparse"], env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.stdout.split() == ["verify"]


def test_the_demo_needs_no_more_than_the_package(run, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, out, err = run("demo")
    assert (code, err) == (0, "")
    assert "mask 01000001 in reading order, stored as the byte 0x82; values 7.0, 56.3" in out
    rows = {line.split("  ")[0]: line for line in out.splitlines()}
    assert "50.3 MB → 26.8 MB" in rows["50%"]
    assert out.splitlines()[-1] == "  fastsparse -h"
    assert list(tmp_path.iterdir()) == []
