"""A known name, a folder or a Hub repository → files. The only module that knows the Hub.

Opening a repository asks the Hub once, for the commit and the names of its files. What the cache
has of that commit is used, the rest is fetched when it is asked for. Where the Hub cannot or will
not answer, the commit that the cache remembers serves. `huggingface_hub` is imported only when a
repository is opened.
"""

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ..config.known_models import MODELS, PACKAGE, find_spec
from ..utils import wording
from ..utils.atomic_files import write_atomically
from . import hub_cache
from .hub_cache import snapshot_folder
from .hub_errors import GARBLED, explain_hub_error
from .sources import CACHE_MARKER, Source
from .weight_files import weight_files, with_shards

SAME_REPOSITORY = 0.85  # likeness: of one organisation others differ by a few letters, too
COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_TIMEOUT = 10.0  # seconds to wait for an answer: what huggingface_hub waits for a file's


class Repository(Source):
    """A model on the Hub at one commit; `root` is the folder of that commit in the Hub cache.

    `listing` has the paths of all its files, with their sizes where the Hub gives them. Where the
    Hub was not to be had it is None, `why` says why, and the model has what is in the cache.
    """

    def __init__(
        self,
        repo: str,
        name: str,
        root: Path,
        listing: Mapping[str, int | None] | None,
        why: str = "",
        licence: str = "",
    ):
        super().__init__(name, root)
        self.repo = repo
        self.listing = listing
        self.why = why
        self.licence = licence

    @property
    def commit(self) -> tuple[str, str]:
        return self.repo, self.root.name

    def find(self, path: str) -> Path | None:
        cached = super().find(path)
        if cached is not None or self.listing is None or path not in self.listing:
            return cached

        from huggingface_hub import HfApi
        from huggingface_hub.errors import HTTPError

        try:
            file = Path(HfApi().hf_hub_download(self.repo, path, revision=self.root.name))
            self._require_size(path, file)
        except (HTTPError, OSError, ValueError, RuntimeError) as error:  # the last is hf-xet's
            why = explain_hub_error(error, self.repo)
            raise FileNotFoundError(f"{self.name}: {path} cannot be fetched: {why}") from error
        return file

    def _require_size(self, path: str, file: Path) -> None:
        """Throw away what was fetched if it has not the size that the Hub has listed."""
        wanted = self.listing[path]
        size = file.stat().st_size if file.is_file() else 0
        if not file.is_file() or (wanted is not None and size != wanted):
            for each in (file.resolve(), file):
                if not each.is_dir() or each.is_symlink():
                    each.unlink(missing_ok=True)
            raise OSError(f"{size} bytes came in place of {wanted}: try again")

    def announcement(self, choices: Iterable[Sequence[str]]) -> str | None:
        listing, missing = self.listing or {}, set()
        for paths in choices:
            local = [path for path in paths if super(Repository, self).find(path)]
            there = [path for path in paths if path in listing or path in local]
            for path in with_shards(there[0], listing) if there else ():
                if path in listing and super().find(path) is None:
                    missing.add(path)
        if not missing:
            return None
        size = sum(listing[path] or 0 for path in missing)
        return f"Downloading {self.repo}, {wording.format_bytes(size)}, licence: {self.licence}"

    def files(self) -> Collection[str]:
        return (self.listing or {}).keys()

    def _doubt(self) -> str:
        return "" if self.listing is not None else f" in the Hub cache, and {self.why}"


def open_model(model: str | os.PathLike[str]) -> Source:
    """Find a model: a known name of `MODELS`, else a folder, else a Hub repository.

    A repository is written `organisation/name` or `organisation/name@revision`. A path object is
    always a folder.

    Raises:
        FileNotFoundError: there is no such folder or repository, or the Hub does not give it and
            the cache does not have it.
        NotADirectoryError: it is a file.
        ValueError: it can be none of the three.
    """
    name = os.fspath(model)
    if isinstance(model, str) and name in MODELS:
        if MODELS[name].repo is None:
            return Source(name, PACKAGE / name)
        repo = MODELS[name].repo
        roots = {each: snapshot_folder(each, "main") for each in MODELS[name].repos}
        cached = [each for each in roots if (roots[each] / CACHE_MARKER).is_file()]
        if cached and cached[0] != repo:  # a withdrawn one changes no more: nothing to ask
            former, why = cached[0], f"the model is now {repo}"
            return Repository(former, former, roots[former], listing=None, why=why)
        return _open_repository(repo, "main", name=repo)

    folder = Path(os.path.expanduser(name))
    if name and folder.exists():
        if not folder.is_dir():
            raise NotADirectoryError(f"{name} is a file, not the folder of a model")
        return Source(name, folder)
    repo, at, revision = name.partition("@")
    is_path = name.startswith(("/", ".", "~")) or "\\" in name or repo.count("/") > 1
    if is_path or not isinstance(model, str):
        raise FileNotFoundError(f"there is no folder {name}")
    return _open_repository(repo, revision if at else "main", name)


def _open_repository(repo: str, revision: str, name: str) -> Repository:
    """Ask the Hub what a revision holds; where it does not say, fall back on the cache."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError

    if not revision or revision.startswith("/") or ".." in revision:  # it is a path in the cache
        raise ValueError(f"{name!r}: {revision!r} is not a revision")
    try:
        info = HfApi().model_info(repo, revision=revision, timeout=HUB_TIMEOUT, files_metadata=True)
        listing = {file.rfilename: file.size for file in info.siblings}
        if not COMMIT.fullmatch(info.sha):
            raise ValueError(f"{info.sha} is no commit")
    except HFValidationError as error:
        raise ValueError(
            f"{name!r} is neither a folder, nor a Hub repository (organisation/name), nor one of "
            + ", ".join(MODELS)
            + _suggest(name)
        ) from error
    except (HTTPError, OSError, *GARBLED) as error:
        why = explain_hub_error(error, repo)
        if (root := snapshot_folder(repo, revision)).is_dir():
            return Repository(repo, name, root, listing=None, why=why)
        homes = [spec.repo for spec in MODELS.values() if repo in spec.former_repos]
        if homes:
            hint = f" (the model is now {homes[0]})"
        else:
            hint = _suggest(repo) or ("" if "/" in repo else f" (known: {', '.join(MODELS)})")
        raise FileNotFoundError(
            f"{name} is neither a folder nor in the Hub cache, and {why}{hint}"
        ) from error
    root = snapshot_folder(repo, info.sha)
    if revision != info.sha:  # for the next time offline; downloads by commit do not note it
        ref = root.parent.parent / "refs" / revision
        with suppress(OSError):  # the cache may be read-only
            ref.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(ref, info.sha.encode())
    spec = find_spec(repo)
    said = [tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")]
    licence = spec.licence if spec else ", ".join(said) or "not stated"
    return Repository(repo, name, root, listing, licence=licence)


def announcements(source: Source, components: Iterable[str], float16: bool) -> list[str]:
    """What there is to say before the weights of some components are downloaded, if they are.

    A line for each repository: which it is, how much will come, under which licence.
    """
    homes: dict[int, tuple[Source, list[list[str]]]] = {}
    for component in components:
        home = source.vae or source if component == "vae" else source
        homes.setdefault(id(home), (home, []))[1].append(weight_files(component, float16))
    lines = (home.announcement(choices) for home, choices in homes.values())
    return [line for line in lines if line is not None]


def _suggest(name: str) -> str:
    """A known or cached model that `name` may have been meant to be, to end a message with."""
    cached = hub_cache.list_repositories()
    if "/" in name:
        present = {repo: spec.repo for spec in MODELS.values() for repo in spec.repos}
        return wording.did_you_mean(name, cached, present, SAME_REPOSITORY)
    without_organisation = {repo.rpartition("/")[2]: repo for repo in cached}
    for known, spec in MODELS.items():
        without_organisation |= {repo.rpartition("/")[2]: known for repo in spec.repos}
    return wording.did_you_mean(name, MODELS, without_organisation)
