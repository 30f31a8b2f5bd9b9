"""Where checkpoints are written: names that are refused before any work, permissions, and whose files are touched."""

import json
import os
import stat
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import safetensors.numpy

import fastsparse as fs
from fastsparse import checkpoint
from fastsparse.cli import main

INDEX = "model.safetensors.index.json"
posix = pytest.mark.skipif(os.name != "posix", reason="permissions and forks of POSIX")


def weights(seed=0):
    return np.random.default_rng(seed).standard_normal((64, 64)).astype(np.float32)


@pytest.fixture
def src(tmp_path):
    safetensors.numpy.save_file({"a.weight": weights(), "bias": weights()[0]}, tmp_path / "src")
    return tmp_path / "src"


@pytest.fixture
def folder(tmp_path):
    """Two shards, a config, a side file and one in a folder."""
    path = tmp_path / "folder"
    (path / "deep" / "er").mkdir(parents=True)
    shards = {"1.safetensors": {"a.weight": weights()}, "2.safetensors": {"b.weight": weights(1)}}
    for shard, tensors in shards.items():
        safetensors.numpy.save_file(tensors, path / shard)
    where = {name: shard for shard, tensors in shards.items() for name in tensors}
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (path / "config.json").write_text("{}")
    (path / "tokenizer.json").write_text("{}")
    (path / "deep" / "er" / "notes").write_text("deep")
    return path


def nothing_is_read(*_):
    raise AssertionError("work began")


REFUSED = {
    "new/": "names a folder",
    "new/.": "names a folder",
    "there": "names a folder",
    "there/..": "expected the name",
    "nowhere/x": "no folder to write it in",
    "src/x": "Not a directory",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_is_refused_before_any_work(tmp_path, src, name):
    (tmp_path / "there").mkdir()
    before = sorted(os.listdir(tmp_path))
    target = f"{tmp_path}/{name}"
    with pytest.raises((fs.FastSparseError, OSError), match=REFUSED[name]) as refused:
        checkpoint.compress(src, target, "50%", overwrite=True, progress=nothing_is_read)
    assert target in str(refused.value)
    packed = {"a": fs.pack(np.eye(4, dtype=np.float32))}
    with pytest.raises((fs.FastSparseError, OSError), match=REFUSED[name]):
        checkpoint.save(packed, target, overwrite=True)
    assert main(["compress", str(src), target, "--pattern", "50%", "--overwrite"]) == 1
    assert sorted(os.listdir(tmp_path)) == before


def test_a_folder_may_have_a_slash_after_its_name_but_needs_one_to_lie_in(tmp_path, folder):
    for name in ("one/", "two/."):
        checkpoint.compress(folder, f"{tmp_path}/{name}", "50%")
        assert set(checkpoint.open(tmp_path / name)) == {"a.weight", "b.weight"}
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(FileNotFoundError, match="no folder to write it in"):
        checkpoint.compress(folder, tmp_path / "nowhere" / "x", "50%", progress=nothing_is_read)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_shard_with_the_name_of_a_temporary_file_is_refused(tmp_path, folder):
    (folder / "2.safetensors").rename(folder / ".1.safetensors.partial")
    where = {"a.weight": "1.safetensors", "b.weight": ".1.safetensors.partial"}
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))
    with pytest.raises(fs.FormatError, match=r"'\.1\.safetensors\.partial': names that begin with a dot"):
        checkpoint.compress(folder, tmp_path / "dst", "50%")


def test_a_side_file_with_the_name_of_a_temporary_file_is_refused(tmp_path, folder):
    (folder / ".1.safetensors.partial").write_text("mine")
    with pytest.raises(fs.FormatError, match="the name is needed"):
        checkpoint.compress(folder, tmp_path / "dst", "50%")
    assert sorted(os.listdir(tmp_path)) == ["folder"]


def test_a_shard_that_somebody_removes_meanwhile_is_missed(tmp_path, folder):
    def remove(done, total, name):
        (tmp_path / ".dst.partial" / "1.safetensors").unlink(missing_ok=True)

    with pytest.raises(fs.FastSparseError, match=r"dst: shard '1\.safetensors' was removed"):
        checkpoint.compress(folder, tmp_path / "dst", "50%", progress=remove)
    assert sorted(os.listdir(tmp_path)) == ["folder"]


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


@posix
@pytest.mark.parametrize("wanted", [0o600, 0o640, 0o444])
def test_a_file_has_the_permissions_of_its_source(tmp_path, src, wanted):
    src.chmod(wanted)
    seen = []
    partial = tmp_path / ".packed.partial"
    look = lambda *_: partial.exists() and seen.append(mode(partial))  # noqa: E731
    checkpoint.compress(src, tmp_path / "packed", "50%", progress=look)
    checkpoint.decompress(tmp_path / "packed", tmp_path / "dense")
    checkpoint.save(checkpoint.open(src), tmp_path / "saved")
    assert set(seen) == {0o600}
    assert {mode(tmp_path / name) for name in ("packed", "dense", "saved")} == {wanted}


@posix
def test_what_is_saved_has_the_permissions_of_what_it_replaces(tmp_path, src):
    src.chmod(0o600)
    checkpoint.save({"x": np.arange(3)}, src, overwrite=True)
    assert mode(src) == 0o600


@posix
def test_a_folder_has_the_permissions_of_its_source_everywhere(tmp_path, folder):
    modes = {
        ".": 0o750,
        "1.safetensors": 0o600,
        "2.safetensors": 0o640,
        INDEX: 0o600,
        "config.json": 0o640,
        "tokenizer.json": 0o600,
        "deep": 0o700,
        "deep/er": 0o711,
        "deep/er/notes": 0o604,
    }
    for name, wanted in reversed(modes.items()):
        (folder / name).chmod(wanted)
    seen = []
    partial = tmp_path / ".dst.partial"
    look = lambda *_: partial.exists() and seen.append(mode(partial))  # noqa: E731
    checkpoint.compress(folder, tmp_path / "dst", "50%", progress=look)
    assert {name: mode(tmp_path / "dst" / name) for name in modes} == modes
    assert set(seen) == {0o700}


@posix
def test_links_are_followed_in_the_folder_and_into_blobs_of_a_cache(tmp_path, folder):
    blobs = tmp_path / "models--org--name" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "0a1b").write_text("vocabulary")
    (folder / "vocab.txt").symlink_to(blobs / "0a1b")
    (folder / "again.json").symlink_to("tokenizer.json")
    checkpoint.compress(folder, tmp_path / "dst", "50%")
    assert (tmp_path / "dst" / "vocab.txt").read_text() == "vocabulary"
    assert not (tmp_path / "dst" / "vocab.txt").is_symlink()
    assert (tmp_path / "dst" / "again.json").read_text() == "{}"


@posix
@pytest.mark.parametrize("name", ["extra.txt", "deep/extra.txt", "config.json"])
def test_links_out_of_the_folder_are_not_followed(tmp_path, folder, name):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "secret").write_text('{"token": 1}')
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "blobs" / "secret")
    with pytest.raises(fs.FormatError, match=r"extra\.txt: a link to .*secret|config\.json: a link to .*secret"):
        checkpoint.compress(folder, tmp_path / "dst", "50%")
    assert not (tmp_path / "dst").exists()


@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_what_another_user_left_is_not_taken(tmp_path, src, folder):
    for source, left in ((src, tmp_path / ".x.partial"), (folder, tmp_path / ".y.partial")):
        left.write_text("theirs") if source is src else left.mkdir()
        os.chown(left, 12345, -1)
        with pytest.raises(fs.FastSparseError, match="belongs to another user"):
            checkpoint.compress(source, tmp_path / left.name[1:2], "50%")
        assert left.exists()


def kill_after(tmp_path, folder, count):
    """A run that is killed when it has told of `count` tensors twice, planned and written."""
    code = f"""
        import os
        from fastsparse import checkpoint
        seen = []
        def stop(done, total, name):
            seen.append(name)
            if len(seen) == {count}:
                os._exit(9)
        checkpoint.compress({str(folder)!r}, {str(tmp_path / "dst")!r}, "50%", progress=stop)
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False).returncode == 9
    return tmp_path / ".dst.partial"


@posix
@pytest.mark.parametrize("open_to_others", [None, "folder", "link"])
def test_only_what_nobody_else_could_change_is_resumed(tmp_path, folder, open_to_others):
    left = kill_after(tmp_path, folder, 4)
    assert (left / "1.safetensors").exists()
    if open_to_others == "folder":
        left.chmod(0o777)
    elif open_to_others == "link":
        os.link(left / "1.safetensors", tmp_path / "other name")
    report = checkpoint.compress(folder, tmp_path / "dst", "50%")
    assert report.resumed == (() if open_to_others else ("1.safetensors",))
    checkpoint.verify(tmp_path / "dst", folder)


@posix
@pytest.mark.parametrize("kind", ["src", "folder"])
def test_a_forked_child_that_ends_leaves_the_parents_target_alone(tmp_path, src, folder, kind):
    source = {"src": src, "folder": folder}[kind]
    code = f"""
        import os, sys
        from fastsparse import checkpoint
        def fork(done, total, name):
            child = os.fork()
            if child == 0:
                sys.exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        checkpoint.compress({str(source)!r}, {str(tmp_path / "dst")!r}, "50%", progress=fork)
    """
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], timeout=60, capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (0, "")
    checkpoint.verify(tmp_path / "dst", source)


class TestSave:
    """What `open` would refuse, or read as something else, is not written."""

    @pytest.mark.parametrize(
        ("tensors", "why"),
        [
            ({"x": [1.0]}, "tensor 'x': expected a BitmaskArray, a QuantizedArray or a NumPy array, got list"),
            ({"x": None}, "tensor 'x': .* got NoneType"),
            ({3: np.arange(3)}, "names that are strings, got 3"),
            ({"\ud800": np.arange(3)}, "no text that can be stored"),
            ({"x": np.array(["a"])}, "tensor 'x': safetensors has no dtype"),
        ],
    )
    def test_tensors(self, tmp_path, tensors, why):
        with pytest.raises(fs.FastSparseError, match=why):
            checkpoint.save(tensors, tmp_path / "x")
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("metadata", [{"step": 3}, {3: "x"}, {"fastsparse": "{}"}, "text", {"a": "\ud800"}])
    def test_metadata(self, tmp_path, metadata):
        with pytest.raises(fs.FastSparseError, match="metadata"):
            checkpoint.save({"x": np.arange(3)}, tmp_path / "x", metadata=metadata)
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("recipe", ["50%", checkpoint.Recipe(default="50%", scope="global")])
def test_nan_names_the_file_once_and_the_tensor(tmp_path, recipe):
    w = weights()
    w[3, 4] = np.nan
    safetensors.numpy.save_file({"a.weight": weights(), "b.weight": w}, tmp_path / "src")
    with pytest.raises(fs.FastSparseError) as refused:
        checkpoint.plan(tmp_path / "src", recipe)
    assert str(refused.value).count(str(tmp_path / "src")) == 1
    assert "'b.weight'" in str(refused.value)
    assert "(3, 4)" in str(refused.value)
