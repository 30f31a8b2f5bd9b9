"""Safetensors files with whatever keys and metadata, written by what the format says."""

import json

import numpy as np

from fastsparse.checkpoint._format import DTYPES

NAMES = {dtype: name for name, dtype in DTYPES.items()}


def file(header, data=b""):
    """The bytes of a file with this header, an object or its text."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def write(path, arrays, metadata=None):
    """Writes arrays under their names."""
    header, data = {} if metadata is None else {"__metadata__": metadata}, b""
    for name, array in arrays.items():
        content = np.asarray(array).tobytes()
        header[name] = {
            "dtype": NAMES[array.dtype],
            "shape": array.shape,
            "data_offsets": [len(data), len(data) + len(content)],
        }
        data += content
    path.write_bytes(file(header, data))
    return path
