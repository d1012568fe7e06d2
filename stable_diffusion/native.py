"""Networks in files of MLX's own layout and this package's names, as `convert` writes them.

Nothing has to be renamed or turned over, so what is read is what is kept, and what is written
needs the memory of one tensor.
"""

import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from .quantize import is_quantized
from .weights import Problems, read_safetensors

_DTYPES = {mx.uint32: "U32", mx.float32: "F32", mx.float16: "F16"}  # as safetensors names them
_ALIGNMENT = 8  # bytes that a header's length is a multiple of


def load_native(model: nn.Module, file: Path, dtype: mx.Dtype) -> None:
    """Give `model`, which is quantized as the file is, the weights of `file`, lazily, as `dtype`.

    Matrices of a quantized network that are stored in half precision stay so, but for embeddings:
    where they meet float32 they are widened.

    Raises:
        ValueError: a file that is no safetensors file; tensors that are missing, not expected,
            or of another shape or kind than the model asks for, all in one message.
    """
    wanted = dict(tree_flatten(model.parameters()))
    _, weights = read_safetensors(file)
    problems = Problems()
    problems.misshapen += [
        f"{key} {_kind(weights[key])}, not {_kind(value)}"
        for key, value in wanted.items()
        if key in weights and _kind(weights[key]) != _kind(value)
    ]
    problems.missing += [key for key in wanted if key not in weights]
    problems.unexpected += [key for key in weights if key not in wanted]
    problems.refuse(file)

    layers = model.named_modules() if is_quantized(model) else ()
    keeping = {f"{path}." for path, layer in layers if not isinstance(layer, nn.Embedding)}

    def converted(key: str, value: mx.array) -> mx.array:
        is_matrix = value.ndim > 1 and key[: key.rfind(".") + 1] in keeping
        is_kept = value.dtype == mx.uint32 or (is_matrix and value.dtype == mx.float16)
        return value if is_kept else value.astype(dtype)

    model.update(tree_unflatten([(key, converted(key, value)) for key, value in weights.items()]))


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


def _kind(value: mx.array) -> str:
    """What a tensor has to have in common with the one that it replaces."""
    packed = " of packed bits" if value.dtype == mx.uint32 else ""
    is_number = packed or mx.issubdtype(value.dtype, mx.floating)
    return f"{list(value.shape)}{packed if is_number else f' of {value.dtype}'}"
