"""Models that are distilled to few steps: how they are sampled, and how their files are called.

A file has no field that says it is distilled. Its name does, or the title in its metadata: people
keep the published names, or write the same words in another order.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Literal

FileKind = Literal["lora", "unet", "checkpoint"]
MAX_STEPS = 16  # that any distilled model is made for
MAX_TITLE = 200  # characters of a title that are read


@dataclass(frozen=True)
class FewStepSettings:
    """The settings that a distilled model was made for. What the caller gives replaces them.

    Attributes:
        steps: of denoising.
        sampler: its name.
        guidance: the weight of guidance; at or below 1 there is none.
        spacing: of the timesteps; None for the sampler's own.
        timesteps: one for each step, in place of a spacing.
        eta: how much noise each step adds, for samplers that take it.
        prediction_type: what a UNet predicts, if it differs from the base's.
    """

    steps: int
    sampler: str
    guidance: float = 0.0
    spacing: str | None = None
    timesteps: tuple[int, ...] | None = None
    eta: float | None = None
    prediction_type: str | None = None

    def __str__(self) -> str:
        """Return the settings in words, as in "4 steps of euler, trailing, no guidance"."""
        words = [f"{self.steps} {'step' if self.steps == 1 else 'steps'} of {self.sampler}"]
        if self.timesteps is not None:
            words[0] += f" at {', '.join(map(str, self.timesteps))}"
        if self.spacing is not None:
            words += [self.spacing]
        if self.eta is not None:
            words += [f"eta {self.eta:g}"]
        words += [f"guidance {self.guidance:g}" if self.guidance > 1 else "no guidance"]
        return ", ".join(words)


# SDXL-Lightning (arXiv:2402.13929).
LIGHTNING = {n: FewStepSettings(n, "euler", spacing="trailing") for n in (2, 4, 8)}
LIGHTNING_X0 = FewStepSettings(1, "euler", spacing="trailing", prediction_type="sample")
# Hyper-SD (arXiv:2404.13686). The file for one step serves up to eight, with less noise.
HYPER = {n: FewStepSettings(n, "ddim", spacing="trailing") for n in (2, 4, 8)}
HYPER |= {1: FewStepSettings(1, "tcd", eta=1.0)}
HYPER_CFG = {n: FewStepSettings(n, "ddim", guidance=5.0, spacing="trailing") for n in (8, 12)}
HYPER_UNET = FewStepSettings(1, "lcm", timesteps=(800,))
# DMD2 (arXiv:2405.14867), whose timesteps are not those of LCM.
DMD2 = {
    1: FewStepSettings(1, "lcm", timesteps=(399,)),
    4: FewStepSettings(4, "lcm", timesteps=(999, 749, 499, 249)),
}
LCM = FewStepSettings(4, "lcm")  # arXiv:2310.04378; arXiv:2311.05556 for the LoRA
# A UNet that takes the guidance as an input; 8.5 is the default of diffusers' pipeline for LCM.
LCM_UNET = replace(LCM, guidance=8.5)
TCD = FewStepSettings(4, "tcd", eta=0.3)  # arXiv:2402.19159
FLASH = FewStepSettings(4, "lcm")  # Flash Diffusion, arXiv:2406.02347
SD_TURBO = FewStepSettings(2, "euler", spacing="trailing")  # arXiv:2311.17042
SDXL_TURBO = FewStepSettings(2, "euler-a", spacing="trailing")


@dataclass(frozen=True)
class _Family:
    """The names of the files of a distilled model.

    Attributes:
        name: a regular expression for the words that name it.
        settings: by the steps that the file is for.
        default_steps: of a file whose name does not say them; None if it must.
        kinds: of the files that are published.
        is_telling: whether the words name nothing else, so that any other words may be beside
            them. Otherwise all others must be `_FILLERS`.
    """

    name: str
    settings: Mapping[int, FewStepSettings]
    default_steps: int | None = None
    kinds: tuple[FileKind, ...] = ("lora", "unet")
    is_telling: bool = False


# "lightning" and "hyper" are also words for pictures, so the number of steps must be there, too.
_FAMILIES = (
    _Family(r"\b(sd ?)?xl ?lightning\b", LIGHTNING, is_telling=True),
    _Family(r"\blightning\b", LIGHTNING),
    _Family(r"\bhyper ?sd ?(xl|1 ?5)?\b", HYPER, is_telling=True),
    _Family(r"\bhyper\b", HYPER),
    _Family(r"\bdmd ?2\b", DMD2, default_steps=4),
    _Family(r"\blcm\b", {4: LCM}, 4, ("lora",)),
    _Family(r"\btcd\b", {4: TCD}, 4, ("lora",)),
    _Family(r"\bflash ?sd ?(xl|1 ?5)?\b", {4: FLASH}, 4, ("lora",)),
    _Family(r"\bsd ?xl ?turbo\b", {4: replace(SDXL_TURBO, steps=4)}, 4, ("lora",)),
)
_STEPS = r"\b(?P<steps>\d+) ?steps?\b"
# Words that say how a file was made or stored, or what for, and not what it draws.
_FILLERS = (
    r"sdxl|xl|ssd|ssd1b|sdv?(1|15|2|21)?|v?\d+|\d+b|loras?|unet|weights?|model|pytorch|diffusion"
    r"|fp16|fp32|bf16|f16|f32|rank\d*|r\d+|dim\d*|\d+dim|base|cfg|x0|bytedance|comfyui|comfy"
    r"|converted|pruned|diffusers|kohya|official|original|by|for|the|and|latent|consistency"
    r"|distill(ed)?|distillation|safetensors|copy|steps?|\d+steps?"
)
# Published whole checkpoints, by their names: a merge of one may need other settings.
_CHECKPOINTS = {
    "sd_turbo": SD_TURBO,
    "sd_xl_turbo_1.0": SDXL_TURBO,
    "sd_xl_turbo_1.0_fp16": SDXL_TURBO,
    "hyper-sdxl-1step-unet-comfyui.fp16": HYPER_UNET,
    "sdxl_lightning_1step_x0": LIGHTNING_X0,
    **{f"sdxl_lightning_{n}step": settings for n, settings in LIGHTNING.items()},
}
_MERGE = r"\b(lightning|turbo|lcm|dmd ?2|hyper ?(sd|xl)|hyper\b)"
# Names that say nothing of the content: the folder, or the repository, does.
_PLAIN_NAMES = (
    r"(pytorch_lora_weights|adapter_model|(diffusion_pytorch_)?model|lora|unet)([._-]?(fp16|bf16))?"
)
# Names of samplers, too, and of the scripts that trained a file: alone they do not say what it is.
_AMBIGUOUS_NAMES = ("lcm", "tcd")
_TITLES = ("modelspec.title", "ss_output_name")  # in the metadata of a file


def recognize_few_step(
    file: str, kind: FileKind, metadata: Mapping[str, str] | None = None
) -> FewStepSettings | None:
    """Return the settings that a file was distilled for, by its name; None if it is not known.

    Args:
        file: its path; only the name counts, or that of its folder if the name says nothing.
        kind: what it has in it.
        metadata: of the file, whose titles count if the name says nothing.
    """
    path = PurePath(file)
    stem = path.name.removesuffix(".safetensors")
    if kind == "checkpoint":
        return None if stem == path.name else _CHECKPOINTS.get(stem.lower())
    names = [stem]
    if re.fullmatch(_PLAIN_NAMES, stem.lower()):
        names += [path.parent.name, _find_cached_repo(path)]
    titles = {} if metadata is None else metadata
    names += [titles[title][:MAX_TITLE] for title in _TITLES if title in titles]
    return next((found for name in names if (found := _recognize_name(name, kind))), None)


def seems_few_step(file: str) -> bool:
    """Return whether the name of a checkpoint has a word of the distilled models.

    It may be a merge of one, whose settings only its author knows.
    """
    return re.search(_MERGE, _normalize(PurePath(file).name)) is not None


def _find_cached_repo(path: PurePath) -> str:
    """Return the name of the repository in whose cache folder a file is; "" if it is in none."""
    folders = (part for part in path.parts if part.startswith("models--"))
    return next(folders, "").rpartition("--")[2]


def _recognize_name(name: str, kind: FileKind) -> FewStepSettings | None:
    """Return the settings for a file of this name or title, or None."""
    text = _normalize(name.removesuffix(".safetensors").rpartition("/")[2])
    if text.strip() in _AMBIGUOUS_NAMES:
        return None
    for family in _FAMILIES:
        if kind not in family.kinds or (match := re.search(family.name, text)) is None:
            continue
        rest = f"{text[: match.start()]} {text[match.end() :]}"
        if not family.is_telling and not all(re.fullmatch(_FILLERS, word) for word in rest.split()):
            continue
        found = re.search(_STEPS, rest)
        steps = family.default_steps if found is None else int(found["steps"])
        if steps is not None and (settings := _choose(family, steps, rest.split(), kind)):
            return settings
    return None


def _normalize(name: str) -> str:
    """Return the words of a name in lower case, with spaces between them."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", " ", name)  # `sdxlLightning_4stepLora`
    return re.sub(r"[^a-z0-9]+", " ", name.lower())


def _choose(
    family: _Family, steps: int, words: list[str], kind: FileKind
) -> FewStepSettings | None:
    """Return the settings of a family for a number of steps, or None if it has no such file."""
    if family.settings is HYPER and "cfg" in words:
        return HYPER_CFG.get(steps)
    if family.settings is HYPER and kind == "unet":
        return HYPER_UNET if steps == 1 else None
    if family.settings is LIGHTNING and "x0" in words:
        return LIGHTNING_X0 if steps == 1 and kind == "unet" else None
    if len(family.settings) > 1:
        return family.settings.get(steps)
    (settings,) = family.settings.values()
    # Larger numbers in a name are steps of its training.
    return replace(settings, steps=steps) if 1 <= steps <= MAX_STEPS else settings
