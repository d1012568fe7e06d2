"""Saving pictures, and checking where they can be saved."""

import os

import numpy as np
import pytest
from picture_arrays import RGB, assert_close, read_image, scale

from stable_diffusion.images.writing import check_output, save_image


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp"])
def test_rgb(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    save_image(path, RGB)
    assert_close(read_image(path), scale(RGB))


def test_saving_replaces_whole_files(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_image(path, RGB)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.png"]
    monkeypatch.undo()
    with pytest.raises((TypeError, ValueError)):
        save_image(path, np.zeros((2, 2, 7), np.float32))
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.png"]
    save_image(path, RGB)
    assert_close(read_image(path), scale(RGB))
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize("suffix", [".PNG", ".jpg", ".jpeg", ".webp", ".bmp", ".tiff"])
def test_known_suffixes(tmp_path, suffix):
    check_output(tmp_path / f"a{suffix}")
    assert not os.listdir(tmp_path)
    save_image(tmp_path / f"a{suffix}", RGB)
    difference = np.abs(read_image(tmp_path / f"a{suffix}") - scale(RGB))
    assert difference.mean() < 0.02


def test_unusable_outputs(tmp_path):
    for name in ("a", "a.xyz", "a.png.txt"):
        with pytest.raises(ValueError, match=r"must end in one of \.png, \.jpg"):
            check_output(tmp_path / name)
    with pytest.raises(ValueError, match="does not exist"):
        check_output(tmp_path / "nowhere" / "a.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        check_output(tmp_path / "folder.png")


def test_a_folder_without_permission(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(ValueError, match="is not writable"):
        check_output(tmp_path / "a.png")
