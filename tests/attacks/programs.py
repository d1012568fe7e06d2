"""Run the scripts under attack, in this process or in a new one."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence

import numpy as np
from ours import ROOT
from PIL import Image

import image2image
import txt2image
from attacks.harness import Case, Defect, Outcome, Refused, check_ending, require

USUAL = ("--model=tiny", "--steps=1", "--n_images=1", "--seed=1", "--low-memory")
SECONDS = 600  # that a program may take on a busy machine; see also `harness.judge`


def run_program(
    command: Sequence[bytes | str], **options: object
) -> subprocess.CompletedProcess[bytes]:
    """Run as `subprocess.run` with a timeout that counts seconds: a machine may be suspended.

    Raises:
        Defect: if it hangs.
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes | options) as program:
        for _ in range(SECONDS):
            with contextlib.suppress(subprocess.TimeoutExpired):
                out, err = program.communicate(timeout=1)
                return subprocess.CompletedProcess(command, program.returncode, out, err)
        program.kill()
        raise Defect(Outcome.HANG, f"{command}")


def txt2image_case(case: Case, *arguments: object) -> None:
    """Run `txt2image.py` in this process: it makes a picture, or leaves the file that was there."""
    _script(case, txt2image.main, *arguments)


def image2image_case(case: Case, *arguments: object) -> None:
    """Run `image2image.py` in this process, as `txt2image_case` runs the other script."""
    _script(case, image2image.main, *arguments)


def _script(case: Case, main: Callable[[Sequence[str]], int], *arguments: object) -> None:
    """Run a script that makes one picture; its file may exist already."""
    output = case.folder / "o.png"
    before = case.rng.choice([None, b"what was here"])
    if before is not None:
        output.write_bytes(before)
    try:
        out, _ = case.script(main, *USUAL, f"--output={output}", *arguments)
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
    done = run_program(
        [sys.executable, script, *USUAL, f"--output={output}", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
    )
    check_ending(done.returncode, done.stderr.decode(errors="replace"))
    require_picture(case)


def require_picture(case: Case) -> None:
    """Check that a picture was written, and that it is not of one colour."""
    require((case.folder / "o.png").is_file(), "no picture")
    with Image.open(case.folder / "o.png") as image:
        pixels = np.asarray(image)
    require(pixels.ndim == 3 and pixels.shape[2] == 3, f"a picture {pixels.shape}")
    require(pixels.std() > 0, "a picture of one colour")
