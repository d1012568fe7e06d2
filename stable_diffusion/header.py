"""The header of a safetensors file: what is in it, without reading the weights.

Its format: https://huggingface.co/docs/safetensors/index#format
"""

import itertools
import json
from pathlib import Path

MAX_HEADER = 100_000_000  # bytes; the format allows no more


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
        try:
            with file.open("rb") as opened:
                length = int.from_bytes(opened.read(8), "little")
                content = json.loads(opened.read(length if length <= MAX_HEADER else 0))
            self.metadata = dict(content.pop("__metadata__", None) or {})  # MLX writes null
            self.shapes = {key: tuple(entry["shape"]) for key, entry in content.items()}
            kinds = {entry["dtype"] for entry in content.values()}
            end = max((entry["data_offsets"][1] for entry in content.values()), default=0)
        except (ValueError, TypeError, LookupError, AttributeError):
            raise ValueError(f"{name} is not a readable safetensors file") from None
        if (size := file.stat().st_size) < 8 + length + end:
            raise ValueError(
                f"{name} is cut short: it has {size} of {8 + length + end} bytes; download it again"
            )
        if eight_bits := sorted(kind for kind in kinds if kind.startswith("F8")):
            raise ValueError(
                f"{name} has 8-bit floats ({eight_bits[0]}), which are not supported: use the "
                "model's float16 file"
            )

    def has(self, start: str) -> bool:
        """Whether there are keys that begin so."""
        return any(key.startswith(start) for key in self.shapes)

    def count(self, key: str) -> int:
        """How many keys there are for {} = 0, 1, …"""
        return next(i for i in itertools.count() if key.format(i) not in self.shapes)

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
