"""The size of a picture."""

from typing import NamedTuple


class Size(NamedTuple):
    """Width and height in pixels, in the order of Pillow and of the options."""

    width: int
    height: int
