import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ..utils.strict_json import read_json
from .weight_files import FULL, STEMS, weight_files

pass

# A repository with it in the cache is one that was used; also by Apple's original example, which
# leaves no model_index.json.
CACHE_MARKER = "unet/config.json"
PICKLES = (".bin", ".ckpt", ".pt", ".pth")  # opening one can run code
SHARD_NAME = re.compile(r"[^/\\]+\.safetensors")  # a plain file name, which cannot lead elsewhere


class Source:
    """The files of a model, or of some components of it, in a folder.

    `name` is how messages call the model, `root` the folder. Paths are relative to it and have
    forward slashes, as in "unet/config.json". `vae` is where the VAE comes from if not from here,
    `prediction_type` what the UNet predicts, whatever the files say: as the user wants it.
    """

    vae: "Source | None" = None
    prediction_type: str | None = None

    def __init__(self, name: str, root: Path):
        self.name = name
        self.root = root

    @property
    def commit(self) -> tuple[str, str] | None:
        """The repository and the commit of it, where the files come from the Hub."""
        return None

    def find(self, path: str) -> Path | None:
        """The local file, fetched if need be; None where the model has no such file.

        Raises:
            FileNotFoundError: the model has it, but it cannot be fetched.
        """
        file = self.root / path
        return file if file.is_file() else None

    def require(self, path: str) -> Path:
        """Like `find`, for a file that must be there.

        Raises:
            FileNotFoundError: the model has no such file, or it cannot be fetched.
            ValueError: it has not, and its weights are pickles only.
        """
        if (file := self.find(path)) is None:
            raise self._absent(path)
        return file

    def config(self, path: str) -> tuple[Any, str]:
        """What a JSON file says, and what messages call the file.

        Raises:
            FileNotFoundError, ValueError: as `require`; and it is no JSON.
        """
        file = self.require(path)
        try:
            return read_json(file), str(file)
        except ValueError as error:
            raise ValueError(f"{file} is not a JSON file: {error}") from None

    def weights(self, component: str, float16: bool) -> list[Path]:
        """The safetensors files of "unet", "vae", "text_encoder" or "text_encoder_2".

        One file where the model is converted, or the shards that an index names. With
        `float16` the fp16 variant if the model has one, else the full files; without, the other
        way round. Full files that are there already serve `float16` too: nothing is fetched twice.

        Raises:
            FileNotFoundError: there are none, a shard is missing, or one cannot be fetched.
            ValueError: there are only pickles, or an index is malformed.
        """
        paths = weight_files(component, float16)
        if float16:
            paths.sort(key=lambda path: not (self.root / path).is_file())
        for path in paths:
            if (file := self.find(path)) is not None:
                return self._shards(component, file) if path.endswith(".json") else [file]
        raise self._absent(f"{component}/{FULL[0].format(STEMS[component])}")

    def announcement(self, choices: Iterable[Sequence[str]]) -> str | None:
        """What there is to say before a download; None where there is none.

        Of each of `choices` the first file that the model has will be wanted.
        """
        return None

    def files(self) -> Collection[str]:
        """The paths of all files that the model is known to have."""
        found = [*self.root.glob("*"), *self.root.glob("*/*")]  # not all of somebody's home folder
        return [file.relative_to(self.root).as_posix() for file in found if file.is_file()]

    def _shards(self, component: str, index: Path) -> list[Path]:
        """The files that an index names, each once, in its order."""
        where = f"{self.name}: {component}/{index.name}"
        try:
            names = list(dict.fromkeys(read_json(index)["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{where} is not a JSON object with a weight_map") from error
        if not names:
            raise ValueError(f"{where} names no files")
        for name in names:  # all, before the first is fetched
            is_plain = isinstance(name, str) and SHARD_NAME.fullmatch(name) and name.isprintable()
            if not is_plain:
                told = repr(name)[:100]
                raise ValueError(f"{where} names {told}, which is no safetensors file beside it")
        return [self.require(f"{component}/{name}") for name in names]

    def _absent(self, path: str) -> Exception:
        """The error to raise for a file that the model does not have."""
        for folder in (f"{PurePosixPath(path).parent}/", ""):
            files = [file for file in self.files() if file.startswith(folder)]
            pickles = sorted(file for file in files if file.endswith(PICKLES))
            if pickles and not any(file.endswith(".safetensors") for file in files):
                return ValueError(
                    f"{self.name} has {pickles[0]} but no safetensors there, and pickles are never "
                    "loaded: convert it in diffusers, save_pretrained(..., safe_serialization=True)"
                )
        return FileNotFoundError(f"{self.name} has no {path}{self._doubt()}")

    def _doubt(self) -> str:
        return ""


class BareVae(Source):
    """A VAE that lies in a folder or repository by itself, seen as the VAE of a model."""

    def __init__(self, source: Source):
        super().__init__(source.name, source.root)
        self.source = source

    @property
    def commit(self) -> tuple[str, str] | None:
        return self.source.commit

    def find(self, path: str) -> Path | None:
        return self.source.find(path.removeprefix("vae/"))

    def announcement(self, choices: Iterable[Sequence[str]]) -> str | None:
        plain = ([path.removeprefix("vae/") for path in paths] for paths in choices)
        return self.source.announcement(plain)

    def files(self) -> Collection[str]:
        return [f"vae/{file}" for file in self.source.files()]
