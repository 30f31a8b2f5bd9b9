"""Files of other kinds that people have models in: known by how they begin, and refused with what to do instead."""

import os

from fastsparse._errors import FormatError

__all__ = ["hint", "refuse_foreign"]

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
_SUFFIXES = {".onnx": _ONNX, ".gguf": _GGUF, ".bin": _ZIP, ".pt": _ZIP, ".pth": _ZIP, ".npz": _ZIP, ".h5": _HDF5}


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
    if start[8:] == b"{":  # as the header of safetensors does, whatever its length looks like
        return
    for beginning, what in _BEGINNINGS.items():
        if start.startswith(beginning):
            raise FormatError(f"{path}: this is {what}")
    if os.path.splitext(path)[1] == ".onnx":  # protobuf has no beginning of its own
        raise FormatError(f"{path}: this is {_ONNX}")


def hint(folder: str) -> str:
    """What a folder without safetensors holds instead, for an error's message; empty where that is nothing known."""
    for name in sorted(os.listdir(folder)):
        what = _SUFFIXES.get(os.path.splitext(name)[1])
        if what is not None:
            return f"; {name!r} is {what}"
    return ""
