"""Headers against the safetensors package: what it reads is read, what it refuses is refused."""

import numpy as np
import pytest
from raw_safetensors import file
from safetensors import safe_open

import fastsparse as fs
from fastsparse import checkpoint

X = '"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'


def tensor(dtype="F32", shape="[2]", offsets="[0,8]", name="x"):
    return f'"{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}'


HEADERS = {
    "plain": f"{{{X}}}",
    "null metadata": f'{{"__metadata__":null,{X}}}',
    "empty metadata": f'{{"__metadata__":{{}},{X}}}',
    "metadata that is no object": f'{{"__metadata__":[],{X}}}',
    "metadata of numbers": f'{{"__metadata__":{{"a":1}},{X}}}',
    "metadata of null": f'{{"__metadata__":{{"a":null}},{X}}}',
    "metadata twice": f'{{"__metadata__":{{}},"__metadata__":{{}},{X}}}',
    "blanks in front": f"  {{{X}}}",
    "lines in front": f"\n\t\r{{{X}}}",
    "blanks after": f"{{{X}}}  \n",
    "a zero byte after": f"{{{X}}}\0",
    "a byte-order mark": f"\ufeff{{{X}}}",
    "a comment": f"{{/**/{X}}}",
    "an array": "[]",
    "null": "null",
    "nothing": "",
    "no tensors": "{}",
    "not UTF-8": b'{"\xff":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    "half of a pair": f"{{{tensor(name=chr(92) + 'ud800')}}}",
    "an empty name": f"{{{tensor(name='')}}}",
    "a tensor as an array": '{"x":["F32",[2],[0,8]]}',
    "a tensor of null": '{"x":null}',
    "a field more": '{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"q":{"a":[1]}}}',
    "a field less": '{"x":{"dtype":"F32","shape":[2]}}',
    "a float as dimension": f"{{{tensor(shape='[2.0]')}}}",
    "a negative dimension": f"{{{tensor(shape='[-2]')}}}",
    "a lower-case dtype": f"{{{tensor('f32')}}}",
    "an unknown dtype": f"{{{tensor('F99')}}}",
    "one offset": f"{{{tensor(offsets='[0]')}}}",
    "three offsets": f"{{{tensor(offsets='[0,8,9]')}}}",
    "a scalar": f"{{{tensor('F64', '[]')}}}",
    "four bits": f"{{{tensor('F4', '[16]')}}}",
    "six bits": f"{{{tensor('F6_E2M3', '[8]', '[0,6]')},{tensor('U8', '[2]', '[6,8]', 'y')}}}",
    "an empty one first": f"{{{tensor(shape='[0]', offsets='[0,0]', name='y')},{X}}}",
    "an empty one last": f"{{{tensor(shape='[0]', offsets='[8,8]', name='y')},{X}}}",
    "an empty one within another": f"{{{tensor(shape='[0]', offsets='[4,4]', name='y')},{X}}}",
    "an overflow beside zero": f"{{{tensor(shape='[9223372036854775808,4,0]', offsets='[0,0]', name='y')},{X}}}",
    "an overlap": f"{{{tensor(name='y')},{X}}}",
    "a hole": f"{{{tensor(shape='[1]', offsets='[4,8]')}}}",
    "bytes after": f"{{{tensor(shape='[1]', offsets='[0,4]')}}}",
    "beyond the end": f"{{{tensor(shape='[3]', offsets='[0,12]')}}}",
    "64 dimensions": f"{{{tensor('F64', '[' + ','.join('1' * 64) + ']')}}}",
}
STRICTER = {
    "a name twice": f"{{{X},{X}}}",
    "a metadata key twice": f'{{"__metadata__":{{"a":"1","a":"2"}},{X}}}',
    "65 dimensions": f"{{{tensor('F64', '[' + ','.join('1' * 65) + ']')}}}",
    "a length that no array has": f"{{{tensor(shape='[0,9223372036854775808]', offsets='[0,0]', name='y')},{X}}}",
}


def theirs(path):
    try:
        with safe_open(path, "np") as opened:
            return set(opened.keys())
    except Exception:  # each has a type of its own
        return None


def ours(path):
    try:
        return set(checkpoint.open(path))
    except fs.FormatError:
        return None


@pytest.mark.parametrize("kind", [*HEADERS, *STRICTER])
def test_what_the_package_reads_is_read(tmp_path, kind):
    header = {**HEADERS, **STRICTER}[kind]
    path = tmp_path / "x.safetensors"
    content = file(header if isinstance(header, bytes) else header.encode(), np.float32([1, 2]).tobytes())
    path.write_bytes(content)
    if kind in STRICTER:
        assert theirs(path) is not None
        assert ours(path) is None
    else:
        assert ours(path) == theirs(path)
