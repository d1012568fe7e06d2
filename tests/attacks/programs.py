"""The scripts under attack: in this process, or in one of their own."""

import os
import subprocess
import sys

import numpy as np
from ours import ROOT
from PIL import Image

import txt2image
from attacks.harness import Case, Defect, Outcome, Refused, check_ending, require

USUAL = ("--model=tiny", "--steps=1", "--n_images=1", "--seed=1", "--low-memory")
SECONDS = 30


def txt2image_case(case: Case, *arguments: object) -> None:
    """Run `txt2image.py` in this process: a picture, or what stood in its place before."""
    output = case.folder / "o.png"
    before = case.rng.choice([None, b"what stood here"])
    if before is not None:
        output.write_bytes(before)
    try:
        out, _ = case.script(txt2image.main, *USUAL, f"--output={output}", *arguments)
    except Refused:
        after = output.read_bytes() if output.exists() else None
        if after != before:
            raise Defect(Outcome.LOST, "refused, but the output has changed") from None
        raise
    if not out.startswith("usage: "):  # --help
        require_picture(case)


def program(case: Case, script: str, *arguments: bytes | str, **environment: str) -> None:
    """Run a script in a process of its own, which must make a picture or say why not."""
    output = case.folder / "o.png"
    done = subprocess.run(
        [sys.executable, script, *USUAL, f"--output={output}", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=SECONDS,
    )
    check_ending(done.returncode, done.stderr.decode(errors="replace"))
    require_picture(case)


def require_picture(case: Case) -> None:
    """What was written is a picture, and not of one colour."""
    require((case.folder / "o.png").is_file(), "no picture")
    with Image.open(case.folder / "o.png") as image:
        pixels = np.asarray(image)
    require(pixels.ndim == 3 and pixels.shape[2] == 3, f"a picture {pixels.shape}")
    require(pixels.std() > 0, "a picture of one colour")
