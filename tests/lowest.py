"""The tests that need neither torch nor diffusers: what `.ci/lowest` runs.

Beside them the pictures of the README, made again by the commands above them.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

import stable_diffusion  # noqa: F401  before mlx

from PIL import Image  # isort: skip

import txt2image

TESTS = (
    *("safetensors_file", "hostile", "hub", "image", "layout", "wording", "text_chunks"),
    *("picture_writer", "webui_text", "prompt_weights", "prompts_file", "recipe"),
)
PICTURES = {
    "red-circle": "a red circle on a blue background",
    "circle-and-star": "a small red circle left of a big blue star on a yellow background",
    "crescent-and-heart": "on black, a big yellow moon above a small white heart",
}
# Those that import diffusers.
WITHOUT = "not diffusers and not libraries_write"
MAX_DIFFERENT = 2  # of 255 levels, in any pixel


def main() -> int:
    """Run them; 0 where all is well."""
    folder = Path(__file__).parent
    files = [file for name in TESTS for file in folder.rglob(f"test_{name}.py")]
    if status := pytest.main(["--noconftest", "-q", "-k", WITHOUT, *map(str, files)]):
        return int(status)
    for name, prompt in PICTURES.items():
        with TemporaryDirectory() as made_in:
            made, shown = Path(made_in) / "made.png", folder.parent / f"images/{name}.png"
            if status := txt2image.main([prompt, "--model=tiny", "--seed=1", f"--output={made}"]):
                return status
            pictures = (np.asarray(Image.open(file)).astype(int) for file in (made, shown))
            difference = np.abs(np.subtract(*pictures)).max()
        print(f"{name}: pixels differ from the README's by at most {difference} of 255 levels")
        if difference > MAX_DIFFERENT:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
