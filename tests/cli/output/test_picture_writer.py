"""Names of files: what is asked for, what is there already, and who wins."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stable_diffusion.cli.job import Job, UsageError
from stable_diffusion.cli.output import file_names
from stable_diffusion.cli.output.picture_writer import Output
from stable_diffusion.cli.settings import Settings, StartPicture
from stable_diffusion.images import writing

PICTURE = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)


def jobs(n: int, **options) -> list[Job]:
    return [Job("a", seed=10 + i, index=i + 1, **options) for i in range(n)]


def make(output: str | Path, asked: list[Job], **options) -> Output:
    if (start := options.pop("image_file", None)) is not None:
        options["start"] = StartPicture(start, PICTURE)
    settings = Settings((), output=str(output), **{"model": "tiny"} | options)
    return Output(settings, asked)


def write(output: str | Path, asked: list[Job], **options) -> None:
    """Picture i, of those that are missing, is all i."""
    files = make(output, asked, **options)
    for job in asked:
        if not files.has(job):
            files.add(job, np.full_like(PICTURE, job.index))
    files.finish()


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def shade(file: Path) -> int:
    """Which picture it is."""
    return int(np.asarray(Image.open(file))[0, 0, 0])


def test_one_name_is_a_grid_and_is_overwritten(tmp_path):
    file = tmp_path / "o.png"
    file.write_bytes(b"old")
    write(file, jobs(2))
    assert np.asarray(Image.open(file)).shape == (20, 40, 3)
    assert names(tmp_path) == ["o.png"]


def test_a_folder_is_made_and_counts_on(tmp_path):
    """Also where there is a gap, names that are no numbers, and other formats."""
    folder = tmp_path / "a" / "b"
    write(f"{folder}/", jobs(2))
    assert names(folder) == ["0001.png", "0002.png"]
    (folder / "0007.jpg").touch()
    (folder / "99999x.png").touch()
    write(folder, jobs(2))
    assert names(folder)[2:5] == ["0007.jpg", "0008.png", "0009.png"]
    assert shade(folder / "0001.png") == 1 and shade(folder / "0009.png") == 2


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
    """In the option, and in the names of a prompts file."""
    write(tmp_path / pattern, jobs(2))
    assert names(tmp_path) == expected
    write(f"{tmp_path}/b/", jobs(2, file=pattern))
    assert names(tmp_path / "b") == expected


def test_fields(tmp_path):
    model = "org/My Model: 2@main"
    write(tmp_path / "{model}" / "x{{{index}}}-{seed}.JPG", jobs(2), model=model)
    assert names(tmp_path) == ["My-Model-2/x{0001}-10.JPG", "My-Model-2/x{0002}-11.JPG"]


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
    write(tmp_path / "{model}.png", jobs(1), model=model)
    assert names(tmp_path) == [f"{name}.png"]


def test_a_pattern_overwrites_only_by_force(tmp_path):
    """What exists is seen before anything is made; not even a folder is created for it."""
    pattern = tmp_path / "{seed}.png"
    write(pattern, jobs(2))
    with pytest.raises(UsageError, match=r"10\.png and 1 more exist: --force overwrites"):
        make(pattern, jobs(3))
    (tmp_path / "10.png").unlink()
    with pytest.raises(UsageError, match=r"11\.png exists: --force"):
        make(pattern, jobs(3))
    asked = [Job("a", seed=11, index=5)]
    write(pattern, asked, force=True)
    assert names(tmp_path) == ["11.png"] and shade(tmp_path / "11.png") == 5


def test_a_prompts_file_goes_on(tmp_path):
    asked = jobs(4)
    write(f"{tmp_path}/", asked[:3], prompts_file="p.txt")
    (tmp_path / "0002.png").unlink()
    files = make(tmp_path, asked, prompts_file="p.txt")
    assert [files.has(job) for job in asked] == [True, False, True, False]
    forced = make(tmp_path, asked, prompts_file="p.txt", force=True)
    assert not any(forced.has(job) for job in asked)


def test_what_was_killed_while_writing_is_swept_up(tmp_path):
    ours, theirs = (f".{name}.png.0123456789abcdef.partial" for name in ("0001", "other"))
    preview = ".now.preview.png.0123456789abcdef.partial"
    for name in (ours, theirs, preview):
        (tmp_path / name).touch()
    files = make(tmp_path, jobs(1), prompts_file="p.txt")
    assert names(tmp_path) == sorted([ours, theirs, preview])  # to ask deletes nothing
    files.remove_abandoned()
    assert names(tmp_path) == [theirs]


def test_names_of_lines(tmp_path):
    asked = [Job("a", 1, file="cats/{seed}.png"), Job("a", 2, index=2), Job("a", 3, index=3)]
    write(f"{tmp_path}/", asked, prompts_file="p.jsonl")
    assert names(tmp_path) == ["0002.png", "0003.png", "cats/1.png"]
    for name in ("../a.png", "/a.png", "a/../../b.png", "a\0.png"):
        with pytest.raises(UsageError, match="line 7: output .* is not a name inside the folder"):
            make(tmp_path, jobs(1, file=name, where="line 7: "), prompts_file="p.jsonl")


def test_a_grid_beside_the_pictures(tmp_path):
    """Pictures that were there before are in it."""
    folder, grid = tmp_path / "d", tmp_path / "g.png"
    write(f"{folder}/", jobs(2), prompts_file="p.txt")
    write(folder, jobs(4), prompts_file="p.txt", grid=str(grid), n_rows=2)
    assert names(tmp_path) == [*(f"d/000{i}.png" for i in (1, 2, 3, 4)), "g.png"]
    squares = np.asarray(Image.open(grid)).reshape(2, 20, 2, 20, 3)[:, 10, :, 10, 0]
    assert squares.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("has_links", [True, False])
def test_two_programs_write_into_one_folder(tmp_path, monkeypatch, has_links, force):
    """Both chose their names before the other wrote: no picture is lost."""
    one, other = (make(folder, jobs(2), force=force) for folder in (tmp_path, f"{tmp_path}/"))
    if not has_links:  # a file system without links
        monkeypatch.setattr(writing.os, "link", lambda *_: (_ for _ in ()).throw(PermissionError()))
    for files, value in ((one, 1), (other, 2)):
        for job in jobs(2):
            files.add(job, np.full_like(PICTURE, value))
    assert names(tmp_path) == [f"000{i}.png" for i in (1, 2, 3, 4)]
    assert [shade(tmp_path / name) for name in names(tmp_path)] == [1, 1, 2, 2]


def test_a_number_that_was_taken_since_the_folder_was_read(tmp_path, monkeypatch):
    monkeypatch.setattr(file_names, "_last_number", lambda folder: 0)
    (tmp_path / "0001.png").touch()
    files = make(tmp_path, jobs(1))
    monkeypatch.undo()
    files.add(jobs(1)[0], PICTURE)
    assert names(tmp_path) == ["0001.png", "0002.png"]


def test_a_name_that_was_taken_meanwhile(tmp_path):
    asked = jobs(1)
    pattern, prompts = tmp_path / "{seed}.png", tmp_path / "{index}.png"
    late, slow = make(pattern, asked), make(prompts, asked, prompts_file="p.txt")
    write(pattern, asked)
    write(prompts, asked)
    late.add(asked[0], np.full_like(PICTURE, 7))
    slow.add(asked[0], np.full_like(PICTURE, 7))  # the same picture: one is enough
    assert names(tmp_path) == ["0001.png", "10-2.png", "10.png"]
    assert shade(tmp_path / "10.png") == 1 and shade(tmp_path / "10-2.png") == 7


@pytest.mark.parametrize(
    ("output", "n", "options", "message"),
    [
        ("{sed}.png", 1, {}, r"\{sed\} is none of \{index\}, \{seed\}, \{model\}$"),
        ("{index:x}.png", 1, {}, r"\{index:x\} can only say how many digits, as \{index:06\}$"),
        ("{seed!r:9}.png", 1, {}, r"\{seed!r:9\} can only say how many digits, as \{seed:06\}$"),
        ("{index:999}.png", 1, {}, r"\{index:999\} can only say how many digits"),
        ("{index:{seed}}.png", 1, {}, r"can only say how many digits"),
        ("{index:+5d}.png", 1, {}, r"can only say how many digits"),
        ("{model:9}.png", 1, {}, r"\{model:9\} can only say \{model\}$"),
        ("{}.png", 1, {}, r"\{\} is none of"),
        ("{index.png", 1, {}, "expected '}'"),
        ("{model}.png", 2, {}, r"pictures 1 and 2 have one name, .*put \{index\} in it"),
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
    """Before anything is loaded, and nothing is created."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=message):
        make(output, jobs(n), **options)
    assert names(tmp_path) == ["file"]


def test_the_grid_is_no_picture_of_its_own(tmp_path):
    with pytest.raises(UsageError, match="is the file of a picture, too"):
        make(tmp_path / "{index}.png", jobs(1), grid=str(tmp_path / "0001.png"))


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        ("in.png", {"image_file": "in.png"}, "in.png is the picture to start from: name another"),
        ("link.png", {"image_file": "in.png"}, "link.png is the picture to start from"),
        ("in.png", {"from_image": "./in.png"}, "in.png is what --from-image reads: name another"),
        ("new/", {"image_file": "in.png", "grid": "in.png"}, "in.png is the picture to start from"),
        (
            "in.jpg",
            {"image_file": "in.preview.png", "preview": 1},
            "--preview would be written ove",
        ),
        (".", {"from_image": "now.preview.png", "preview": 1}, "--preview would be written over"),
        (".", {"grid": "now.preview.png", "preview": 1}, "is the file of the --preview: name the"),
        (
            ".",
            {"prompts_file": "p", "preview": 1},
            "NOW.preview.PNG|now.preview.png is the file of",
        ),
    ],
)
def test_what_is_read_is_not_written_over(tmp_path, monkeypatch, output, options, message):
    """Nor is one picture by the preview of the others."""
    monkeypatch.chdir(tmp_path)
    for name in ("in.png", "in.preview.png", "now.preview.png"):
        Path(name).touch()
    Path("link.png").symlink_to("in.png")
    asked = jobs(1, file="NOW.preview.PNG" if "prompts_file" in options else None)
    with pytest.raises(UsageError, match=message):
        make(output, asked, **options)
    make("other.png", jobs(1), **options | {"grid": None, "prompts_file": None})


def test_what_is_read_may_be_forced(tmp_path):
    file = tmp_path / "in.png"
    file.touch()
    write(file, jobs(1), image_file=str(file), force=True)
    assert shade(file) == 1


def test_a_folder_that_is_not_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(UsageError, match="is not writable"):
        make(tmp_path / "new" / "{index}.png", jobs(1))


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
    """It is said before the work, not after it."""
    asked = jobs(n, width=side, height=8)
    files = make(tmp_path / output, asked)
    if fits:
        files.check_sizes(asked)
    else:
        with pytest.raises(UsageError, match=r"pixels, and \w+ has at most \d+ a side: use .png"):
            files.check_sizes(asked)


@pytest.mark.parametrize("suffix", writing.FORMATS)
def test_the_largest_size_of_a_format(tmp_path, suffix):
    side = writing.MAX_SIDE.get(writing.FORMATS[suffix], 70_000)
    writing.save_image(tmp_path / f"o{suffix}", np.zeros((1, side, 3), np.uint8))
    assert Image.open(tmp_path / f"o{suffix}").size == (side, 1)


def test_sizes_that_make_no_grid(tmp_path):
    files = make(f"{tmp_path}/", jobs(2), grid=str(tmp_path / "g.png"))
    first, second = jobs(2)
    files.add(first, PICTURE)
    files.add(second, PICTURE[:2])
    with pytest.raises(ValueError, match="pictures of different sizes make no grid"):
        files.finish()
    assert names(tmp_path) == ["0001.png", "0002.png"]
