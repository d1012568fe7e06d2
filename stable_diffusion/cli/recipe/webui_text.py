"""Recipes as the text that AUTOMATIC1111's web UI writes into pictures, and that galleries read.

    a lighthouse at dusk
    Negative prompt: fog
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x512, …

The text does not have everything, and it can be ambiguous: a line of a prompt may look like one of
the other lines. So this program reads it only if a picture has no recipe in JSON.
"""

import json
import re
from collections.abc import Callable
from pathlib import PurePath
from typing import Any, NamedTuple

from ...config.known_models import MODELS
from ...sampler.sampler import SAMPLERS, SCHEDULES
from ...sampler.table import SamplerSpec
from ...tokenizer.prompt_weights import EXTRA_NETWORK
from .control_text import describe_controls
from .mask_text import MASK_READERS, complete_area, describe_mask
from .recipe import MAX_CHARACTERS, PROGRAM, Recipe
from .webui_hires import read_second_pass, write_second_pass

SAMPLER_NAMES = {spec.name: spec.webui_name for spec in SAMPLERS.values()}
SCHEDULE_NAMES = {spec.name: spec.webui_name for spec in SCHEDULES.values() if spec.webui_name}
SAMPLERS_BY_NAME = {theirs: ours for ours, theirs in SAMPLER_NAMES.items() if theirs}
# "Normal" is "Uniform" under another name.
SCHEDULES_BY_NAME = {theirs: ours for ours, theirs in SCHEDULE_NAMES.items()} | {
    "Normal": "linspace"
}
# The web UI has no trailing spacing. A text with the nearest name is read as what it says, if the
# sampler has that schedule.
NEAREST_SCHEDULES = {"trailing": "sgm-uniform"}
NEAREST_NAMES = {ours: SCHEDULE_NAMES[nearest] for ours, nearest in NEAREST_SCHEDULES.items()}
SAMPLERS_WITH_OWN_TIMES = ("DDIM", "PLMS", "UniPC")  # the web UI has no schedules for them

# What "Automatic" means for a sampler, by the web UI's names; "Uniform" for the others.
AUTOMATIC = "Automatic"
AUTOMATIC_SCHEDULES = {
    "DPM++ 2M": "Karras",
    "DPM++ SDE": "Karras",
    "DPM++ 2S a": "Karras",
    "DPM2": "Karras",
    "DPM2 a": "Karras",
    "DPM++ 2M SDE": "Exponential",
    "DPM++ 2M SDE Heun": "Exponential",
    "DPM++ 3M SDE": "Exponential",
}

# The names of the files that the known models were published as, which such texts call them by.
MODEL_FILES = {
    "v1-5-pruned": "sd-1-5",
    "v1-5-pruned-emaonly": "sd-1-5",
    "v2-1_512-ema-pruned": "sd",
    "v2-1_768-ema-pruned": "sd-2-1",
    "sd-v1-5-inpainting": "sd-1-5-inpainting",
    "512-inpainting-ema": "sd-2-inpainting",
    "instruct-pix2pix-00-22000": "instruct-pix2pix",
    "sd_xl_base_1.0": "sdxl-base",
    "sd_xl_turbo_1.0": "sdxl",
    "sd_xl_turbo_1.0_fp16": "sdxl",
}
REPOSITORIES = {spec.repo.rpartition("/")[2]: name for name, spec in MODELS.items() if spec.repo}
KNOWN_MODELS = MODEL_FILES | REPOSITORIES | {name: name for name in MODELS}

NEGATIVE = "Negative prompt:"
STEPS_OPTIONS = ("steps", "schedule", "hires_steps")
MIN_PAIRS = 3  # in the last line; with fewer it may be a line of the prompt
PAIR = re.compile(r'([^:,"]+):\s*("(?:[^"\\]|\\.)*"|[^,]*)(?:,|$)')
JSON_KEY = re.compile(r'([^:,"]+):\s*(?=[\[{])')  # of a value that is JSON, with commas in it
PAIR_END = re.compile(r"\s*(?:,|$)")
MAX_WRONG_JSON = 10  # values that only start like JSON; trying each takes time
WITHOUT_EFFECT = ("Model hash", "VAE hash", "Hashes", "Civitai metadata", "Version", "Emphasis")
DEFAULT_EMPHASIS = "Original"  # how brackets weigh if the text does not say it


class Reading(NamedTuple):
    """What such a text says.

    Attributes:
        recipe: what this program can use.
        model_name: the model, as the text calls it.
        not_understood: the other parts of the text.
    """

    recipe: Recipe
    model_name: str | None
    not_understood: list[str]


def write_parameters(recipe: Recipe) -> str:
    """Return the text for a recipe; characters that UTF-8 cannot encode are replaced."""
    details = {
        "Steps": len(recipe.timesteps) or recipe.steps,
        "Sampler": SAMPLER_NAMES.get(recipe.sampler or ""),
        "Schedule type": (SCHEDULE_NAMES | NEAREST_NAMES).get(recipe.schedule or ""),
        "Timesteps": ",".join(map(str, recipe.timesteps)) or None,  # the web UI does not have them
        # In the web UI, too, 1 means no guidance; but less than 1 does not.
        "CFG scale": None if recipe.cfg is None else _format_number(max(recipe.cfg, 1.0)),
        "Image CFG scale": (None if recipe.image_cfg is None else _format_number(recipe.image_cfg)),
        "Seed": recipe.seed,
        "Size": None if recipe.width is None else f"{recipe.width}x{recipe.height}",
        "Model": _find_stem(recipe.model),
        "VAE": _find_stem(recipe.vae),
        "Denoising strength": (
            None if recipe.strength is None else _format_number(recipe.strength)
        ),
        **write_second_pass(recipe, _find_stem(recipe.hires_upscale)),
        "Postprocess upscaler": _find_stem(recipe.upscale),
        **describe_mask(recipe),
        _name_eta(recipe.sampler): None if recipe.eta is None else _format_number(recipe.eta),
        "Clip skip": recipe.clip_skip + 1 if recipe.clip_skip else None,  # they count from 1
        "Emphasis": None if recipe.prompt_weights or not _has_brackets(recipe) else "None",
        "Lora": ", ".join(map(_shorten_lora, recipe.lora)) or None,
        **describe_controls(recipe),
        "RNG": "CPU",  # the noise is the same as PyTorch's on a CPU
        "Version": PROGRAM if recipe.version is None else f"{PROGRAM} {recipe.version}",
    }
    lines = [recipe.prompt or ""]
    if recipe.negative_prompt:
        lines.append(f"{NEGATIVE} {recipe.negative_prompt}")
    pairs = (f"{key}: {_quote(str(value))}" for key, value in details.items() if value is not None)
    text = "\n".join([*lines, ", ".join(pairs)])
    return text.encode("utf-8", "replace").decode().replace("\0", "?")


def read_parameters(text: str) -> Reading:
    """Return what this program understands of a text, and the rest of it.

    Raises:
        ValueError: if it is not such a text.
    """
    *lines, last = text[:MAX_CHARACTERS].strip().split("\n")
    pairs, stray = _split_pairs(last)
    if len(pairs) < MIN_PAIRS or len(text) > MAX_CHARACTERS:
        raise ValueError("its parameters are not in the form that AUTOMATIC1111's web UI writes")
    starts = [i for i, line in enumerate(lines) if line.startswith(NEGATIVE)]
    split = starts[0] if starts else len(lines)
    prompt, negative_prompt = "\n".join(lines[:split]), "\n".join(lines[split:])
    networks = [tag[0] for tag in EXTRA_NETWORK.finditer(prompt)]

    options: dict[str, Any] = {
        "prompt": EXTRA_NETWORK.sub("", prompt).strip(),
        "negative_prompt": negative_prompt.removeprefix(NEGATIVE).strip(),
        "long_prompt": True,  # the web UI always reads long prompts, and weights by default
        "prompt_weights": pairs.get("Emphasis", DEFAULT_EMPHASIS) == DEFAULT_EMPHASIS,
    }
    model_name = pairs.pop("Model", None)
    if model_name in KNOWN_MODELS:
        options["model"] = KNOWN_MODELS[model_name]
    more, rest = _read_pairs(pairs, options.get("model"))
    return Reading(Recipe(**options | more), model_name, [*networks, *rest, *stray])


def _read_pairs(pairs: dict[str, str], model: str | None) -> tuple[dict[str, Any], list[str]]:
    """Return the options that the pairs of the last line mean, and the pairs not understood.

    Args:
        model: a known model that the text names; None if it names none.
    """
    options, rest, pairs = read_second_pass(complete_area(pairs))
    if pairs.get("Schedule type") == AUTOMATIC:
        pairs = pairs | {"Schedule type": _find_automatic_schedule(pairs.get("Sampler", ""))}
    for key, value in pairs.items():
        try:
            options |= {} if key in WITHOUT_EFFECT else _READERS[key](value)
        except (KeyError, ValueError):
            if key == "Civitai resources":
                value = _summarize_resources(value)
            rest.append(f"{key}: {value}")
    if model is not None and MODELS[model].task != "editing":
        options.pop("image_cfg", None)  # some versions wrote it for models that do not take it
    if "image_cfg" in options and options.get("strength", 1.0) != 1:
        rest.append(f"Denoising strength: {options['strength']}")
    if "image_cfg" in options:  # these models begin with noise alone here
        options.pop("strength", None)
    sampler = SAMPLERS.get(options.get("sampler", ""))
    if "eta" in options and (sampler is None or not sampler.takes_eta):
        rest.append(f"Eta: {options.pop('eta')}")  # of ancestral samplers, which always add as much
    if sampler is not None and "schedule" in options:
        name = SCHEDULE_NAMES[options["schedule"]]
        schedule = _find_schedule(sampler, options.pop("schedule"))
        if schedule is None:
            rest.append(f"Schedule type: {name}")
        else:
            options["schedule"] = schedule
    if "timesteps" in options:  # in place of both
        options = {key: value for key, value in options.items() if key not in STEPS_OPTIONS}
    return options, rest


def _find_automatic_schedule(sampler_name: str) -> str:
    """Return the web UI's name of a sampler's usual schedule; AUTOMATIC if it has only its own."""
    name = AUTOMATIC_SCHEDULES.get(sampler_name, "Uniform")
    sampler = SAMPLERS.get(SAMPLERS_BY_NAME.get(sampler_name, ""))
    if sampler is None or SCHEDULES_BY_NAME[name] not in sampler.schedules:
        return AUTOMATIC
    return AUTOMATIC if sampler_name in SAMPLERS_WITH_OWN_TIMES else name


def _find_schedule(sampler: SamplerSpec, schedule: str) -> str | None:
    """Return the schedule if the sampler has it, or the one that it is nearest to; or None."""
    candidates = (schedule, *(ours for ours, near in NEAREST_SCHEDULES.items() if near == schedule))
    return next((each for each in candidates if each in sampler.schedules), None)


def _split_pairs(line: str) -> tuple[dict[str, str], list[str]]:
    """Return the values of a line by key, and what follows the first part that is not a pair."""
    found: dict[str, str] = {}
    start = n_wrong = 0
    while start < len(line):
        nested = None
        if n_wrong < MAX_WRONG_JSON and JSON_KEY.match(line, start):
            nested = _split_json_pair(line, start)
            n_wrong += nested is None
        if nested is not None:
            key, found[key], start = nested
        elif match := PAIR.match(line, start):
            found[match[1].strip()] = _unquote(match[2].strip())
            start = match.end()
        else:
            break
    rest = line[start:].strip()
    return found, [rest] if rest else []


def _split_json_pair(line: str, start: int) -> tuple[str, str, int] | None:
    """Return a key, its value, and where the next pair starts; None if the value is not JSON."""
    match = JSON_KEY.match(line, start)
    if match is None:
        return None
    try:
        _, end = json.JSONDecoder().raw_decode(line, match.end())
    except (ValueError, RecursionError):
        return None
    pair_end = PAIR_END.match(line, end)
    if pair_end is None:
        return None
    return match[1].strip(), line[match.end() : end], pair_end.end()


def _summarize_resources(text: str) -> str:
    """Return the kinds, names and weights in a gallery's JSON list of what was used."""
    try:
        resources = json.loads(text)
        return ", ".join(
            " ".join(str(each[key]) for key in ("type", "modelName", "weight") if key in each)
            for each in resources
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        return text


def _read_sampler(name: str) -> dict[str, str]:
    """Return the sampler; before version 1.9 its name could end with the schedule."""
    if name in SAMPLERS_BY_NAME:
        return {"sampler": SAMPLERS_BY_NAME[name]}
    for suffix, schedule in SCHEDULES_BY_NAME.items():
        sampler = SAMPLERS_BY_NAME.get(name.removesuffix(f" {suffix}"))
        if sampler is not None:
            return {"sampler": sampler, "schedule": schedule}
    raise ValueError(f"unknown sampler {name}")


def _read_schedule(name: str) -> dict[str, str]:
    return {} if name == AUTOMATIC else {"schedule": SCHEDULES_BY_NAME[name]}


def _read_timesteps(text: str) -> dict[str, tuple[int, ...]]:
    return {"timesteps": tuple(int(timestep) for timestep in text.split(","))}


def _name_eta(sampler: str | None) -> str:
    """Return the key of eta, which has a name of its own for DDIM."""
    return "Eta DDIM" if sampler == "ddim" else "Eta"


def _read_size(text: str) -> dict[str, int]:
    width, height = text.split("x")
    return {"width": int(width), "height": int(height)}


def _read_clip_skip(text: str) -> dict[str, int]:
    return {"clip_skip": int(text) - 1}


def _check_noise(text: str) -> dict[str, str]:
    if text != "CPU":
        raise ValueError(f"random numbers of {text}")
    return {}


def _make_number_reader(option: str, kind: type) -> Callable[[str], dict[str, Any]]:
    return lambda text: {option: kind(text)}


# By key: returns the options for a value, or raises ValueError or KeyError if it means none.
_READERS: dict[str, Callable[[str], dict[str, Any]]] = {
    "Steps": _make_number_reader("steps", int),
    "Sampler": _read_sampler,
    "Schedule type": _read_schedule,
    "Timesteps": _read_timesteps,
    "Eta DDIM": _make_number_reader("eta", float),
    "Eta": _make_number_reader("eta", float),
    "CFG scale": _make_number_reader("cfg", float),
    "Image CFG scale": _make_number_reader("image_cfg", float),
    "Seed": _make_number_reader("seed", int),
    "Size": _read_size,
    "Denoising strength": _make_number_reader("strength", float),
    "Clip skip": _read_clip_skip,
    "RNG": _check_noise,
    **MASK_READERS,
}


def _quote(value: str) -> str:
    """Return a value, in quotes if it has a character that separates values."""
    return json.dumps(value, ensure_ascii=False) if re.search(r"[,:\n\r]", value) else value


def _unquote(value: str) -> str:
    try:
        found = json.loads(value) if value.startswith('"') else value
    except ValueError:
        return value
    return found if isinstance(found, str) else value


def _format_number(number: float) -> str:
    return repr(float(number)).removesuffix(".0")


def _find_stem(model: str | None) -> str | None:
    """Return the last part of a model's name, without folders, revision and suffix."""
    if model is None:
        return None
    return PurePath(model.replace("\\", "/").partition("@")[0]).name.removesuffix(".safetensors")


def _shorten_lora(lora: str) -> str:
    """Return `NAME:SCALE` without folders and suffix."""
    file, _, scale = lora.rpartition(":")
    return f"{_find_stem(file)}:{scale}"


def _has_brackets(recipe: Recipe) -> bool:
    text = f"{recipe.prompt}{recipe.negative_prompt}"
    return any(bracket in text for bracket in "()[]")
