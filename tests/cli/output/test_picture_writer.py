"""Pictures are written under their names, and no picture of another program is lost."""

import numpy as np
import pytest
from picture_files import PICTURE, list_files, make_jobs, make_writer, read_index, write
from PIL import Image

from stable_diffusion.images import writing


def test_one_name_is_a_grid_and_is_overwritten(tmp_path):
    file = tmp_path / "o.png"
    file.write_bytes(b"old")
    write(file, make_jobs(2))
    assert np.asarray(Image.open(file)).shape == (20, 40, 3)
    assert list_files(tmp_path) == ["o.png"]


def test_a_grid_beside_the_pictures(tmp_path):
    """Pictures that existed before are in it."""
    folder, grid = tmp_path / "d", tmp_path / "g.png"
    write(f"{folder}/", make_jobs(2), prompts_file="p.txt")
    write(folder, make_jobs(4), prompts_file="p.txt", grid=str(grid), n_rows=2)
    assert list_files(tmp_path) == [*(f"d/000{i}.png" for i in (1, 2, 3, 4)), "g.png"]
    squares = np.asarray(Image.open(grid)).reshape(2, 20, 2, 20, 3)[:, 10, :, 10, 0]
    assert squares.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("has_links", [True, False])
def test_two_programs_write_into_one_folder(tmp_path, monkeypatch, has_links, force):
    """Both chose their names before the other one wrote: no picture is lost."""
    folders = (tmp_path, f"{tmp_path}/")
    one, other = (make_writer(folder, make_jobs(2), force=force) for folder in folders)
    if not has_links:  # a file system without links
        monkeypatch.setattr(writing.os, "link", lambda *_: (_ for _ in ()).throw(PermissionError()))
    for writer, value in ((one, 1), (other, 2)):
        for job in make_jobs(2):
            writer.add(job, np.full_like(PICTURE, value))
    assert list_files(tmp_path) == [f"000{i}.png" for i in (1, 2, 3, 4)]
    assert [read_index(tmp_path / name) for name in list_files(tmp_path)] == [1, 1, 2, 2]


def test_a_number_that_was_taken_since_the_folder_was_read(tmp_path):
    writer = make_writer(tmp_path, make_jobs(1))
    (tmp_path / "0001.png").touch()
    writer.add(make_jobs(1)[0], PICTURE)
    assert list_files(tmp_path) == ["0001.png", "0002.png"]


def test_a_name_that_was_taken_meanwhile(tmp_path):
    jobs = make_jobs(1)
    pattern, prompts = tmp_path / "{seed}.png", tmp_path / "{index}.png"
    late = make_writer(pattern, jobs)
    slow = make_writer(prompts, jobs, prompts_file="p.txt")
    write(pattern, jobs)
    write(prompts, jobs)
    late.add(jobs[0], np.full_like(PICTURE, 7))
    slow.add(jobs[0], np.full_like(PICTURE, 7))  # the same picture is not written twice
    assert list_files(tmp_path) == ["0001.png", "10-2.png", "10.png"]
    assert read_index(tmp_path / "10.png") == 1 and read_index(tmp_path / "10-2.png") == 7


@pytest.mark.parametrize("suffix", writing.FORMATS)
def test_the_largest_size_of_a_format(tmp_path, suffix):
    side = writing.MAX_SIDE.get(writing.FORMATS[suffix], 70_000)
    writing.save_image(tmp_path / f"o{suffix}", np.zeros((1, side, 3), np.uint8))
    assert Image.open(tmp_path / f"o{suffix}").size == (side, 1)


def test_sizes_that_make_no_grid(tmp_path):
    writer = make_writer(f"{tmp_path}/", make_jobs(2), grid=str(tmp_path / "g.png"))
    first, second = make_jobs(2)
    writer.add(first, PICTURE)
    writer.add(second, PICTURE[:2])
    with pytest.raises(ValueError, match="pictures of different sizes cannot make a grid"):
        writer.finish()
    assert list_files(tmp_path) == ["0001.png", "0002.png"]
