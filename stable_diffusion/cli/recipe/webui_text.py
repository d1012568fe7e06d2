"""Recipes as the text that AUTOMATIC1111's web UI writes into pictures, and galleries read.

    a lighthouse at dusk
    Negative prompt: fog
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x512, …

It does not say everything, and not everything clearly: a prompt may have lines like the others. So
this program reads it only where there is no recipe of its own.
"""

import json
import re
from collections.abc import Callable
from pathlib import PurePath
from typing import Any, NamedTuple

from ...config.known_models import MODELS
from ...sampler.sampler import SAMPLERS, SCHEDULES
from ...tokenizer.prompt_weights import EXTRA_NETWORK
from .recipe import MAX_CHARACTERS, Recipe

SAMPLER_NAMES = {spec.name: spec.webui_name for spec in SAMPLERS.values()}
SCHEDULE_NAMES = {spec.name: spec.webui_name for spec in SCHEDULES.values() if spec.webui_name}
OURS = "Stable Diffusion for MLX"

# The files that the known models were published in: what such text calls them.
MODEL_FILES = {
    "v1-5-pruned": "sd-1-5",
    "v1-5-pruned-emaonly": "sd-1-5",
    "v2-1_512-ema-pruned": "sd",
    "v2-1_768-ema-pruned": "sd-2-1",
    "sd_xl_base_1.0": "sdxl-base",
    "sd_xl_turbo_1.0": "sdxl",
    "sd_xl_turbo_1.0_fp16": "sdxl",
}
REPOSITORIES = {spec.repo.rpartition("/")[2]: name for name, spec in MODELS.items() if spec.repo}
KNOWN = MODEL_FILES | REPOSITORIES | {name: name for name in MODELS}

NEGATIVE = "Negative prompt:"
MIN_PAIRS = 3  # pairs in the last line, lest it be one of the prompt
PAIR = re.compile(r'([^:,"]+):\s*("(?:[^"\\]|\\.)*"|[^,]*)(?:,|$)')
MAX_WRONG = 10  # values that only begin as JSON: to find out takes as long as all before them
NEXT = re.compile(r"\s*(?:,|$)")
KEY = re.compile(r'([^:,"]+):\s*(?=[\[{])')  # of a value that is JSON, with commas in it
WITHOUT_EFFECT = {"Model hash", "VAE hash", "Hashes", "Civitai metadata", "Version", "Emphasis"}
WITH_EMPHASIS = "Original"  # how brackets weigh, where the text does not say


class Reading(NamedTuple):
    """What such text says."""

    recipe: Recipe
    model_name: str | None  # as the text has it
    rest: list[str]  # what was not understood


def write_parameters(recipe: Recipe) -> str:
    """The text; what UTF-8 cannot hold is replaced in it."""
    details = {
        "Steps": recipe.steps,
        "Sampler": SAMPLER_NAMES.get(recipe.sampler),
        "Schedule type": SCHEDULE_NAMES.get(recipe.schedule),
        "CFG scale": None if recipe.cfg is None else _short(max(recipe.cfg, 1.0)),  # 1 is none
        "Seed": recipe.seed,
        "Size": None if recipe.width is None else f"{recipe.width}x{recipe.height}",
        "Model": _stem(recipe.model),
        "VAE": _stem(recipe.vae),
        "Denoising strength": None if recipe.strength is None else _short(recipe.strength),
        "Clip skip": recipe.clip_skip + 1 if recipe.clip_skip else None,  # counted from 1
        "Emphasis": None if recipe.prompt_weights or not _has_brackets(recipe) else "None",
        "Lora": ", ".join(_stem_and_scale(lora) for lora in recipe.lora) or None,
        "RNG": "CPU",  # whose numbers the noise is made of
        "Version": OURS if recipe.version is None else f"{OURS} {recipe.version}",
    }
    lines = [recipe.prompt or ""]
    if recipe.negative_prompt:
        lines.append(f"{NEGATIVE} {recipe.negative_prompt}")
    pairs = (f"{key}: {_quoted(str(v))}" for key, v in details.items() if v is not None)
    text = "\n".join([*lines, ", ".join(pairs)])
    return text.encode("utf-8", "replace").decode().replace("\0", "?")


def read_parameters(text: str) -> Reading:
    """What of the text this program understands.

    Raises:
        ValueError: it is not such text.
    """
    *lines, last = text[:MAX_CHARACTERS].strip().split("\n")
    said, stray = _pairs(last)
    if len(said) < MIN_PAIRS or len(text) > MAX_CHARACTERS:
        raise ValueError("its parameters are not in the form of AUTOMATIC1111")
    starts = [i for i, line in enumerate(lines) if line.startswith(NEGATIVE)]
    split = starts[0] if starts else len(lines)
    prompt, negative_prompt = "\n".join(lines[:split]), "\n".join(lines[split:])
    networks = [tag[0] for tag in EXTRA_NETWORK.finditer(prompt)]

    options: dict[str, Any] = {
        "prompt": EXTRA_NETWORK.sub("", prompt).strip(),
        "negative_prompt": negative_prompt.removeprefix(NEGATIVE).strip(),
        "long_prompt": True,  # both are so in the web UI
        "prompt_weights": said.get("Emphasis", WITH_EMPHASIS) == WITH_EMPHASIS,
    }
    model_name = said.pop("Model", None)
    if model_name in KNOWN:
        options["model"] = KNOWN[model_name]
    rest = []
    for key, value in said.items():
        try:
            options |= {} if key in WITHOUT_EFFECT else _READERS[key](value)
        except (KeyError, ValueError):
            if key == "Civitai resources":
                value = _list_resources(value)
            rest.append(f"{key}: {value}")
    if any(key.startswith("Hires") for key in said) and "strength" in options:
        rest.append(f"Denoising strength: {options.pop('strength')}")  # of a second pass
    return Reading(Recipe(**options), model_name, [*networks, *rest, *stray])


def _pairs(line: str) -> tuple[dict[str, str], list[str]]:
    """The values by key, and what comes after what is none."""
    found, at, n_wrong = {}, 0, 0
    while at < len(line):
        nested = None
        if n_wrong < MAX_WRONG and KEY.match(line, at):
            nested = _nested_pair(line, at)
            n_wrong += nested is None
        if nested is not None:
            key, found[key], at = nested
        elif match := PAIR.match(line, at):
            found[match[1].strip()] = _unquoted(match[2].strip())
            at = match.end()
        else:
            break
    return found, [line[at:].strip()] if line[at:].strip() else []


def _nested_pair(line: str, at: int) -> tuple[str, str, int] | None:
    """Return a key, its value, a JSON list or object, and where the next one is; or None."""
    match = KEY.match(line, at)
    if match is None:
        return None
    try:
        _, end = json.JSONDecoder().raw_decode(line, match.end())
    except (ValueError, RecursionError):
        return None
    rest = NEXT.match(line, end)
    if rest is None:
        return None
    return match[1].strip(), line[match.end() : end], rest.end()


def _list_resources(text: str) -> str:
    """Return what a gallery lists as used, in short: kinds, names and weights."""
    try:
        resources = json.loads(text)
        return ", ".join(
            " ".join(str(each[key]) for key in ("type", "modelName", "weight") if key in each)
            for each in resources
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        return text


def _sampler(name: str) -> dict[str, str]:
    """The sampler; before version 1.9 its name ended in that of the schedule."""
    schedule = _schedule("Karras") if name.endswith(" Karras") else {}
    name = name.removesuffix(" Karras")
    return {"sampler": {theirs: ours for ours, theirs in SAMPLER_NAMES.items()}[name]} | schedule


def _schedule(name: str) -> dict[str, str]:
    if name == "Automatic":
        return {}
    return {"schedule": {theirs: ours for ours, theirs in SCHEDULE_NAMES.items()}[name]}


def _size(text: str) -> dict[str, int]:
    width, height = text.split("x")
    return {"width": int(width), "height": int(height)}


def _clip_skip(text: str) -> dict[str, int]:
    return {"clip_skip": int(text) - 1}


def _noise(text: str) -> dict[str, str]:
    if text != "CPU":
        raise ValueError(f"random numbers of {text}")
    return {}


def _number(option: str, kind: type) -> Callable[[str], dict[str, Any]]:
    return lambda text: {option: kind(text)}


_READERS: dict[str, Callable[[str], dict[str, Any]]] = {
    "Steps": _number("steps", int),
    "Sampler": _sampler,
    "Schedule type": _schedule,
    "CFG scale": _number("cfg", float),
    "Seed": _number("seed", int),
    "Size": _size,
    "Denoising strength": _number("strength", float),
    "Clip skip": _clip_skip,
    "RNG": _noise,
}


def _quoted(value: str) -> str:
    """In quotes where it has what stands between values."""
    return json.dumps(value, ensure_ascii=False) if re.search(r"[,:\n\r]", value) else value


def _unquoted(value: str) -> str:
    try:
        found = json.loads(value) if value.startswith('"') else value
    except ValueError:
        return value
    return found if isinstance(found, str) else value


def _short(number: float) -> str:
    return repr(float(number)).removesuffix(".0")


def _stem(model: str | None) -> str | None:
    """The last part of a model's name: no folders of the user's, no revision."""
    if model is None:
        return None
    return PurePath(model.replace("\\", "/").partition("@")[0]).name.removesuffix(".safetensors")


def _stem_and_scale(lora: str) -> str:
    file, _, scale = lora.rpartition(":")
    return f"{_stem(file)}:{scale}"


def _has_brackets(recipe: Recipe) -> bool:
    text = f"{recipe.prompt}{recipe.negative_prompt}"
    return any(bracket in text for bracket in "()[]")
