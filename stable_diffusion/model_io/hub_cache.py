"""The Hub's cache on disk: what this program or others have downloaded.

Its layout: each repository has a folder `models--ORGANISATION--NAME`. In it are `refs/REVISION`,
which holds a commit, and `snapshots/COMMIT/` with the files, most of them links
(https://huggingface.co/docs/huggingface_hub/guides/manage-cache).
"""

import os
from pathlib import Path

PREFIX = "models--"


def cache_folder() -> Path:
    """Return the folder of the cache, which may not exist."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(os.path.expanduser(HF_HUB_CACHE)).resolve()


def snapshot_folder(repo: str, revision: str) -> Path:
    """Return the folder of a revision in the cache, which may not exist."""
    repository = cache_folder() / f"{PREFIX}{repo.replace('/', '--')}"
    ref = repository / "refs" / revision
    commit = ref.read_text(errors="replace").strip() if ref.is_file() else revision
    return repository / "snapshots" / commit


def list_repositories() -> dict[str, Path]:
    """Return the repositories in the cache, each with the folder of its main or newest commit."""
    found = {}
    for repository in sorted(cache_folder().glob(f"{PREFIX}*")):
        repo = repository.name.removeprefix(PREFIX).replace("--", "/")
        roots = [path for path in repository.glob("snapshots/*") if path.is_dir()]
        if roots:
            main = snapshot_folder(repo, "main")
            found[repo] = main if main in roots else max(roots, key=lambda r: r.stat().st_mtime)
    return found


def count_bytes(folder: Path) -> int:
    """Return the size of the files in a folder in bytes; a file with several links counts once."""
    files = {file.resolve() for file in folder.rglob("*") if file.is_file()}
    return sum(file.stat().st_size for file in files)
