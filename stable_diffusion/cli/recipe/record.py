"""Write recipes into picture files, and compare those of files that exist with the settings."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ...config.autoencoder_tiny import TINY_VAES
from ...config.known_controls import KNOWN_CONTROLS, find_control
from ...config.known_models import MODELS
from ...hires import FILTERS
from ...images.text_chunks import PARAMETERS, RECIPE, read_texts
from ...model_io.control_models import OpenedControl
from ...model_io.hub_file import parse_hub_name
from ...model_io.model import Model
from ...model_io.sources import Source
from ...utils.fold_name import fold_name
from ...version import __version__
from ..job import Job, find_default_strength
from ..settings import TRANSPARENCY, ControlPicture, Repainting, Settings
from .control_text import name_control, name_ranges, name_thresholds
from .recipe import Recipe, sha256
from .webui_text import write_parameters

Texts = dict[str, str]  # text chunks of a picture file, by keyword
PARTS = ("vae", "unet")  # which may be taken from other models
RECIPE_FIELDS = tuple(field.name for field in fields(Recipe))


class Record:
    """The texts that say in each picture file how the picture was made.

    Args:
        settings: the settings of the run. Without `metadata`, all texts are empty.
        model: the open model.
        float16: whether half precision is used.
        controls: the open control models, by the names that the settings give them.
    """

    def __init__(
        self,
        settings: Settings,
        model: Model,
        float16: bool,
        controls: Mapping[str, OpenedControl] = MappingProxyType({}),
    ):
        self._common: Recipe | None = None
        if settings.metadata:
            self._common = _make_common_recipe(settings, model, float16, controls)

    def describe(self, job: Job) -> Texts:
        """Return the texts for the file of one picture."""
        return self._describe(job, n_images=1, n_rows=1)

    def describe_grid(self, jobs: Sequence[Job], n_rows: int) -> Texts:
        """Return the texts for a grid of pictures; none if one recipe cannot make them all."""
        first = jobs[0]
        with_one_recipe = [
            replace(first, seed=first.seed + i, index=first.index + i) for i in range(len(jobs))
        ]
        if with_one_recipe != list(jobs):
            return {}
        return self._describe(first, n_images=len(jobs), n_rows=n_rows)

    def _describe(self, job: Job, n_images: int, n_rows: int) -> Texts:
        if self._common is None:
            return {}
        recipe = replace(self._common, **_collect_job_values(job), n_images=n_images, n_rows=n_rows)
        return {PARAMETERS: write_parameters(recipe), RECIPE: recipe.to_json()}


class RecipeComparison:
    """Compares pictures that exist with what the settings ask for, before the model is opened.

    Two commits of one model on the Hub count as the same model, as the commit that would be used
    is not known yet.
    """

    def __init__(self, settings: Settings):
        self._wanted: dict[str, Any] = vars(_Choices.from_settings(settings))
        if settings.float16 is not None:
            self._wanted["float16"] = settings.float16
        self._default_strength = find_default_strength(settings.start)
        self._models = _list_model_names(settings.model)
        self._parts = {name: _list_model_names(getattr(settings, name)) for name in PARTS}
        self._controls = settings.controls
        del self._wanted["control"]

    def differs(self, file: Path, job: Job) -> bool:
        """Return whether the recipe in a picture says that this job would make another picture.

        Without a readable recipe the answer is False. Values of the job that are None are not
        compared.
        """
        try:
            text = read_texts(file).get(RECIPE)
            recipe = None if text is None else Recipe.from_json(text, str(file))
        except (ValueError, OSError):
            return False
        if recipe is None:
            return False
        if not _list_model_names(recipe.model) & self._models:
            return True
        for name, wanted_names in self._parts.items():
            if not _list_model_names(getattr(recipe, name)) & wanted_names:
                return True
        if not _have_same_controls(recipe.control, self._controls):
            return True
        wanted = _collect_job_values(job) | self._wanted
        wanted |= {"hires": job.hires, "reuse": _name_reuse(job)}
        if job.strength is None and recipe.strength is not None and self._default_strength:
            wanted["strength"] = self._default_strength
        return any(_fold(getattr(recipe, name)) != _fold(value) for name, value in wanted.items())


@dataclass(frozen=True)
class _Choices:
    """The fields of a recipe that depend on the command line only. See `Recipe`."""

    prediction_type: str | None
    lora: tuple[str, ...]
    lora_sha256: tuple[str, ...]
    embedding: tuple[str, ...]
    embedding_sha256: tuple[str, ...]
    quantize: bool
    unet_bits: int | None
    text_encoder_bits: int | None
    vae_float16: bool | None  # True or None, as in recipes that are older than the option
    fit: str | None
    image_sha256: str | None
    control: tuple[str, ...]
    control_sha256: tuple[str, ...]
    control_range: tuple[str, ...]
    control_canny: str | None
    mask: str | None = None
    mask_sha256: str | None = None
    invert_mask: bool | None = None
    mask_blur: int | None = None
    mask_crop: int | None = None
    outpaint: tuple[int, ...] = ()
    upscale: str | None = None
    upscale_sha256: str | None = None

    @classmethod
    def from_settings(
        cls, settings: Settings, controls: Mapping[str, Source] = MappingProxyType({})
    ) -> "_Choices":
        """Return the choices of a command line; this reads the files that it names.

        Args:
            controls: the files of the control models that are open, by the names in the settings.
        """
        start = settings.start
        repainting = None if start is None else start.repainting
        return cls(
            prediction_type=settings.prediction_type,
            lora=tuple(f"{_hide_home(str(file))}:{scale}" for file, scale in settings.lora),
            lora_sha256=tuple(sha256(file) for file, _ in settings.lora),
            embedding=tuple(f"{name}={_hide_home(file)}" for name, file in settings.embedding),
            embedding_sha256=tuple(sha256(file) for _, file in settings.embedding),
            quantize=settings.quantize,
            unet_bits=settings.unet_bits,
            text_encoder_bits=settings.text_encoder_bits,
            vae_float16=settings.vae_float16 or None,
            fit=None if start is None or start.is_cropped else start.fit,
            image_sha256=None if start is None else sha256(start.file),
            control=tuple(
                name_control(
                    each,
                    str(_name_part(each.model, controls.get(each.model))),
                    _hide_home(each.file),
                )
                for each in settings.controls
            ),
            control_sha256=tuple(sha256(each.file) for each in settings.controls),
            control_range=name_ranges(settings.controls),
            control_canny=name_thresholds(settings.controls),
            **({} if repainting is None else _describe_repainting(repainting)),
            upscale=None if settings.upscale is None else _hide_home(settings.upscale),
            upscale_sha256=None if settings.upscale is None else sha256(settings.upscale),
        )


def _describe_repainting(repainting: Repainting) -> dict[str, Any]:
    """Return the fields of a recipe that say which part is repainted; None is the default."""
    mask, margins = repainting.file, repainting.margins
    return {
        "mask": None if mask is None else _hide_home(mask),
        "mask_sha256": None if mask is None or mask == TRANSPARENCY else sha256(mask),
        "invert_mask": repainting.is_inverted or None,
        "mask_blur": repainting.blur or None,
        "mask_crop": repainting.crop,
        "outpaint": tuple(margins) if any(margins) else (),
    }


def _collect_job_values(job: Job) -> dict[str, Any]:
    """Return the fields of a recipe that a job decides, without those that are None."""
    values = {name: getattr(job, name, None) for name in RECIPE_FIELDS}
    if job.timesteps is not None:
        values["steps"] = None
    if job.hires_upscale not in (None, *FILTERS):
        values["hires_upscale"] = _hide_home(job.hires_upscale)
        values["hires_upscale_sha256"] = sha256(job.hires_upscale)
    values["reuse"] = _name_reuse(job)
    return {name: value for name, value in values.items() if value is not None}


def _name_reuse(job: Job) -> int | None:
    """Return the field of a recipe that says how often the whole UNet is computed; None for 1."""
    return None if job.reuse == 1 else job.reuse


def _list_model_names(model: str | None) -> set[str | None]:
    """Return the names under which a recipe may know a model, without its commit."""
    if model is None:
        return {None}
    repos = MODELS[model].repos if model in MODELS else TINY_VAES.get(model, ())
    name = os.path.normpath(_hide_home(model))  # m, ./m and m/ are one folder
    hub_name = parse_hub_name(model)
    without_revision = name.partition("@")[0]
    if hub_name is not None and hub_name.path:  # a file: the revision may be before its path
        without_revision = f"{hub_name.repo}/{hub_name.path}"
    return {fold_name(each) for each in (name, without_revision, *repos)}


def _have_same_controls(texts: Sequence[str], controls: Sequence[ControlPicture]) -> bool:
    """Return whether a recipe's control models and pictures are those of the settings."""
    if len(texts) != len(controls):
        return False
    for text, control in zip(texts, controls, strict=True):
        without_model = name_control(control, "", _hide_home(control.file))
        if not fold_name(text).endswith(fold_name(without_model)):
            return False
        model = text[: -len(without_model)]
        known = (find_control(control.model, family) for family in KNOWN_CONTROLS)
        names = [control.model, *(each.location for each in known if each is not None)]
        if not any(_list_model_names(model) & _list_model_names(each) for each in names):
            return False
    return True


def _fold(value: Any) -> Any:
    """Return what is the same for two values of a recipe that differ only as names of one file."""
    return tuple(map(fold_name, value)) if isinstance(value, tuple) else value


def _name_part(given: str | None, source: Source | None) -> str | None:
    """Return the name in a recipe of a model of which only a part is used.

    Args:
        given: as the user names it; None if no part is taken from another model.
        source: its files.
    """
    if given is None:
        return None
    commit = None if source is None else source.commit
    return _hide_home(given) if commit is None else "@".join(commit)


def _make_common_recipe(
    settings: Settings, model: Model, float16: bool, controls: Mapping[str, OpenedControl]
) -> Recipe:
    """Return the recipe that all pictures of a run share, without what their jobs decide."""
    name, revision = model.source.commit or (_hide_home(settings.model), None)
    sources = {name: control.source for name, control in controls.items()}
    choices = vars(_Choices.from_settings(settings, sources))
    return Recipe(
        **choices,
        model=name,
        revision=revision,
        vae=_name_part(settings.vae, model.vae),
        unet=_name_part(settings.unet, model.unet),
        float16=float16,
        image=None if settings.start is None else Path(settings.start.file).name,
        version=__version__,
    )


def _hide_home(path: str | Path) -> str:
    """Return a name or path with `~` for the home folder, whose name is private."""
    home = os.path.expanduser("~")  # `Path.home` fails if the user has none, as in containers
    path = str(path)
    return str(Path("~", Path(path).relative_to(home))) if Path(path).is_relative_to(home) else path
