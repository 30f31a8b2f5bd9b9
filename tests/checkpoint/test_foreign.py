"""Files of other kinds are named, with what to do instead."""

import pickle

import numpy as np
import pytest

import fastsparse as fs
from fastsparse import checkpoint
from fastsparse.cli import main


def test_each_is_known(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(3))
    np.savez(tmp_path / "a.npz", a=np.ones(3))
    (tmp_path / "model.onnx").write_bytes(b"\x08\x07\x12\x04")
    (tmp_path / "model.gguf").write_bytes(b"GGUF\x03\0\0\0")
    (tmp_path / "state.pkl").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "keras.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    for name, what in (
        ("a.npy", "NumPy array"),
        ("a.npz", "zip archive"),
        ("model.onnx", "ONNX model; save its initializers as safetensors"),
        ("model.gguf", "GGUF file, whose weights are quantised"),
        ("state.pkl", "pickle"),
        ("keras.h5", "HDF5"),
    ):
        with pytest.raises(fs.FormatError, match=f"{name}: this is an? {what}"):
            checkpoint.compress(tmp_path / name, tmp_path / "x", "50%")
    assert main(["compress", str(tmp_path / "model.onnx"), str(tmp_path / "x"), "--pattern", "50%"]) == 1
    assert not (tmp_path / "x").exists()


def test_a_folder_of_another_kind(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    with pytest.raises(fs.FormatError, match=r"'pytorch_model\.bin' is a zip archive, as torch\.save"):
        checkpoint.open(tmp_path)


def test_a_length_that_looks_like_another_kind(tmp_path):
    """The first eight bytes of a safetensors file are a number; only what follows tells."""
    (tmp_path / "x").write_bytes(b"PK\x03\x04\0\0\0\0{")
    with pytest.raises(fs.FormatError, match="header"):
        checkpoint.open(tmp_path / "x")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "a Git LFS pointer.*git lfs pull"),
        (b"# xet version 0\nfilesize = 5\nhash = '0'\n", "a Xet pointer.*git lfs pull"),
        (b"<!DOCTYPE html>\n<html>Sign in</html>", "a web page.*log in"),
        (b"\n  <HTML><head>", "a web page"),
        ('{"error":"Access to model x is restricted, ü"}'.encode(), "JSON: .*restricted.*log in"),
        (b'{"msg": {"error": 1}}', "JSON"),
        (b"[]", "JSON"),
        (b"Invalid username or password.", "a text: 'Invalid username or password.'.*log in"),
        (b"Entry not found" + b"\n" * 600, "a text: 'Entry not found'"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML"),
        (b"", "an empty file; fetch it again"),
        (bytes(4096), "nothing but zeros"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0", "compressed with gzip"),
        (b"\x28\xb5\x2f\xfd\0\0\0\0\0", "compressed with zstd"),
    ],
)
def test_what_a_download_left(tmp_path, content, what):
    """In place of a file, and of the one file or a shard of a folder."""
    for name in ("x.safetensors", "one/model.safetensors", "some/1"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "some" / "model.safetensors.index.json").write_text('{"weight_map": {"a": "1"}}')
    for source, name in (("x.safetensors", "x.safetensors"), ("one", "model.safetensors"), ("some", "1")):
        with pytest.raises(fs.FormatError, match=f"{name}: this is {what}"):
            checkpoint.open(tmp_path / source)


def test_what_is_damaged_is_not_taken_for_something_else(tmp_path):
    checkpoint.save({"a": np.ones(300, "f")}, tmp_path / "x")
    content = (tmp_path / "x").read_bytes()
    for damaged in (content[:100], content[:-1], content[:8] + b"[" + content[9:]):
        (tmp_path / "x").write_bytes(damaged)
        with pytest.raises(fs.FormatError, match=r"x: (?!this is)"):
            checkpoint.open(tmp_path / "x")
