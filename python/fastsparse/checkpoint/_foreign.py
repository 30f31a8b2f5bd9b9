"""Files of other kinds that people have models in, and what downloads leave in their place: known by how they begin."""

import os
import re

from fastsparse._errors import FormatError

__all__ = ["hint", "identify", "is_weights", "refuse_foreign", "refuse_missing"]

_ONNX = "an ONNX model; save its initializers as safetensors first, docs/interop.md has the lines"
_GGUF = "a GGUF file, whose weights are quantised in blocks; start from the safetensors that it was made from"
_PICKLE = (
    "a pickle, as torch.save writes; load it with torch.load and save the state dict with safetensors.torch.save_file"
)
_ZIP = "a zip archive, as torch.save and numpy.savez write; load it there and save the tensors as safetensors"
_HDF5 = "an HDF5 file, as Keras writes; load it there and save the tensors as safetensors"
_NPY = "a NumPy array; checkpoint.save stores arrays under names"

_BEGINNINGS = {
    b"GGUF": _GGUF,
    b"PK\x03\x04": _ZIP,
    b"\x80\x02": _PICKLE,
    b"\x80\x03": _PICKLE,
    b"\x80\x04": _PICKLE,
    b"\x80\x05": _PICKLE,
    b"\x89HDF\r\n\x1a\n": _HDF5,
    b"\x93NUMPY": _NPY,
}
_AGAIN = "fetch it again"
_POINTERS = {
    b"version https://git-lfs.github.com/": "a Git LFS pointer, a few lines in place of the file; run `git lfs pull`",
    b"# xet version": "a Xet pointer, a few lines in place of the file; run `git xet install` and `git lfs pull`",
    b"version https://hawser.github.com/": "a Git LFS pointer, a few lines in place of the file; run `git lfs pull`",
}
_POINTER_HINT = ", or download the folder with `hf download`"
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "RAR",
}
_SHOWN = 60
"""Characters of a text that are shown: an error's first line."""

_HUB = re.compile(
    r"(?P<address>hf:/+(?:models/)?|(?:https?:/+)?(?:www\.)?(?:huggingface\.co|hf\.co)/)?"
    r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?P<rest>[@/].*)?",
    re.ASCII,
)

_SUFFIXES = {
    ".onnx": _ONNX,
    ".gguf": _GGUF,
    ".bin": _ZIP,
    ".pt": _ZIP,
    ".pth": _ZIP,
    ".ckpt": _ZIP,
    ".npz": _ZIP,
    ".h5": _HDF5,
    ".msgpack": "Flax weights; load them with transformers and save the model as safetensors",
    ".tflite": "a TensorFlow Lite model; start from the model that it was made from",
}


def is_weights(name: str) -> bool:
    """Whether a file of this name holds weights, in whatever format."""
    suffix = os.path.splitext(name)[1]
    return suffix == ".safetensors" or (suffix in _SUFFIXES and name != "training_args.bin")


def identify(path: str) -> str | None:
    """What a file is that should be a safetensors or JSON file of a model, and what to do; None where it may be one.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    with open(path, "rb") as file:
        start = file.read(512)
    if not start:
        return f"an empty file; {_AGAIN}"
    for beginning, what in _POINTERS.items():
        if start.startswith(beginning):
            return what + _POINTER_HINT
    if not any(start):
        return f"nothing but zeros at its beginning, as an unfinished download has them; {_AGAIN}"
    return _identify_text(start)


def _identify_text(start: bytes) -> str | None:
    """What a text is that a server sent in place of a file."""
    try:
        text = start.decode("utf-8", "ignore" if len(start) == 512 else "strict").lstrip("\ufeff \t\r\n")
    except UnicodeDecodeError:
        return None
    if not text or any(ord(sign) < 32 and sign not in "\t\r\n" for sign in text):
        return None
    line = text.splitlines()[0]
    shown = repr(line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…")
    login = "log in (`hf auth login`), accept the terms of the model where it has some, and fetch it again"
    if text[:200].lower().startswith(("<!doctype html", "<html", "<head")) or "<html" in text.lower():
        return f"a web page, such as the one to sign in at; {login}"
    if text.startswith(("<?xml", "<Error")):
        return f"XML, which storage servers send with errors: {shown}; {_AGAIN}"
    if text.startswith(("{", "[")):
        return f"JSON: {shown}. Where that is a server's error, {login}"
    return f"a text: {shown}. Where that is a server's error, {login}"


def refuse_foreign(path: str) -> None:
    """Raises where a file that is no valid safetensors file is one of another kind.

    Raises
    ------
    FormatError
        With what it is and what to do.
    OSError
        If it cannot be read.
    """
    with open(path, "rb") as file:
        start = file.read(9)
    # As the header of safetensors does, whatever its length looks like; only no header is as long
    # as text would be.
    if start[8:] == b"{" and (b"\0" in start[:8] or not start[:8].isascii()):
        return
    for beginning, what in _BEGINNINGS.items():
        if start.startswith(beginning):
            raise FormatError(f"{path}: this is {what}")
    for beginning, what in _COMPRESSED.items():
        if start.startswith(beginning):
            raise FormatError(f"{path}: this is compressed with {what}; unpack it first")
    if os.path.splitext(path)[1] == ".onnx":  # protobuf has no beginning of its own
        raise FormatError(f"{path}: this is {_ONNX}")
    found = identify(path)
    if found is not None:
        raise FormatError(f"{path}: this is {found}")


def hint(folder: str) -> str:
    """What a folder without safetensors holds instead, for an error's message; empty where that is nothing known."""
    for name in sorted(os.listdir(folder)):
        what = _SUFFIXES.get(os.path.splitext(name)[1])
        if what is not None:
            return f"; {name!r} is {what}"
    return ""


def refuse_missing(path: str | os.PathLike[str]) -> None:
    """Refuses a path where nothing is and that is the name or the address of a model on a hub.

    Raises
    ------
    FileNotFoundError
        With the command that downloads it.
    """
    text = os.fspath(path)
    found = None if os.path.lexists(text) else _HUB.fullmatch(text.replace(os.sep, "/"))
    if found is None or not (found["address"] or not found["rest"]) or is_weights(text):
        return
    name = found["name"]
    folder = name.partition("/")[2]
    download = f"hf download {name} --local-dir {folder}"
    raise FileNotFoundError(f"{text}: no such file or folder; a model of the hub is downloaded first: {download}")
