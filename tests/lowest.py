"""Run the tests that need neither torch nor diffusers, for `.ci/lowest`.

Also make pictures of docs/tiny.md again, with the prompts that stand there.
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
    *("arrays", "pixels", "reading", "text_chunks", "unreadable", "writing"),
    *("safetensors_file", "hostile", "hub", "hub_names", "hub_failures", "layout", "wording"),
    *("picture_writer", "file_names", "webui_text", "prompt_weights", "prompts_file", "recipe"),
)
PICTURES = {
    "red-circle": "a red circle on a blue background",
    "circle-and-star": "a small red circle left of a big blue star on a yellow background",
    "crescent-and-heart": "on black, a big yellow moon above a small white heart",
}
# Leaves out single tests that import diffusers.
SELECTION = "not diffusers and not libraries_write"
MAX_DIFFERENT = 2  # of 255 levels, in any pixel


def main() -> int:
    """Run them, and return the exit status: 0 if all is well."""
    folder = Path(__file__).parent
    files = [file for name in TESTS for file in folder.rglob(f"test_{name}.py")]
    if status := pytest.main(["-q", "-k", SELECTION, *map(str, files)]):
        return int(status)
    for name, prompt in PICTURES.items():
        with TemporaryDirectory() as made_in:
            made, published = Path(made_in) / "made.png", folder.parent / f"images/{name}.png"
            if status := txt2image.main([prompt, "--model=tiny", "--seed=1", f"--output={made}"]):
                return status
            pictures = (np.asarray(Image.open(file)).astype(int) for file in (made, published))
            difference = np.abs(np.subtract(*pictures)).max()
        print(f"{name}: differs from the published one by at most {difference} of 255 levels")
        if difference > MAX_DIFFERENT:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
