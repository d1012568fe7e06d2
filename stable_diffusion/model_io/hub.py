"""From a model's name to its source: a known name, a folder, or a repository on the Hub.

Only this module asks the Hub. Opening a repository asks it once, for the commit and the names of
its files. Files of that commit that are in the cache are used, the others are downloaded when they
are asked for. If the Hub cannot or will not answer, the commit that the cache remembers is used.
`huggingface_hub` is imported only if a repository is opened.
"""

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ..config.known_models import (
    MODELS,
    NAMES,
    PACKAGE,
    ModelSpec,
    find_few_step_model,
    find_spec,
)
from ..utils.atomic_files import write_atomically
from ..utils.wording import did_you_mean, format_bytes
from . import hub_cache
from .hub_cache import snapshot_folder
from .sources import CACHE_MARKER, Source
from .weight_files import add_shards

# Of two repository names that may mean the same: different repositories of one organisation may
# also differ only by a few letters.
MIN_LIKENESS = 0.85
COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_TIMEOUT = 10.0  # seconds to wait for an answer, as long as huggingface_hub waits for a file
# What is raised for answers that are not from the Hub, such as the login page of a network.
GARBLED = (ValueError, TypeError, LookupError, AttributeError, RecursionError)


class Repository(Source):
    """A model on the Hub at one commit.

    Args:
        repo: its name, "organisation/name".
        name: the model's name in messages.
        root: the folder of the commit in the Hub's cache.
        listing: the paths of all its files, with their sizes if the Hub says them; None if the
            Hub did not answer, and the model has only what is in the cache.
        why: why there is no listing, for messages.
        licence: its licence, for the announcement.
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
        self.has_listing = listing is not None
        self.listing = {} if listing is None else listing
        self.why = why
        self.licence = licence

    @property
    def commit(self) -> tuple[str, str]:
        return self.repo, self.root.name

    def find(self, path: str) -> Path | None:
        cached = super().find(path)
        if cached is not None or path not in self.listing:
            return cached

        from huggingface_hub import HfApi
        from huggingface_hub.errors import HTTPError

        try:
            file = Path(HfApi().hf_hub_download(self.repo, path, revision=self.root.name))
            self._check_size(path, file)
        except (HTTPError, OSError, ValueError, RuntimeError) as error:  # hf-xet raises the last
            why = explain_hub_error(error, self.repo)
            raise FileNotFoundError(f"{self.name}: {path} cannot be fetched: {why}") from error
        return file

    def _check_size(self, path: str, file: Path) -> None:
        """Check that a downloaded file has the size that the Hub listed; delete it if not.

        Raises:
            OSError: if it has another size.
        """
        wanted = self.listing[path]
        size = file.stat().st_size if file.is_file() else 0
        if not file.is_file() or (wanted is not None and size != wanted):
            for each in (file.resolve(), file):
                if not each.is_dir() or each.is_symlink():
                    each.unlink(missing_ok=True)
            raise OSError(f"the download has {size} bytes instead of {wanted}: try again")

    def describe_download(self, choices: Iterable[Sequence[str]]) -> str | None:
        missing: set[str] = set()
        for paths in choices:
            local = [path for path in paths if super(Repository, self).find(path)]
            there = [path for path in paths if path in self.listing or path in local]
            for path in add_shards(there[0], self.listing) if there else ():
                if path in self.listing and super().find(path) is None:
                    missing.add(path)
        if not missing:
            return None
        size = sum(self.listing[path] or 0 for path in missing)
        return f"Downloading {self.repo}, {format_bytes(size)}, licence: {self.licence}"

    def files(self) -> Collection[str]:
        return self.listing.keys()

    def absence_note(self) -> str:
        return "" if self.has_listing else f" in the Hub cache, and {self.why}"


def open_source(model: str | os.PathLike[str]) -> Source:
    """Find the files of a model: a known name of `MODELS`, else a folder, else a Hub repository.

    Args:
        model: a repository is written `organisation/name` or `organisation/name@revision`. A path
            object is always a folder.

    Raises:
        FileNotFoundError: if there is no such folder or repository, or if it is neither on the
            Hub nor in the cache.
        NotADirectoryError: if it is a file.
        ValueError: if it can be none of the three.
    """
    name = os.fspath(model)
    if isinstance(model, str) and name in MODELS:
        return _open_known(name, MODELS[name])
    if isinstance(model, str) and (found := find_few_step_model(name)) is not None:
        few_step, steps = found
        raise ValueError(
            f"{name} is {few_step.base} with a LoRA, which is not added here: give "
            f"{few_step.base}, and the LoRA when you draw (--lora {few_step.name_file(steps)})"
        )
    folder = Path(os.path.expanduser(name))
    if name and folder.exists():
        if not folder.is_dir():
            raise NotADirectoryError(f"{name} is a file, not the folder of a model")
        return Source(name, folder)
    repo, at, revision = name.partition("@")
    is_path = name.startswith(("/", ".", "~")) or "\\" in name or repo.count("/") > 1
    if is_path or not isinstance(model, str):
        raise FileNotFoundError(f"there is no folder {name}")
    return open_repository(repo, revision if at else "main", name)


def _open_known(name: str, spec: ModelSpec) -> Source:
    """Open a known model: the one in this package, or a repository."""
    if spec.repo is None:
        return Source(name, PACKAGE / name)
    roots = {repo: snapshot_folder(repo, "main") for repo in spec.repos}
    cached = [repo for repo in roots if (roots[repo] / CACHE_MARKER).is_file()]
    if cached and cached[0] != spec.repo:  # a withdrawn one never changes: no need to ask
        former, why = cached[0], f"the model is now {spec.repo}"
        return Repository(former, former, roots[former], listing=None, why=why)
    return open_repository(spec.repo, "main", name=spec.repo)


def open_repository(repo: str, revision: str, name: str) -> Repository:
    """Ask the Hub for a revision of a repository; open the cached one if it does not answer.

    Raises:
        FileNotFoundError: if the Hub does not answer, or has no such revision, and the cache has
            none either.
        ValueError: if it cannot be the name of a repository or revision.
    """
    from huggingface_hub.errors import HFValidationError, HTTPError

    if not revision or revision.startswith("/") or ".." in revision:  # a path in the cache has it
        raise ValueError(f"{name!r}: {revision!r} is not a revision")
    try:
        commit, listing, licence = _ask_hub(repo, revision)
    except HFValidationError as error:
        raise ValueError(
            f"{name!r} is neither a folder, nor a Hub repository (organisation/name), nor one of "
            + ", ".join(NAMES)
            + _suggest(name)
        ) from error
    except (HTTPError, OSError, *GARBLED) as error:
        why = explain_hub_error(error, repo)
        if (root := snapshot_folder(repo, revision)).is_dir():
            return Repository(repo, name, root, listing=None, why=why)
        raise FileNotFoundError(
            f"{name} is neither a folder nor in the Hub cache, and {why}{_suggest_other(repo)}"
        ) from error
    root = snapshot_folder(repo, commit)
    if revision != commit:
        _remember_commit(root, revision)
    if (spec := find_spec(repo)) is not None:
        licence = spec.licence
    return Repository(repo, name, root, listing, licence=licence)


def _ask_hub(repo: str, revision: str) -> tuple[str, dict[str, int | None], str]:
    """Return what the Hub says about a revision: its commit, its files with sizes, the licence.

    Raises:
        HFValidationError: if `repo` cannot be the name of a repository.
        HTTPError, OSError: if the Hub does not answer, or refuses.
        Exception: one of `GARBLED`, if what answers is not the Hub.
    """
    from huggingface_hub import HfApi

    info = HfApi().model_info(repo, revision=revision, timeout=HUB_TIMEOUT, files_metadata=True)
    if info.sha is None or not COMMIT.fullmatch(info.sha):
        raise ValueError(f"{info.sha} is not a commit")
    if info.siblings is None:
        raise ValueError("there is no list of files")
    listing = {file.rfilename: file.size for file in info.siblings}
    tags = info.tags or ()
    licences = [tag.removeprefix("license:") for tag in tags if tag.startswith("license:")]
    return info.sha, listing, ", ".join(licences) or "not stated"


def _remember_commit(root: Path, revision: str) -> None:
    """Note in the cache which commit a revision is, for later runs without the Hub.

    huggingface_hub does not, because files are downloaded by their commit.
    """
    ref = root.parent.parent / "refs" / revision
    with suppress(OSError):  # the cache may be read-only
        ref.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(ref, root.name.encode())


def _suggest_other(repo: str) -> str:
    """Return the model that may be meant by a repository that cannot be found, for a message."""
    successors = [spec.repos[0] for spec in MODELS.values() if repo in spec.former_repos]
    if successors:
        return f" (the model is now {successors[0]})"
    return _suggest(repo) or ("" if "/" in repo else f" (known: {', '.join(NAMES)})")


def _suggest(name: str) -> str:
    """Return ": did you mean …?" with a known or cached model of a similar name, or ""."""
    cached = hub_cache.list_repositories()
    if "/" in name:
        present = {repo: spec.repos[0] for spec in MODELS.values() for repo in spec.repos}
        return did_you_mean(name, cached, present, MIN_LIKENESS)
    without_organisation = {repo.rpartition("/")[2]: repo for repo in cached}
    for known, spec in MODELS.items():
        without_organisation |= {repo.rpartition("/")[2]: known for repo in spec.repos}
    return did_you_mean(name, NAMES, without_organisation)


def explain_hub_error(error: Exception, repo: str) -> str:
    """Return what a failed call to the Hub means and what to do, as the end of a sentence."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # why a download could not begin
    cause = str(error).strip().partition("\n")[0] or type(error).__name__
    if type(error).__name__ in ("RemoteProtocolError", "ReadError"):  # of httpx
        return f"the connection was interrupted ({cause}): try again; complete files are kept"
    match error:
        case errors.GatedRepoError():
            page = f"https://huggingface.co/{repo}"
            return f"the repository is gated: accept its licence at {page}, then `hf auth login`"
        case errors.RevisionNotFoundError():
            return "the Hub has no such revision of it"
        case errors.HfHubHTTPError(response=response) if response.status_code in (401, 403, 404):
            return "the Hub has no such repository (or it is private: `hf auth login`)"
        case errors.HfHubHTTPError(response=response):
            return f"the Hub answers {response.status_code} {response.reason_phrase}: try later"
        case errors.OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set: go online once to download it"
        case errors.HTTPError():
            return f"the Hub cannot be reached ({cause}): go online once to download it"
    if isinstance(error, GARBLED):
        return f"the answer is not from the Hub ({cause[:100]}): go online once to download it"
    return cause
