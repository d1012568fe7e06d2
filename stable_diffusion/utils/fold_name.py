"""Compare names of files as the file system of a Mac does."""

import os
import sys
import unicodedata


def fold_name(name: str | os.PathLike[str]) -> str:
    """Return a key that is the same for names that the system takes for one file.

    APFS, the file system of Macs, ignores the form of Unicode (é as one character or as two) and,
    by default, upper and lower case. On other systems the key is the name itself. If files exist,
    ask the file system instead (`os.path.samefile`).
    """
    text = os.fspath(name)
    if sys.platform != "darwin":
        return text
    # Canonical caseless matching, The Unicode Standard, section 3.13, D145.
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", text).casefold())
