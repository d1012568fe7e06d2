"""Broken and hostile safetensors files give one line of error, and MLX does not read them."""

import json
import os
import struct
from time import process_time

import mlx.core as mx
import numpy as np
import pytest
from ours import python
from safetensors.numpy import save

from stable_diffusion.config.known_models import PACKAGE
from stable_diffusion.model_io.loaders import load_autoencoder
from stable_diffusion.model_io.safetensors_file import (
    MAX_COUNTED,
    MAX_HEADER,
    Header,
    find_not_finite,
    read_safetensors,
)


def file_of(header: object, data: bytes = b"\0" * 8, length: int | None = None) -> bytes:
    """Make a safetensors file of a header, or of its text, and the data after it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one(**changes: object) -> dict:
    """Make a header with one tensor of two numbers, changed."""
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


GOOD = one()
TWICE = json.dumps(GOOD)[:-1].encode() + b"," + json.dumps(GOOD)[1:].encode()
CASES = {
    "empty": (b"", "does not begin with a header's length"),
    "two bytes": (b"\1\2", "begin with a header's length"),
    "longest length": (file_of(GOOD, length=2**64 - 1), "begin with a header's length"),
    "length 2^63": (file_of(GOOD, length=2**63), "begin with a header's length"),
    "length too large": (file_of(GOOD, length=MAX_HEADER + 1), "begin with a header's length"),
    "length beyond the end": (file_of(GOOD, length=MAX_HEADER), "is cut short"),
    "zipped pickle": (b"PK\3\4\x14\0\x08\x08" + b"\0" * 100, "it is a pickle"),
    "pickle": (b"\x80\x04\x95\x20\0\0\0\0" + b"\0" * 100, "it is a pickle"),
    "no JSON": (file_of(b"{aaaa}"), "Expecting property name"),
    "no UTF-8": (file_of(b'{"\xff": 1}'), "codec can't decode"),
    "a list": (file_of([]), "its header is not a JSON object"),
    "null": (file_of(None), "its header is not a JSON object"),
    "name twice": (file_of(TWICE), "it gives 'a' twice"),
    "key twice": (file_of(b'{"a":{"dtype":"F32","dtype":"F16"}}'), "it gives 'dtype' twice"),
    "nested": (file_of(b"[" * 100_000), "nested too deeply"),
    "NaN": (file_of(b'{"a": NaN}'), "NaN is not a finite number"),
    "long number": (file_of(b'{"a": 1' + b"0" * 5000 + b"}"), "is too large a number"),
    "no entry": (file_of({"a": 3}), "it does not say dtype, shape and data_offsets of a"),
    "no dtype": (file_of({"a": {"shape": [2], "data_offsets": [0, 8]}}), "does not say dtype"),
    "unknown dtype": (file_of(one(dtype="Q7")), "is of the type 'Q7'"),
    "dtype 7": (file_of(one(dtype=7)), "is of the type '7'"),
    "negative": (file_of(one(shape=[-2])), r"a has the shape \[-2\]"),
    "shape 2^62": (file_of(one(shape=[2**62])), "a has the shape"),
    "overflow": (file_of(one(shape=[2**31 - 1] * 3)), "takes 39614.* bytes, not 8"),
    "fraction": (file_of(one(shape=[2.0])), "a has the shape"),
    "true": (file_of(one(shape=[True, 2])), "a has the shape"),
    "text": (file_of(one(shape="2")), "a has the shape 2"),
    "too many": (file_of(one(shape=[3])), "takes 12 bytes, not 8"),
    "too few": (file_of(one(shape=[1])), "takes 4 bytes, not 8"),
    "backwards": (file_of(one(data_offsets=[8, 0])), "takes 8 bytes, not -8"),
    "one offset": (file_of(one(data_offsets=[8])), "a has the data_offsets"),
    "negative offset": (file_of(one(data_offsets=[-8, 0])), "a has the data_offsets"),
    "beyond": (file_of(one(data_offsets=[2**40, 2**40 + 8])), "begins at byte 1099511627776"),
    "overlapping": (file_of({**GOOD, "b": GOOD["a"]}), "begins at byte 0, not at 8"),
    "a gap": (file_of(one(data_offsets=[8, 16]), b"\0" * 16), "begins at byte 8, not at 0"),
    "cut": (file_of(GOOD, b"\0" * 4), "is cut short: it has 73 of 77 bytes"),
    "garbage": (file_of(GOOD, b"\0" * 8 + b"garbage"), "7 bytes at its end belong to no tensor"),
    "NUL in a name": (file_of({"a\0b": GOOD["a"]}), "is not the name of a tensor"),
    "line in a name": (file_of({"a\nb": GOOD["a"]}), "is not the name of a tensor"),
    "surrogate": (file_of(b'{"\\ud800": {}}'), "is not the name of a tensor"),
    "long name": (file_of({"a" * 501: GOOD["a"]}), "is not the name of a tensor"),
    "metadata": (file_of({"__metadata__": {"a": 1}, **GOOD}), "its metadata are not texts"),
    "metadata text": (file_of({"__metadata__": "a", **GOOD}), "its metadata are not texts"),
    "tensors": (file_of({str(i): {} for i in range(50_001)}), "50001 tensors, more than"),
    "GGUF": (b"GGUF\3\0\0\0" + b"\0" * 100, "it is a GGUF file"),
    "4 bits": (file_of({"w.absmax": GOOD["a"]}), "is quantized to 4 bits by bitsandbytes"),
}


@pytest.mark.parametrize("name", CASES)
def test_hostile_files(tmp_path, name, monkeypatch):
    content, message = CASES[name]
    file = tmp_path / "a.safetensors"
    file.write_bytes(content)
    monkeypatch.setattr(mx, "load", None)  # it must not be called
    with pytest.raises(ValueError, match=message) as caught:
        read_safetensors(file)
    assert str(file) in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < len(str(file)) + 300


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "I64", "U8", "BOOL", "I8", "U32"])
def test_files_in_order(tmp_path, kind):
    """Any type of numbers, empty tensors, scalars, metadata and any order of names are read."""
    size = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U32": 4}.get(kind, 1)
    header = {
        "__metadata__": {"format": "pt"},
        "b": {"dtype": kind, "shape": [2, 3], "data_offsets": [0, 6 * size]},
        "empty": {"dtype": kind, "shape": [0, 5], "data_offsets": [6 * size, 6 * size]},
        "a": {"dtype": kind, "shape": [], "data_offsets": [6 * size, 7 * size]},
    }
    file = tmp_path / "a.safetensors"
    file.write_bytes(file_of(header, bytes(7 * size)))
    header, tensors = read_safetensors(file)
    assert header.metadata == {"format": "pt"}
    assert {key: value.shape for key, value in tensors.items()} == header.shapes
    mx.eval(tensors)


def test_pipes_and_folders(tmp_path):
    """They are refused before they are opened: opening a pipe would wait forever."""
    os.mkfifo(tmp_path / "pipe.safetensors")
    for file in (tmp_path / "pipe.safetensors", tmp_path):
        with pytest.raises(ValueError, match="is not a file"):
            Header(str(file), file)


def test_file_that_is_cut_after_it_was_opened(tmp_path):
    """MLX reads late: the process must not crash, and says what happened."""
    file = tmp_path / "a.safetensors"
    file.write_bytes(save({"a": np.ones((1000, 1000), np.float32)}))
    code = (
        "import os, sys; from pathlib import Path; import stable_diffusion; import mlx.core as mx\n"
        "from stable_diffusion.model_io.safetensors_file import read_safetensors\n"
        "from stable_diffusion.cli.main import report_errors\n"
        "_, tensors = read_safetensors(Path(sys.argv[1]))\n"
        "os.truncate(sys.argv[1], 5000)\n"
        "sys.exit(report_errors(lambda: mx.eval(tensors)))"
    )
    done = python("-c", code, str(file))
    assert done.returncode == 1
    assert done.stderr == "error: a weight file changed while it was read: get it again\n"


def test_tensors_that_are_not_finite(tmp_path):
    file = tmp_path / "a.safetensors"
    numbers = {"fine": 1.0, "large": 1e5, "nan": np.nan, "inf": -np.inf}
    file.write_bytes(save({key: np.full(3, x, np.float32) for key, x in numbers.items()}))
    assert find_not_finite(file, mx.float32) == ["inf", "nan"]
    assert find_not_finite(file, mx.float16) == ["inf", "large", "nan"]


def test_very_many_tensors(tmp_path):
    """They are refused in a short line."""
    n = 10_000
    header = {f"t{i}": {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]} for i in range(n)}
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    file.parent.mkdir()
    file.write_bytes(file_of(header, bytes(n)))
    config = PACKAGE / "tiny/vae/config.json"
    (tmp_path / "vae/config.json").write_bytes(config.read_bytes())
    with pytest.raises(ValueError, match=f"not expected: t0, .* and {n - 10:d} more") as caught:
        load_autoencoder(tmp_path)
    assert len(str(caught.value)) < 2000


def test_counting_keys_is_limited(tmp_path):
    """Counting is fast for 12,000 keys, and stops at what a config may ask for."""
    n = 4000
    keys = [f"{start}.{i}.x" for start in ("a", "a.b", "ab") for i in range(n)]
    header = {key: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for key in keys}
    file = tmp_path / "a.safetensors"
    file.write_bytes(file_of(header, b""))
    header = Header("a", file)
    start = process_time()
    assert all(header.has(f"a.b.{i}.") for i in range(n))
    assert process_time() - start < 1  # looking at all keys each time takes several seconds
    assert header.has("ab") and header.has("a.b.399") and header.has("")
    assert not any(header.has(no) for no in ("a.c", f"a.b.{n}", "abc", "zz"))
    assert header.count("a.{}.x") == MAX_COUNTED and header.count("c.{}") == 0
