"""Run the tests that need neither torch nor diffusers, for `.ci/lowest`.

Also make pictures of the README and of docs/tiny.md again, by the commands that stand there.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

import stable_diffusion  # noqa: F401  before mlx

from PIL import Image  # isort: skip

import image2image
import txt2image

TESTS = (
    *("arrays", "pixels", "reading", "text_chunks", "unreadable", "writing"),
    *("safetensors_file", "hostile", "hub", "hub_names", "hub_failures", "layout", "wording"),
    *("picture_writer", "file_names", "webui_text", "prompt_weights", "prompts_file", "recipe"),
    *("masked_picture", "webui_hires"),
)
BOTH = "a small red circle left of a big blue star on a yellow background"
IMAGES = Path(__file__).parents[1] / "images"
PICTURES = {  # the script, and what it is given beside the seed
    "red-circle": (txt2image, ["a red circle on a blue background"]),
    "circle-and-star": (txt2image, [BOTH]),
    "crescent-and-heart": (txt2image, ["on black, a big yellow moon above a small white heart"]),
    "outline-drawn": (
        txt2image,
        [
            "a red star on the left of a blue heart on a white background",
            f"--control=outline={IMAGES / 'outline.png'}",
        ],
    ),
    "inpainting-square": (
        image2image,
        [
            str(IMAGES / "inpainting-start.png"),
            "a small green square left of a big blue star on a yellow background",
            f"--mask={IMAGES / 'inpainting-mask.png'}",
            "--n_images=2",
        ],
    ),
    "hires-second": (
        txt2image,
        [BOTH, "--n_images=1", "--hires=1.5", "--hires-upscale=lanczos", "--hires-strength=0.2"],
    ),
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
    for name, (script, words) in PICTURES.items():
        with TemporaryDirectory() as made_in:
            made, published = Path(made_in) / "made.png", IMAGES / f"{name}.png"
            if status := script.main([*words, "--model=tiny", "--seed=1", f"--output={made}"]):
                return status
            pictures = (np.asarray(Image.open(file)).astype(int) for file in (made, published))
            difference = np.abs(np.subtract(*pictures)).max()
        print(f"{name}: differs from the published one by at most {difference} of 255 levels")
        if difference > MAX_DIFFERENT:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
