"""Names of files: what the user asks for, what exists already, and what may be overwritten."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from picture_files import list_files, make_jobs, make_writer, name_in_run, read_index, write

from stable_diffusion.cli.job import CompleteJob, Job, UsageError
from stable_diffusion.cli.output.file_names import check_sizes


def test_a_folder_is_made_and_its_numbers_go_up(tmp_path):
    """There may be gaps, other formats, and names that are not numbers."""
    folder = tmp_path / "a" / "b"
    write(f"{folder}/", make_jobs(2))
    assert list_files(folder) == ["0001.png", "0002.png"]
    (folder / "0007.jpg").touch()
    (folder / "99999x.png").touch()
    write(folder, make_jobs(2))
    assert list_files(folder)[2:5] == ["0007.jpg", "0008.png", "0009.png"]
    assert read_index(folder / "0001.png") == 1 and read_index(folder / "0009.png") == 2


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("{index:05d}.png", ["00001.png", "00002.png"]),
        ("{index:02}-{seed:6}.png", ["01-000010.png", "02-000011.png"]),
        ("{index:d}{seed:03d}.png", ["1010.png", "2011.png"]),
        ("{index}.png", ["0001.png", "0002.png"]),
        ("{seed:0}-{index:06}.png", ["10-000001.png", "11-000002.png"]),
    ],
)
def test_digits_of_numbers(tmp_path, pattern, expected):
    """They are the same in the option and in names from a prompts file."""
    write(tmp_path / pattern, make_jobs(2))
    assert list_files(tmp_path) == expected
    write(f"{tmp_path}/b/", make_jobs(2, file=pattern))
    assert list_files(tmp_path / "b") == expected


def test_fields(tmp_path):
    model = "org/My Model: 2@main"
    write(tmp_path / "{model}" / "x{{{index}}}-{seed}.JPG", make_jobs(2), model=model)
    assert list_files(tmp_path) == ["My-Model-2/x{0001}-10.JPG", "My-Model-2/x{0002}-11.JPG"]


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("sdxl", "sdxl"),
        ("a/fine.safetensors", "fine"),
        ("..", "model"),
        ("/", "model"),
        ("/models/v1.5/", "v1.5"),
    ],
)
def test_the_model_in_a_name_is_a_name(tmp_path, model, name):
    write(tmp_path / "{model}.png", make_jobs(1), model=model)
    assert list_files(tmp_path) == [f"{name}.png"]


def test_a_pattern_overwrites_only_by_force(tmp_path):
    """Existing files are found before anything is made."""
    pattern = tmp_path / "{seed}.png"
    write(pattern, make_jobs(2))
    with pytest.raises(UsageError, match=r"10\.png and 1 more exist: --force overwrites"):
        name_in_run(pattern, make_jobs(3))
    (tmp_path / "10.png").unlink()
    with pytest.raises(UsageError, match=r"11\.png exists: --force"):
        name_in_run(pattern, make_jobs(3))
    jobs = [Job("a", seed=11, index=5)]
    write(pattern, jobs, force=True)
    assert list_files(tmp_path) == ["11.png"] and read_index(tmp_path / "11.png") == 5


def test_a_prompts_file_is_continued(tmp_path):
    jobs = make_jobs(4)
    write(f"{tmp_path}/", jobs[:3], prompts_file="p.txt")
    (tmp_path / "0002.png").unlink()
    names = name_in_run(tmp_path, jobs, prompts_file="p.txt")
    assert [names.exists(job) for job in jobs] == [True, False, True, False]
    forced = name_in_run(tmp_path, jobs, prompts_file="p.txt", force=True)
    assert not any(forced.exists(job) for job in jobs)


def test_naming_deletes_nothing(tmp_path):
    """Files that a killed program has left stay; `generate` removes them."""
    left = f".0001.png.{16 * 'a'}.partial"
    (tmp_path / left).touch()
    names = name_in_run(tmp_path, make_jobs(2), prompts_file="p.txt")
    make_writer(tmp_path, make_jobs(2), prompts_file="p.txt")
    assert list_files(tmp_path) == [left]
    files = [*names.all_files, names.preview]
    assert files == [tmp_path / n for n in ("0001.png", "0002.png", "now.preview.png")]


def test_names_of_lines(tmp_path):
    jobs = [Job("a", seed=1, file="cats/{seed}.png")]
    jobs += [Job("a", seed=seed, index=seed) for seed in (2, 3)]
    write(f"{tmp_path}/", jobs, prompts_file="p.jsonl")
    assert list_files(tmp_path) == ["0002.png", "0003.png", "cats/1.png"]
    for name in ("../a.png", "/a.png", "a/../../b.png", "a\0.png"):
        with pytest.raises(UsageError, match="line 7: output .* is not a name inside the folder"):
            name_in_run(tmp_path, make_jobs(1, file=name, where="line 7: "), prompts_file="p.jsonl")


@pytest.mark.parametrize(
    ("output", "n", "options", "message"),
    [
        ("{sed}.png", 1, {}, r"\{sed\} is not one of \{index\}, \{seed\}, \{model\}$"),
        (
            "{index:x}.png",
            1,
            {},
            r"\{index:x\} is .*: write \{index\}, or \{index:06\} for six digits$",
        ),
        (
            "{seed!r:9}.png",
            1,
            {},
            r"\{seed!r:9\} is .*: write \{seed\}, or \{seed:06\} for six digits$",
        ),
        ("{index:999}.png", 1, {}, r"\{index:999\} is not supported"),
        ("{index:{seed}}.png", 1, {}, r"is not supported: write \{index\}, or"),
        ("{index:+5d}.png", 1, {}, r"is not supported: write \{index\}, or"),
        ("{model:9}.png", 1, {}, r"\{model:9\} is not supported: write \{model\}$"),
        ("{}.png", 1, {}, r"\{\} is not one of"),
        ("{index.png", 1, {}, "expected '}'"),
        ("{model}.png", 2, {}, r"pictures 1 and 2 have the same name, .*put \{index\} in it"),
        ("{index}.txt", 1, {}, "must end in one of .png"),
        ("{index}", 1, {}, "must end in one of .png"),
        ("x" * 250 + "{index}.png", 1, {}, "name is longer than 220 bytes"),
        ("é" * 130 + "/", 1, {}, "a name is longer than 220 bytes"),
        ("file/{index}.png", 1, {}, "file is not a folder"),
        ("file/", 1, {}, "file is not a folder"),
        ("o.png", 2, {"prompts_file": "p"}, "is one file, for 2 pictures: give a folder"),
        ("o.png", 2, {"grid": "g.png"}, "is a grid already"),
        ("{index}.png", 2, {"grid": "g.txt"}, "must end in one of .png"),
        ("{index}.png", 3, {"grid": "g.png", "n_rows": 2}, "--n_rows 2 does not divide 3"),
        ("no/o.png", 1, {}, "no does not exist"),
    ],
)
def test_wrong_names(tmp_path, monkeypatch, output, n, options, message):
    """The error comes before anything is loaded, and nothing is created."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=message):
        name_in_run(output, make_jobs(n), **options)
    assert list_files(tmp_path) == ["file"]


@pytest.mark.parametrize("grid", ["0001.png", "../d/0001.png", "../link/0001.PNG"])
def test_the_grid_cannot_be_the_file_of_a_picture(tmp_path, monkeypatch, grid):
    (tmp_path / "d").mkdir()
    (tmp_path / "link").symlink_to("d")
    monkeypatch.chdir(tmp_path / "d")
    with pytest.raises(UsageError, match="is also the file of a picture"):
        name_in_run(tmp_path / "d" / "{index}.png", make_jobs(1), grid=grid)


@pytest.mark.parametrize("platform", ["darwin", "linux"])
def test_names_that_a_mac_takes_for_one(tmp_path, monkeypatch, platform):
    """On other systems, names in two forms of Unicode are two files."""
    monkeypatch.setattr("sys.platform", platform)
    composed, decomposed = "caf\xe9", "cafe\u0301"
    jobs = [
        Job("a", seed=i, index=i, file=f"{name}/{name}.png")
        for i, name in enumerate((composed, decomposed), 1)
    ]
    grid = {"grid": str(tmp_path / f"{decomposed}.png")}
    preview = {"preview": 1}
    runs = [  # output, jobs, options
        (tmp_path, jobs, {"prompts_file": "p"}),
        (tmp_path / f"{composed}.png{{index}}.png", [Job("a", seed=1, index=1)], {}),
        (tmp_path, [replace(jobs[0], file=f"{composed}.png")], grid | {"prompts_file": "p"}),
        (
            tmp_path / composed,
            [Job("a", seed=1, index=1)],
            {"grid": str(tmp_path / decomposed / "now.preview.png")} | preview,
        ),
    ]
    (tmp_path / composed).mkdir()
    (tmp_path / decomposed).mkdir()
    messages = []
    for output, run_jobs, options in runs:
        try:
            name_in_run(output, run_jobs, **options)
        except UsageError as error:
            messages.append(str(error))
    if platform == "linux":
        assert messages == []
    else:
        same, is_grid, is_preview = messages
        assert "pictures 1 and 2 have the same name" in same
        assert "is also the file of a picture" in is_grid
        assert "is the file of the --preview" in is_preview


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        ("in.png", {"start_file": "in.png"}, "in.png is the picture to start from: choose another"),
        ("link.png", {"start_file": "in.png"}, "link.png is the picture to start from"),
        (
            "in.png",
            {"from_image": "./in.png"},
            "in.png is the picture that --from-image reads",
        ),
        ("new/", {"start_file": "in.png", "grid": "in.png"}, "in.png is the picture to start from"),
        (
            "in.jpg",
            {"start_file": "in.preview.png", "preview": 1},
            "--preview would be written ove",
        ),
        (".", {"from_image": "now.preview.png", "preview": 1}, "--preview would be written over"),
        ("in.png", {"lora": ((Path("in.png"), 1.0),)}, "in.png is a LoRA: choose another"),
        ("in.png", {"embedding": (("<a>", Path("in.png")),)}, "in.png is a textual inversion: ch"),
        (".", {"grid": "now.preview.png", "preview": 1}, "is the file of the --preview: choose"),
        (
            ".",
            {"prompts_file": "p", "preview": 1},
            "NOW.preview.PNG|now.preview.png is the file of",
        ),
    ],
)
def test_inputs_are_not_written_over(tmp_path, monkeypatch, output, options, message):
    """The preview of other pictures does not overwrite a picture either."""
    monkeypatch.chdir(tmp_path)
    for name in ("in.png", "in.preview.png", "now.preview.png"):
        Path(name).touch()
    Path("link.png").symlink_to("in.png")
    jobs = make_jobs(1, file="NOW.preview.PNG" if "prompts_file" in options else None)
    with pytest.raises(UsageError, match=message):
        name_in_run(output, jobs, **options)
    name_in_run("other.png", make_jobs(1), **options | {"grid": None, "prompts_file": None})


def test_inputs_may_be_written_over_by_force(tmp_path):
    file = tmp_path / "in.png"
    file.touch()
    write(file, make_jobs(1), start_file=str(file), force=True)
    assert read_index(file) == 1


def test_a_folder_that_is_not_writable(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(UsageError, match="is not writable"):
        name_in_run(tmp_path / "new" / "{index}.png", make_jobs(1))


@pytest.mark.parametrize(
    ("output", "n", "side", "fits"),
    [
        ("o.webp", 1, 16_383, True),
        ("o.webp", 1, 16_384, False),
        ("{index}.webp", 2, 16_384, False),
        ("o.webp", 20, 1024, False),
        ("o.jpg", 62, 1024, True),
        ("o.jpg", 63, 1025, False),
        ("o.png", 70, 1024, True),
    ],
)
def test_formats_have_a_largest_size(tmp_path, output, n, side, fits):
    """A picture that is too large is an error before the work, not after it."""
    options = {"steps": 1, "cfg": 1.0, "sampler": "euler"}
    jobs = [
        CompleteJob(prompt="a", seed=i, index=i, width=side, height=8, **options) for i in range(n)
    ]
    names = name_in_run(tmp_path / output, jobs)
    if fits:
        check_sizes(names, jobs, n_rows=1)
    else:
        with pytest.raises(
            UsageError, match=r"for \w+, which has at most \d+ on each side: use .png"
        ):
            check_sizes(names, jobs, n_rows=1)
