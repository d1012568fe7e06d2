"""`fold_name`: which names are one file on a Mac."""

from pathlib import Path

import pytest

from stable_diffusion.utils.fold_name import fold_name


@pytest.mark.parametrize(
    ("one", "other", "are_one"),
    [
        ("caf\xe9.png", "cafe\u0301.png", True),  # é as one character, and as two
        ("Caf\xe9.PNG", "cafe\u0301.png", True),
        ("\u01d5", "\xfc\u0304", True),  # the cases of Ǖ are decomposed in two steps
        ("\u1e9b\u0323", "\u1e69", True),  # a letter whose decomposition is reordered by its case
        ("cafe.png", "caf\xe9.png", False),
        ("a.png", "b.png", False),
    ],
)
def test_names_on_a_mac(monkeypatch, one, other, are_one):
    monkeypatch.setattr("sys.platform", "darwin")
    assert (fold_name(one) == fold_name(other)) is are_one


def test_names_on_linux_are_themselves(monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    assert fold_name("Cafe\u0301.png") == "Cafe\u0301.png"
    assert fold_name(Path("a/B")) == "a/B"
