"""One file by its name: a path, a folder with one file in it, or a file of a Hub repository."""

import os
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..utils.wording import join_names
from .hub import Repository, open_repository
from .sources import CONVERT_PICKLE, INDEX, PICKLES

SUFFIX = ".safetensors"
MAIN = "main"  # the revision of a repository if none is given

_SEGMENT = r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?"  # as huggingface_hub asks
# A revision is one segment, unless it is one of the Hub's own: refs/pr/1, refs/convert/parquet.
_REVISION = r"refs/[^/@]+/[^/@]+|[^/@]+"
_HUB_NAME = re.compile(
    rf"(?P<repo>{_SEGMENT}/{_SEGMENT})(@(?P<revision>{_REVISION}))?(/(?P<path>[^@]+?))?/?"
    r"(@(?P<last_revision>[^@]+))?"
)

Announce = Callable[[str], object]


@dataclass(frozen=True)
class HubName:
    """The name of a file, or of the folder that it is in, in a repository on the Hub."""

    repo: str
    path: str  # "" for the repository itself
    revision: str

    def __str__(self) -> str:
        at = "" if self.revision == MAIN else f"@{self.revision}"
        return f"{self.repo}{at}/{self.path}".rstrip("/")


@dataclass(frozen=True)
class ResolvedFile(os.PathLike[str]):
    """A file on this machine, and where it came from. It can be used as its path.

    Attributes:
        path: the file.
        name: what the user called it, for messages and recipes.
        repo: the repository that it is from, "organisation/name", or None.
        filename: its path in that repository, or None.
        revision: the commit of that repository, or None.
    """

    path: Path
    name: str
    repo: str | None = None
    filename: str | None = None
    revision: str | None = None

    @property
    def commit(self) -> tuple[str, str] | None:
        """Return its path on the Hub, "organisation/name/FILE", and the commit, or None."""
        if self.repo is None or self.revision is None:
            return None
        return f"{self.repo}/{self.filename}", self.revision

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return self.name


def resolve_file(
    name: str | os.PathLike[str],
    what: str,
    preferred: Sequence[str] = (),
    beside: Sequence[str] = (),
    announce: Announce | None = None,
) -> ResolvedFile:
    """Find a safetensors file by its name, and download it if it is on the Hub.

    What exists on this machine is taken from there. A file that is resolved already is returned as
    it is.

    Args:
        name: a file; a folder; or on the Hub `organisation/name`, which may have `/PATH` after it,
            of a file or folder of the repository, and `@REVISION` after either. A path object is
            never on the Hub.
        what: what the file is, for messages, such as "LoRA".
        preferred: names of files to take from a folder or repository. If it has none of them, it
            must have one safetensors file only.
        beside: names of other files to download, if they are in the same folder.
        announce: called with a line about the download before it begins.

    Raises:
        OSError: if there is no such file, or it cannot be downloaded.
        ValueError: if a folder or repository has several files, only pickles or a whole model.
    """
    if isinstance(name, ResolvedFile):
        return name
    text = os.fspath(name)
    path = os.path.expanduser(text)
    if os.path.isdir(path):
        files = [file for file in Path(path).glob("*") if file.is_file()]
        chosen = _choose(text.rstrip("/") or "/", [file.name for file in files], what, preferred)
        return ResolvedFile(Path(path) / chosen, str(Path(path)))
    hub_name = parse_hub_name(text) if isinstance(name, str) else None
    if os.path.exists(path) or hub_name is None:
        if not os.path.isfile(path):
            raise FileNotFoundError(f"no such {what} file: {text}")
        return ResolvedFile(Path(path), str(Path(path)))
    return _download(text, hub_name, what, preferred, beside, announce)


def parse_hub_name(text: str) -> HubName | None:
    """Return the repository, path and revision of a name on the Hub; None if it cannot be one.

    `style/fur.safetensors` is no such name, because the name of a repository has two parts.
    """
    match = _HUB_NAME.fullmatch(text)
    if match is None or ".." in text or "--" in match["repo"]:
        return None
    if match["revision"] and match["last_revision"]:
        return None
    is_in_a_folder = match["path"] is not None and os.path.isdir(os.path.dirname(text))
    if is_in_a_folder:  # of this machine, so a wrong name in it is not a name on the Hub
        return None
    if match["path"] is None and match["repo"].endswith((SUFFIX, *PICKLES)):
        return None
    revision = match["revision"] or match["last_revision"] or MAIN
    return HubName(match["repo"], match["path"] or "", revision)


def _download(
    name: str,
    hub_name: HubName,
    what: str,
    preferred: Sequence[str],
    beside: Sequence[str],
    announce: Announce | None,
) -> ResolvedFile:
    """Return a file of a repository, from the cache or downloaded; see `resolve_file`."""
    repository = open_repository(hub_name.repo, hub_name.revision, hub_name.repo)
    paths = _list_files(repository)
    path = hub_name.path
    if path not in paths:
        note = repository.absence_note()
        folder = f"{path}/" if path else ""
        inside = [each.removeprefix(folder) for each in paths if each.startswith(folder)]
        if path and not inside:
            listed = join_names(_select_weights(paths)) or "no safetensors file"
            raise FileNotFoundError(f"{hub_name.repo} has no {path}{note}; it has {listed}")
        path = folder + _choose(str(hub_name), inside, what, preferred, note)
    if path.endswith(PICKLES):
        raise ValueError(f"{name} is a pickle, and pickles are never loaded: {_advise(paths)}")
    wanted = [path, *(str(PurePosixPath(path).with_name(each)) for each in beside)]
    line = repository.describe_download([[each] for each in wanted if each in paths])
    if line is not None and announce is not None:
        announce(line)
    file = repository.require(path)
    for each in wanted[1:]:
        repository.find(each)
    return ResolvedFile(file, name, hub_name.repo, path, repository.root.name)


def _list_files(repository: Repository) -> list[str]:
    """Return the paths of a repository's files; only those in the cache if it cannot be asked."""
    if repository.has_listing:
        return sorted(repository.files())
    files = (file for file in repository.root.rglob("*") if file.is_file())
    return sorted(file.relative_to(repository.root).as_posix() for file in files)


def _select_weights(paths: Collection[str]) -> list[str]:
    return sorted(path for path in paths if path.endswith(SUFFIX))


def _choose(
    where: str, paths: Collection[str], what: str, preferred: Sequence[str], note: str = ""
) -> str:
    """Return the file to take from a folder or a repository.

    Args:
        where: its name, for messages.
        paths: of the files in it.
        note: what to add to the message if there is none.

    Raises:
        FileNotFoundError: if there is no safetensors file.
        ValueError: if there are several, only pickles, or a whole model.
    """
    for name in preferred:
        if name in paths:
            return name
    if INDEX in paths:
        raise ValueError(f"{where} is a whole model, not a {what}: give it with --model")
    found = _select_weights(paths)
    found = [path for path in found if "/" not in path] or found
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"{where} has {len(found)} safetensors files: name one of them, such as "
            f"{where}/{found[0]} ({join_names(found)})"
        )
    if pickles := [path for path in paths if path.endswith(PICKLES)]:
        raise ValueError(
            f"{where} has {min(pickles)} but no safetensors file, and pickles are never loaded: "
            + _advise(paths)
        )
    raise FileNotFoundError(f"{where} has no safetensors file{note}")


def _advise(paths: Collection[str]) -> str:
    """Return what to do in place of loading a pickle, as the end of a sentence."""
    if found := _select_weights(paths):
        return f"take one of {join_names(found)}"
    return f"if you trust the file, {CONVERT_PICKLE}"
