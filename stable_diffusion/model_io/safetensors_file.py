"""Safetensors files: what is in one, its tensors, and writing one.

The format: https://huggingface.co/docs/safetensors/index#format. A file is checked against it
before MLX reads it: every tensor is inside the file, none overlaps another, no byte is left over.
"""

import io
import json
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from ..utils.strict_json import parse_json, require
from .layouts import Layout
from .number_types import EIGHT_BITS, NOT_READ, read_numbers, refuse_quantized, widen_floats

MAX_HEADER = 20_000_000  # bytes; the format allows 100 MB, which would take GB as Python objects
MAX_TENSORS = 50_000  # in a file; those of the models here have a few thousand
MAX_COUNTED = 1001  # layers of a kind: one more than any config may have
MAX_NAME_LENGTH = 500  # characters of a tensor's name; the models here have 100
MAX_SIDE_LENGTH = 2**31 - 1  # of a tensor along an axis, in MLX
MAX_OFFSET = 2**63  # bytes
BYTES = {  # of a number, by the format's name for its type
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "C64", "F64"), 8),
}
# The beginning of files that are something else.
OTHER_STARTS = {
    b"PK\x03\x04": "it is a pickle",  # PyTorch's files, zipped
    b"\x80": "it is a pickle",  # older ones
    b"GGUF": "it is a GGUF file of llama.cpp or stable-diffusion.cpp: use the model's safetensors "
    "file",
}
LENGTH_BYTES = 8  # at the start of a file: the length of the header that follows

READERS = 4  # threads in which MLX reads files
SAVED_DTYPES = {mx.uint32: "U32", mx.float32: "F32", mx.float16: "F16"}
ALIGNMENT = 8  # the length of a written header is a multiple of this many bytes


class Tensor(NamedTuple):
    """What a header says of a tensor."""

    kind: str  # the type of its numbers, one of `BYTES`
    shape: tuple[int, ...]
    start: int  # of its bytes, counted from the end of the header
    end: int


class Header:
    """The header of a safetensors file: `metadata`, and `tensors`, `shapes` and `kinds` by name.

    Args:
        name: the file's name in messages.
        file: where it is.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not a safetensors file, is cut short, or has quantized weights.
    """

    def __init__(self, name: str, file: Path):
        self.name = name
        self.file = file
        require(file.is_file(), f"{name} is not a file")  # opening a pipe would wait forever
        size = file.stat().st_size
        content = self._read(size)
        self.data_start = LENGTH_BYTES + len(content)
        try:
            self.metadata, self.tensors = _parse_header(content)
            data_end = self.data_start + _check_offsets(self.tensors)
        except ValueError as error:
            raise ValueError(self._unreadable(error)) from None
        self._check_size(size, data_end)
        over = size - data_end
        require(over == 0, self._unreadable(f"{over} bytes at its end belong to no tensor"))
        self.shapes = {key: tensor.shape for key, tensor in self.tensors.items()}
        self._sorted_keys = sorted(self.shapes)
        self.kinds = {key: tensor.kind for key, tensor in self.tensors.items()}
        refuse_quantized(name, self.kinds)

    def has(self, start: str) -> bool:
        """Return whether any key begins with `start`."""
        i = bisect_left(self._sorted_keys, start)
        return i < len(self._sorted_keys) and self._sorted_keys[i].startswith(start)

    def count(self, key: str) -> int:
        """Return how many keys there are with {} = 0, 1, …, or `MAX_COUNTED` if there are more."""
        missing = (i for i in range(MAX_COUNTED) if key.format(i) not in self.shapes)
        return next(missing, MAX_COUNTED)

    def size(self, key: str, axis: int) -> int:
        """Return the length of a tensor along an axis.

        Raises:
            ValueError: if there is no such tensor, or no such axis.
        """
        shape = self.shapes.get(key)
        if shape is None or len(shape) <= axis:
            found = "is missing" if shape is None else f"is {list(shape)}"
            raise ValueError(f"{self.name}: the architecture is not clear, because {key} {found}")
        return shape[axis]

    def _read(self, size: int) -> bytes:
        """Return the bytes of the header of a file of this size."""
        with self.file.open("rb") as opened:
            start = opened.read(LENGTH_BYTES)
            length = int.from_bytes(start, "little")
            if len(start) < LENGTH_BYTES or length > MAX_HEADER:
                whys = (why for other, why in OTHER_STARTS.items() if start.startswith(other))
                why = next(whys, "it does not begin with a header's length")
                raise ValueError(self._unreadable(why))
            self._check_size(size, LENGTH_BYTES + length)
            return opened.read(length)

    def _unreadable(self, why: object) -> str:
        return f"{self.name} is not a readable safetensors file: {why}"

    def _check_size(self, size: int, wanted: int) -> None:
        message = f"{self.name} is cut short: it has {size} of {wanted} bytes; download it again"
        require(size >= wanted, message)


def _parse_header(content: bytes) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the metadata and the tensors that a header lists.

    Raises:
        ValueError: if it is not as the format asks.
    """
    entries = parse_json(content)
    require(isinstance(entries, dict), "its header is not a JSON object")
    metadata = _parse_metadata(entries.pop("__metadata__", None))
    n = len(entries)
    require(n <= MAX_TENSORS, f"it has {n} tensors, more than {MAX_TENSORS}")
    return metadata, {key: _parse_tensor(key, entry) for key, entry in entries.items()}


def _parse_metadata(content: Any) -> dict[str, str]:
    content = {} if content is None else content
    is_text = isinstance(content, dict) and all(isinstance(v, str) for v in content.values())
    require(is_text, "its metadata are not texts")
    return content


def _parse_tensor(key: str, entry: Any) -> Tensor:
    """Check an entry of a header and return it as a tensor."""
    is_name = key.isprintable() and len(key) <= MAX_NAME_LENGTH
    require(is_name, f"{key[:50]!r} is not the name of a tensor")
    is_complete = isinstance(entry, dict) and entry.keys() >= {"dtype", "shape", "data_offsets"}
    require(is_complete, f"it does not say dtype, shape and data_offsets of {key}")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    is_known = isinstance(kind, str) and kind in BYTES
    require(is_known, f"{key} is of the type {str(kind)[:50]!r}, which is not supported")
    require(_are_counts(shape, MAX_SIDE_LENGTH), f"{key} has the shape {str(shape)[:100]}")
    is_range = _are_counts(offsets, MAX_OFFSET) and len(offsets) == 2
    require(is_range, f"{key} has the data_offsets {str(offsets)[:100]}")
    start, end = offsets
    n_bytes = math.prod(shape) * BYTES[kind]
    require(end - start == n_bytes, f"{key} {shape} takes {n_bytes} bytes, not {end - start}")
    return Tensor(kind, tuple(shape), start, end)


def _are_counts(values: Any, most: int) -> bool:
    """Return whether a value is a list of integers from 0 to `most`."""
    are_integers = isinstance(values, list) and all(type(value) is int for value in values)
    return are_integers and all(0 <= value <= most for value in values)


def _check_offsets(tensors: Mapping[str, Tensor]) -> int:
    """Check that the bytes of the tensors follow each other without a gap; return their number."""
    end = 0
    for key, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        require(tensor.start == end, f"{key} begins at byte {tensor.start}, not at {end}")
        end = tensor.end
    return end


def read_safetensors(
    file: Path, has: Callable[[str], bool] | None = None
) -> tuple[Header, dict[str, mx.array]]:
    """Return the header of a file, and its tensors, in the file's order.

    The tensors stay lazy, unless the file has numbers that MLX does not read. 8-bit floats become
    float16, or float32 times their scales; see `number_types`.

    Args:
        has: returns whether to read the tensor of a name; None for all of them.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not a safetensors file, or is quantized in a way that is not supported.
        RuntimeError: if there is no memory for the threads in which it is read.
    """
    header = Header(str(file), file)
    keys = [key for key in header.tensors if has is None or has(key)]
    kinds = set(header.kinds.values())
    if kinds.isdisjoint(NOT_READ):
        tensors = _load(file)
        wanted = {key: tensors[key] for key in keys}
    else:
        wanted = {key: read_tensor(header, key) for key in keys}
    if not kinds.isdisjoint(EIGHT_BITS):
        wanted = widen_floats(str(file), header.kinds, wanted)
    return header, wanted


def read_tensor(header: Header, key: str) -> mx.array:
    """Read one tensor of a file now; float64 becomes float32, 8-bit floats are left as bytes.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it has become shorter.
    """
    tensor = header.tensors[key]
    with header.file.open("rb") as opened:
        opened.seek(header.data_start + tensor.start)
        try:
            return read_numbers(opened, tensor.kind, tensor.shape)
        except ValueError as error:
            raise ValueError(f"{header.name} is not a readable file: {error}") from None


def _load(file: Path) -> dict[str, mx.array]:
    """Return the lazy tensors of a file.

    Raises:
        ValueError, RuntimeError: as `read_safetensors` does.
    """
    _start_readers()
    try:
        tensors = mx.load(str(file), format="safetensors")
    except RuntimeError as error:
        raise ValueError(f"{file} is not a readable safetensors file: {error}") from None
    if not isinstance(tensors, dict):  # as for files of other formats
        raise ValueError(f"{file} is not a readable safetensors file: it has no names")
    return tensors


@cache
def _start_readers() -> None:
    """Make MLX start the threads in which it reads files, before other things need the memory.

    If MLX cannot start a thread it may wait forever. So threads of Python are started first, which
    raise RuntimeError if they cannot be; MLX's threads then use the memory of their stacks.
    """
    done = Event()
    with ThreadPoolExecutor(READERS) as pool:
        try:
            for _ in range(READERS):
                pool.submit(done.wait, 1)  # at most a second, in case of an interruption here
        finally:
            done.set()
    file = io.BytesIO()
    np.save(file, np.zeros(1, np.float32))
    file.seek(0)
    mx.eval(mx.load(file, format="npy"))


def save_native(
    tensors: Mapping[str, mx.array],
    values: Iterable[mx.array],
    file: Path,
    on_written: Callable[[int], object],
) -> None:
    """Write tensors, uint32 or floats, one after another.

    Only one is in memory at a time, if the caller has no other reference to them.

    Args:
        tensors: lazy arrays with the names, shapes and types of the tensors, which stay lazy.
        values: the tensors themselves, in the same order.
        on_written: called after each with its size in bytes.

    Raises:
        OSError: if the file cannot be written, or exists already.
    """
    header: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for key, value in tensors.items():
        start, end = end, end + value.nbytes
        kind = {"dtype": SAVED_DTYPES[value.dtype], "shape": value.shape}
        header[key] = {**kind, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with file.open("xb") as opened:
        opened.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)
        for value in map(mx.contiguous, values):
            opened.write(np.asarray(value).data)  # a view, not a copy
            on_written(value.nbytes)
            del value  # before the next one is computed


def find_not_finite(file: Path, dtype: mx.Dtype, layout: Layout | None = None) -> list[str]:
    """Return the keys of tensors with a number that is not finite as `dtype`.

    Args:
        layout: of the network to look at; None for all tensors of the file.

    Raises:
        OSError, ValueError: as `read_safetensors` does.
    """
    _, tensors = read_safetensors(file, None if layout is None else layout.has)
    # `pop` so that only one of them is in memory at a time.
    return [
        key for key in list(tensors) if not mx.isfinite(tensors.pop(key).astype(dtype)).all().item()
    ]
