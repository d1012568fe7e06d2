"""The header of a safetensors file: what is in it, without reading the weights.

Its format: https://huggingface.co/docs/safetensors/index#format. It is held to that before MLX gets
to see the file: every tensor inside, none over another, no byte over.
"""

import io
import json
import math
from bisect import bisect_left
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from ..utils.strict_json import parse_json, require
from ..utils.wording import join_names
from .layouts import Layout

MAX_HEADER = 20_000_000  # bytes; the format allows 100 MB, which would take GB as Python's objects
MAX_TENSORS = 50_000  # of a file; those of the models here have some thousands
MAX_COUNTED = 1001  # layers of a kind: one more than any config may have
MAX_NAME_LENGTH = 500  # of a tensor; those of the models here have 100
MAX_SIDE_LENGTH = 2**31 - 1  # of a tensor, in MLX
BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "C64", "F64"), 8),
}
FLOATS = ("F32", "F16", "BF16")  # those that MLX reads
PICKLE_STARTS = (b"PK\x03\x04", b"\x80")  # of PyTorch's files: zipped, and older ones


class Tensor(NamedTuple):
    """What a header says of a tensor."""

    kind: str  # one of `BYTES`
    shape: tuple[int, ...]
    start: int  # of its bytes, behind the header
    end: int


class Header:
    """The names and shapes of the tensors of a safetensors file, and what it says of itself.

    `name` is how messages call the file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no safetensors file, is cut short, or has numbers of 8 bits.
    """

    def __init__(self, name: str, file: Path):
        self.name = name
        self.file = file
        require(file.is_file(), f"{name} is not a file")  # opening a pipe would wait for ever
        size = file.stat().st_size
        with file.open("rb") as opened:
            start = opened.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > MAX_HEADER:
                is_pickle = start.startswith(PICKLE_STARTS)
                why = "it is a pickle" if is_pickle else "no header's length is at its beginning"
                raise ValueError(self._unreadable(why))
            content = opened.read(min(length, size))
        self._require_whole(size, 8 + length)
        try:
            content = parse_json(content)
            require(isinstance(content, dict), "its header is no JSON object")
            self.metadata = _metadata(content.pop("__metadata__", None))
            n = len(content)
            require(n <= MAX_TENSORS, f"it has {n} tensors, more than {MAX_TENSORS}")
            self.tensors = {key: _tensor(key, entry) for key, entry in content.items()}
            end = _end(self.tensors)
        except ValueError as error:
            raise ValueError(self._unreadable(error)) from None
        self._require_whole(size, 8 + length + end)
        over = size - (8 + length + end)
        require(over == 0, self._unreadable(f"{over} bytes at its end belong to no tensor"))
        self.shapes = {key: tensor.shape for key, tensor in self.tensors.items()}
        self._sorted = sorted(self.shapes)
        kinds = {tensor.kind for tensor in self.tensors.values()}
        if eight_bits := sorted(kind for kind in kinds if kind.startswith("F8")):
            raise ValueError(
                f"{name} has 8-bit floats ({eight_bits[0]}), which are not supported: use the "
                "model's float16 file"
            )

    def has(self, start: str) -> bool:
        """Whether there are keys that begin so."""
        at = bisect_left(self._sorted, start)
        return at < len(self._sorted) and self._sorted[at].startswith(start)

    def count(self, key: str) -> int:
        """How many keys there are for {} = 0, 1, …; `MAX_COUNTED` where there are more."""
        found = (i for i in range(MAX_COUNTED) if key.format(i) not in self.shapes)
        return next(found, MAX_COUNTED)

    def size(self, key: str, axis: int) -> int:
        """The length of a tensor along an axis.

        Raises:
            ValueError: there is no such tensor, or no such axis.
        """
        shape = self.shapes.get(key)
        if shape is None or len(shape) <= axis:
            found = "is missing" if shape is None else f"is {list(shape)}"
            raise ValueError(f"{self.name}: the architecture cannot be told, for {key} {found}")
        return shape[axis]

    def _unreadable(self, why: object) -> str:
        return f"{self.name} is not a readable safetensors file: {why}"

    def _require_whole(self, size: int, wanted: int) -> None:
        cut = f"{self.name} is cut short: it has {size} of {wanted} bytes; download it again"
        require(size >= wanted, cut)


def _metadata(content: Any) -> dict[str, str]:
    content = {} if content is None else content
    is_text = isinstance(content, dict) and all(isinstance(v, str) for v in content.values())
    require(is_text, "its metadata are not texts")
    return content


def _tensor(key: str, entry: Any) -> Tensor:
    """What the header says of a tensor, if it can be."""
    require(key.isprintable() and len(key) <= MAX_NAME_LENGTH, f"{key[:50]!r} is no tensor's name")
    is_complete = isinstance(entry, dict) and entry.keys() >= {"dtype", "shape", "data_offsets"}
    require(is_complete, f"of {key} it does not say dtype, shape and data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    is_known = isinstance(kind, str) and kind in BYTES
    require(is_known, f"{key} is of the type {str(kind)[:50]!r}, which is not supported")
    require(_are_counts(shape), f"{key} has the shape {str(shape)[:100]}")
    is_range = _are_counts(offsets, most=2**63) and len(offsets) == 2
    require(is_range, f"{key} has the data_offsets {str(offsets)[:100]}")
    start, end = offsets
    n_bytes = math.prod(shape) * BYTES[kind]
    require(end - start == n_bytes, f"{key} {shape} takes {n_bytes} bytes, not {end - start}")
    return Tensor(kind, tuple(shape), start, end)


def _are_counts(values: Any, most: int = MAX_SIDE_LENGTH) -> bool:
    are_whole = isinstance(values, list) and all(type(value) is int for value in values)
    return are_whole and all(0 <= value <= most for value in values)


def _end(tensors: Mapping[str, Tensor]) -> int:
    """Where the bytes of the last tensor end: they follow each other without a gap."""
    end = 0
    for key, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        require(tensor.start == end, f"{key} begins at byte {tensor.start}, not at {end}")
        end = tensor.end
    return end


_DTYPES = {mx.uint32: "U32", mx.float32: "F32", mx.float16: "F16"}  # as safetensors names them
_ALIGNMENT = 8  # bytes that a header's length is a multiple of


def save_native(
    tensors: dict[str, mx.array], file: Path, on_written: Callable[[int], object]
) -> None:
    """Write lazy `tensors`, uint32 or floats, one after another, and take each out of the dict.

    If the caller has no other reference to them, there is never more than one in memory.
    `on_written` is called with the bytes of each.

    Raises:
        OSError: the file cannot be written, or is there already.
    """
    header: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for key, value in tensors.items():
        start, end = end, end + value.nbytes
        kind = {"dtype": _DTYPES[value.dtype], "shape": value.shape}
        header[key] = {**kind, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with file.open("xb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        for key in list(tensors):
            value = mx.contiguous(tensors.pop(key))
            opened.write(memoryview(value))
            on_written(value.nbytes)
            del value


pass

MLX_READERS = 4  # threads


def read_safetensors(file: Path) -> tuple[Header, dict[str, mx.array]]:
    """The header of a file, and its tensors, lazily.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no safetensors file, or has numbers of a kind that MLX does not read.
        RuntimeError: there is no memory for the threads in which it is read.
    """
    header = Header(str(file), file)
    if doubles := [key for key, tensor in header.tensors.items() if tensor.kind == "F64"]:
        raise ValueError(
            f"{file} has float64, which is not supported ({join_names(doubles)}): "
            "save it in float32"
        )
    _start_readers()
    try:
        tensors = mx.load(str(file), format="safetensors")
    except RuntimeError as error:
        raise ValueError(f"{file} is not a readable safetensors file: {error}") from None
    return header, {key: tensors[key] for key in header.tensors}  # in the file's order


@cache
def _start_readers() -> None:
    """Have MLX start the threads in which it reads files, before memory is taken for anything.

    Where it cannot start one it may wait for ever, and so others try, which raise RuntimeError.
    Their stacks are used again.
    """
    done = Event()
    with ThreadPoolExecutor(MLX_READERS) as pool:
        try:
            for _ in range(MLX_READERS):
                pool.submit(done.wait, 1)  # second, should an interruption come between
        finally:
            done.set()
    file = io.BytesIO()
    np.save(file, np.zeros(1, np.float32))
    file.seek(0)
    mx.eval(mx.load(file, format="npy"))


def not_finite(file: Path, dtype: mx.Dtype, layout: Layout | None = None) -> list[str]:
    """The keys of tensors with a number that is not finite as `dtype`; of one network, or all.

    Raises: as `read_safetensors`.
    """
    _, tensors = read_safetensors(file)
    keys = [key for key in tensors if layout is None or layout.has(key)]
    # Taken out one by one, so that one of them is in memory.
    return [key for key in keys if not mx.isfinite(tensors.pop(key).astype(dtype)).all().item()]
