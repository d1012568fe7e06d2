"""Ranks that `mlx.launch` starts make the pictures of one process; if one fails, it says so."""

import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
from ours import ROOT
from PIL import Image

import txt2image
from stable_diffusion.cli.ranks import find_ranks

PIPE_SIZE = 65_536  # bytes


def find_free_ports() -> int:
    """Return the first of two that nothing listens on, below those that the system assigns."""
    for port in range(20_000 + os.getpid() % 5_000, 32_000, 2):
        with suppress(OSError), socket.socket() as first, socket.socket() as second:
            first.bind(("", port))
            second.bind(("", port + 1))
            return port
    raise OSError("no free ports")


def launch(*command: str) -> tuple[str, str]:
    """Return what two ranks of a Python program print."""
    port = find_free_ports()
    launcher = Path(sys.executable).parent / "mlx.launch"
    # mlx.launch is busy all the time if its input is at an end, or if a rank could take input.
    # So it gets as much as a pipe holds, which no rank reads.
    stdin, unread = os.pipe()
    os.set_blocking(unread, False)
    os.write(unread, bytes(PIPE_SIZE))
    try:
        done = subprocess.run(
            [launcher, "-n", "2", "--starting-port", str(port), sys.executable, *command],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            stdin=stdin,
        )
    finally:
        os.close(stdin)
        os.close(unread)
    return done.stdout, done.stderr


def test_a_process_without_a_launcher_is_alone():
    ranks = find_ranks()
    images = np.zeros((2, 4, 4, 3), np.uint8)
    assert ranks.is_first and ranks.size == 1
    assert ranks.share([2**62, 0]) == [2**62, 0] and ranks.share_smallest(3) == 3
    assert ranks.gather(images)[0] is images
    assert ranks.run_together(lambda: 5) == 5


def test_two_ranks_make_what_one_process_makes(tmp_path):
    """There are several sizes, and one rank has more to make than the other."""
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "a red circle", "n_images": 3, "width": 32, "height": 32}\n'
        '{"prompt": "a blue star", "width": 32, "height": 64}\n'
    )
    arguments = ["--model=tiny", "--steps=1", f"--prompts-file={tmp_path / 'p.jsonl'}"]
    out, err = launch("txt2image.py", *arguments, f"--output={tmp_path / 'two'}/")
    names = sorted(os.listdir(tmp_path / "two"))
    assert out.count("Wrote ") == len(names) == 4 and out.count("Computing in float32") == 1, err
    assert "WARN" not in err
    assert txt2image.main([*arguments, f"--output={tmp_path / 'one'}/"]) == 0
    assert names == sorted(os.listdir(tmp_path / "one"))
    for name in names:
        one, two = (np.asarray(Image.open(tmp_path / n / name)).astype(int) for n in ("one", "two"))
        assert np.abs(one - two).max() <= 1


# What ranks exchange, and how they end: rank 1 fails in one way after another. When it is killed,
# rank 0 waits in MLX without end, as it may: no signal ends a wait for a lock of the C library, as
# none ends MLX's.
PROGRAM = """
import argparse, ctypes, os, sys, time
import numpy as np
from stable_diffusion.cli.ranks import Ranks, find_ranks
from stable_diffusion.cli.main import report_errors
import mlx.core as mx

def fail(how):
    if how == "usage":
        argparse.ArgumentParser(prog="p").error("no such file here")
    if how == "error":
        raise ValueError("the disk is full")
    if how == "bug":
        raise TypeError("a bug")
    if how == "kill":
        time.sleep(1)
        os.kill(os.getpid(), 9)

def wait(x):
    print("waiting", flush=True)
    lock, libc = (ctypes.c_char * 64)(), ctypes.CDLL(None)
    while True:
        libc.pthread_mutex_lock(lock)

def work(ranks, how):
    print("rank", ranks.rank, "of", ranks.size)
    print(ranks.share([2**62 + ranks.rank, ranks.rank]), ranks.share_smallest(5 - ranks.rank))
    made = ranks.gather(np.full((ranks.rank, 2, 3, 3), 7, np.uint8))
    print([images.shape for images in made], made[1].min())
    if how == "different":
        ranks.require_same(ranks.rank, "asked for something else")
    if ranks.rank == 1:
        fail(how)
    if how == "kill":
        mx.distributed.all_gather = wait
    ranks.share([0])

first = find_ranks()
for how in ("well", "error", "usage", "different", "bug", "kill"):
    ranks = Ranks(first.rank, first.size)
    try:
        status = ranks.run_together(lambda: report_errors(lambda: work(ranks, how)))
    except TypeError as error:
        status = 1
        print(f"TypeError: {error}", file=sys.stderr)
    if ranks.is_first:
        print("status", status, flush=True)
"""


def test_how_ranks_end():
    """All end with the status of the rank that failed, and only its message is printed.

    The launcher ends a rank that waits for one that was killed.
    """
    out, err = launch("-c", PROGRAM)
    exchange = f"rank 0 of 2\n[{2**62}, 0] 4\n[(0, 0, 0, 3), (1, 2, 3, 3)] 7\n"
    ends = [f"{exchange}status {status}\n" for status in (0, 1, 2, 1, 1)]
    assert out == "".join(ends) + exchange + "waiting\n"
    errors = {line for line in err.splitlines() if "rror: " in line}
    assert errors == {
        "error: interrupted",
        "rank 1: error: the disk is full",
        "rank 1: p: error: no such file here",
        "error: rank 1 was asked for something else",
        "TypeError: a bug",
    }
    assert "rank 0 exited with code 143" in err
