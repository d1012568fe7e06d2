"""The message after an interruption has the command that makes the other pictures."""

import pytest
from picture_files import make_jobs, make_settings

from stable_diffusion.cli.output.continuation import explain_continuation
from stable_diffusion.cli.output.file_names import name_files


@pytest.mark.parametrize(
    ("output", "options", "n_finished", "message"),
    [
        (
            "o.png",
            {},
            0,
            "no picture is finished: the same command with --seed 10 makes these pictures",
        ),
        ("o.png", {}, 3, "3 of 3 pictures are finished, and kept"),
        ("d/", {}, 2, "the same command with --seed 12 --n_images 1 makes the others"),
        ("{seed}.png", {}, 2, "the same command with --seed 12 --n_images 1 makes the others"),
        (
            *("o.png", {}, 1),
            "the same command with --seed 11 --n_images 2 and another --output makes the others",
        ),
        ("{index}.png", {}, 1, "--seed 11 --n_images 2 and another --output makes the others"),
        ("d/", {"prompts_file": "p.txt"}, 1, "and kept: the same command makes the others"),
        (
            "d/",
            {"prompts_file": "p.txt"},
            0,
            "no picture is finished: the same command makes the others",
        ),
    ],
)
def test_the_command_that_makes_the_rest(
    tmp_path, monkeypatch, output, options, n_finished, message
):
    monkeypatch.chdir(tmp_path)
    jobs, settings = make_jobs(3), make_settings(output, **options)
    explained = explain_continuation(settings, name_files(settings, jobs), jobs, n_finished)
    assert explained.endswith(message)
