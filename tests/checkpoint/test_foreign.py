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
