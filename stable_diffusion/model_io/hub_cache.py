"""The Hub's cache on disk: what was downloaded once, by this program or by others.

Its layout: a folder `models--ORGANISATION--NAME` a repository, in it `refs/REVISION`, which holds a
commit, and `snapshots/COMMIT/` with the files, most of them links
(https://huggingface.co/docs/huggingface_hub/guides/manage-cache).
"""

import os
from pathlib import Path

PREFIX = "models--"


def cache_folder() -> Path:
    """The cache, there or not."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(os.path.expanduser(HF_HUB_CACHE)).resolve()


def snapshot_folder(repo: str, revision: str) -> Path:
    """The folder of a revision, there or not."""
    repository = cache_folder() / f"{PREFIX}{repo.replace('/', '--')}"
    ref = repository / "refs" / revision
    commit = ref.read_text(errors="replace").strip() if ref.is_file() else revision
    return repository / "snapshots" / commit


def list_repositories() -> dict[str, Path]:
    """The models of which there is something, each with the folder of its main or newest commit."""
    found = {}
    for repository in sorted(cache_folder().glob(f"{PREFIX}*")):
        repo = repository.name.removeprefix(PREFIX).replace("--", "/")
        roots = [path for path in repository.glob("snapshots/*") if path.is_dir()]
        if roots:
            main = snapshot_folder(repo, "main")
            found[repo] = main if main in roots else max(roots, key=lambda r: r.stat().st_mtime)
    return found


def count_bytes(folder: Path) -> int:
    """Bytes of the files in a folder; what several links lead to counts once."""
    files = {file.resolve() for file in folder.rglob("*") if file.is_file()}
    return sum(file.stat().st_size for file in files)
