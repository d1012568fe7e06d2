"""Where the files of a model come from: a folder here, other sources in `hub` and `single_file`.

Each source answers for itself: where its files are, how its weights are named, what pads its
prompts and how its VAE scales the latents.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from copy import copy, deepcopy
from pathlib import Path, PurePosixPath
from typing import Any, Self

from ..config.autoencoder_tiny import is_tiny
from ..config.known_models import PAD_TOKEN, find_spec
from ..config.networks import AutoencoderConfig
from ..utils.strict_json import read_json
from .layouts import LAYOUTS, Layout
from .weight_files import ALL_STEMS, FULL, NATIVE, list_weight_files

INDEX = "model_index.json"
SCHEDULER_CONFIG, VAE_CONFIG = "scheduler/scheduler_config.json", "vae/config.json"
# A repository with this file in the cache has been used; also by the original MLX example, which
# does not download model_index.json.
UNET_CONFIG = CACHE_MARKER = "unet/config.json"
PICKLES = (".bin", ".ckpt", ".pt", ".pth")  # opening one can run code
CONVERT_PICKLE = (  # what to do with the pickle of one network or adapter, as the end of a sentence
    "convert it in PyTorch, safetensors.torch.save_file(torch.load(FILE, weights_only=True), "
    "NEW_FILE)"
)
SHARD_NAME = re.compile(r"[^/\\]+\.safetensors")  # a plain file name, which stays in its folder


class Source:
    """The files of a model, or of some of its components, in a folder.

    Paths are relative to the folder and have forward slashes, as in "unet/config.json". A config
    file is read once; open the folder again to see a change.

    Args:
        name: the model's name in messages.
        root: the folder.
    """

    # What the UNet predicts, if the user says so: it takes precedence over the files.
    prediction_type: str | None = None
    # Of one file from the Hub: its path there, "organisation/name/FILE", and the commit.
    file_commit: tuple[str, str] | None = None

    def __init__(self, name: str, root: Path):
        self.name = name
        self.root = root
        self._configs: dict[str, tuple[Any, str]] = {}  # by path: what was read, and the file

    @property
    def commit(self) -> tuple[str, str] | None:
        """Return the repository and its commit, or None if the files are not from the Hub."""
        return self.file_commit

    def with_prediction_type(self, prediction_type: str) -> Self:
        """Return a copy for which the UNet predicts what the user says, not what the files say."""
        changed = copy(self)
        changed.prediction_type = prediction_type
        return changed

    def find(self, path: str) -> Path | None:
        """Return the local file, downloaded if necessary, or None if the model has no such file.

        Raises:
            FileNotFoundError: if the model has it, but it cannot be downloaded.
        """
        file = self.root / path
        return file if file.is_file() else None

    def require(self, path: str) -> Path:
        """Return the local file, as `find` does, if there must be one.

        Raises:
            FileNotFoundError: if the model has no such file, or it cannot be downloaded.
            ValueError: if the model has no such file, and its weights are pickles only.
        """
        if (file := self.find(path)) is None:
            raise self._absence(path)
        return file

    def config(self, path: str) -> tuple[Any, str]:
        """Return the content of a JSON file, and the name of the file for messages.

        The file is read once. The content is a copy, which the caller may change.

        Raises:
            FileNotFoundError, ValueError: as `require` does, and if the file is not JSON.
        """
        if path not in self._configs:
            file = self.require(path)
            try:
                # A number that is not finite is an error only in a key that is used.
                self._configs[path] = read_json(file, must_be_finite=False), str(file)
            except ValueError as error:
                raise ValueError(f"{file} is not a JSON file: {error}") from None
        content, name = self._configs[path]
        return deepcopy(content), name

    def weights(self, component: str, float16: bool) -> list[Path]:
        """Return the safetensors files of a component: one, or the shards that an index names.

        With `float16` the fp16 variant is preferred to the full files, without it the full files.
        Full files that are already there serve `float16` too, so that nothing is downloaded twice.

        Args:
            component: "unet", "vae", "text_encoder", "text_encoder_2" or "controlnet".

        Raises:
            FileNotFoundError: if there are none, a shard is missing, or one cannot be downloaded.
            ValueError: if there are only pickles, or an index is malformed.
        """
        paths = list_weight_files(component, float16)
        if float16:
            paths.sort(key=lambda path: not (self.root / path).is_file())
        for path in paths:
            if (file := self.find(path)) is not None:
                return self._find_shards(component, file) if path.endswith(".json") else [file]
        raise self._absence(f"{component}/{FULL[0].format(ALL_STEMS[component])}")

    def is_native(self, file: Path) -> bool:
        """Return whether a weight file has MLX's layout and this package's names."""
        return file.name == NATIVE

    def layout(self, component: str) -> Layout:
        """Return how the files, if they are not native, name the tensors of a component."""
        return LAYOUTS[component]

    def pad_token(self, folder: str) -> str:
        """Return what pads prompts, if the files in the folder of a tokenizer do not say."""
        spec = find_spec(self.name)
        return PAD_TOKEN if spec is None else spec.pad_token

    def scaling_factor(self) -> float | None:
        """Return what the VAE multiplies latents by, or None if the files do not say.

        A tiny VAE says nothing: it takes the latents of any scale that it was made for.

        Raises:
            ValueError: if the config of the VAE is not supported or broken.
        """
        if self.find(VAE_CONFIG) is None:
            return None
        content, name = self.config(VAE_CONFIG)
        return (
            None if is_tiny(content) else AutoencoderConfig.from_dict(content, name).scaling_factor
        )

    def describe_download(self, choices: Iterable[Sequence[str]]) -> str | None:
        """Return a line about the download that is needed, or None if none is.

        Args:
            choices: groups of paths; the first file of each that the model has will be needed.
        """
        return None

    def files(self) -> Collection[str]:
        """Return the paths of all files that the model is known to have."""
        # Not deeper, because the folder may be the user's home folder.
        found = [*self.root.glob("*"), *self.root.glob("*/*")]
        return [file.relative_to(self.root).as_posix() for file in found if file.is_file()]

    def _find_shards(self, component: str, index: Path) -> list[Path]:
        """Return the files that an index names, each once, in the order of the index."""
        where = f"{self.name}: {component}/{index.name}"
        try:
            content = read_json(index, must_be_finite=False)
            names = list(dict.fromkeys(content["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{where} is not a JSON object with a weight_map") from error
        if not names:
            raise ValueError(f"{where} names no files")
        for name in names:  # check all of them before the first is downloaded
            is_plain = isinstance(name, str) and SHARD_NAME.fullmatch(name) and name.isprintable()
            if not is_plain:
                given = repr(name)[:100]
                raise ValueError(
                    f"{where} names {given}, which is not a safetensors file beside it"
                )
        return [self.require(f"{component}/{name}") for name in names]

    def _absence(self, path: str) -> Exception:
        """Return the error to raise because the model does not have a file."""
        for folder in (f"{PurePosixPath(path).parent}/", ""):
            files = [file for file in self.files() if file.startswith(folder)]
            pickles = sorted(file for file in files if file.endswith(PICKLES))
            if pickles and not any(file.endswith(".safetensors") for file in files):
                return ValueError(
                    f"{self.name} has {pickles[0]} but no safetensors there, and pickles are never "
                    "loaded: convert it in diffusers, save_pretrained(..., safe_serialization=True)"
                )
        return FileNotFoundError(f"{self.name} has no {path}{self.absence_note()}")

    def absence_note(self) -> str:
        """Return what to add to the message about a file that is not there."""
        return ""


class BareNetwork(Source):
    """A network alone in a folder or repository, presented as a component of a model."""

    def __init__(self, source: Source, component: str):
        super().__init__(source.name, source.root)
        self.source = source
        self.folder = f"{component}/"

    @property
    def commit(self) -> tuple[str, str] | None:
        return self.source.commit

    def find(self, path: str) -> Path | None:
        return self.source.find(path.removeprefix(self.folder))

    def describe_download(self, choices: Iterable[Sequence[str]]) -> str | None:
        plain = ([path.removeprefix(self.folder) for path in paths] for paths in choices)
        return self.source.describe_download(plain)

    def files(self) -> Collection[str]:
        return [self.folder + file for file in self.source.files()]
