"""Config and tokenizer files of models with hostile contents."""

import json
import re
from dataclasses import fields
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np

from attacks.harness import Case, attack, require
from attacks.hostile import TINY, damaged, json_text, tiny, value
from stable_diffusion import StableDiffusion
from stable_diffusion.config.diffusion import DiffusionConfig
from stable_diffusion.config.networks import AutoencoderConfig, CLIPTextConfig, UNetConfig
from stable_diffusion.model_io.loaders import load_model_config

CONFIGS = (
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
    "model_index.json",
)
TOKENIZER = ("tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer_config.json")
EXTRA = ("auto_map", "_class_name", "trust_remote_code", "quantization", "x", "trained_betas", "\0")


@cache
def content(path: str) -> str:
    """Return the content of a file of the embedded model."""
    return (TINY / path).read_text()


def check_model(case: Case, model: Any) -> None:
    """Check that a model is refused, makes a picture of finite numbers, or says that it cannot."""
    sd = StableDiffusion(model)
    width, height = sd.config.defaults.size
    require(height * width > 0, "no size")
    latents = sd.generate_latents("a red circle", latent_size=(8, 8), num_steps=2, seed=1)
    x_t = None
    for x_t in latents:
        mx.eval(x_t)
    if not mx.isfinite(x_t).all().item():
        raise ValueError("not finite, which the scripts refuse")
    picture = np.array(sd.decode(x_t))
    if not np.isfinite(picture).all():
        raise ValueError("not finite, which the scripts refuse")
    require(picture.shape[-1] == 3 and picture.min() >= 0 and picture.max() <= 1, "no picture")


@attack("configs", cases=900)
def values(case: Case) -> None:
    """Replace values by ones of the wrong type, absurd ones, none, and add unknown keys."""
    path = case.rng.choice(CONFIGS)
    config = json.loads(content(path))
    for _ in range(case.rng.choice([1, 1, 1, 2, 5])):
        key = case.rng.choice([*config, *EXTRA] if config else EXTRA)
        match case.rng.randrange(6):
            case 0:
                config.pop(key, None)
            case 1 if isinstance(config.get(key), list) and config[key]:
                config[key][case.rng.randrange(len(config[key]))] = value(case.rng)
            case _:
                config[key] = value(case.rng)
    model = tiny(case.folder, path)
    case.keep(model / path, json.dumps(config, default=str).encode())
    check_model(case, model)


EDGES = (0, 1, -1, True, 1.0, 0.5, 1e-7, 1e-50, 1e-320, -1e-50, 1e38, 2**31, 2**63, 10**36, 10**400)
CLASSES = {
    "unet/config.json": UNetConfig,
    "vae/config.json": AutoencoderConfig,
    "text_encoder/config.json": CLIPTextConfig,
    "scheduler/scheduler_config.json": DiffusionConfig,
}


def numeric_keys() -> list[tuple[str, str, int | None]]:
    """Return all numbers of all config files, and keys that may be numbers: file, key, index."""
    found = []
    for path, cls in CLASSES.items():
        config = {field.name: field.default for field in fields(cls)} | json.loads(content(path))
        types = {field.name: str(field.type) for field in fields(cls)}
        for key, known in config.items():
            if isinstance(known, list | tuple):
                numbers = [i for i, old in enumerate(known) if isinstance(old, int | float)]
                found += [(path, key, place) for place in numbers]
            elif isinstance(known, int | float) or re.search(r"int|float", types.get(key, "")):
                found.append((path, key, None))
    return found


NUMBERS = [(*key, edge) for key in numeric_keys() for edge in EDGES]


@attack("configs", cases=len(NUMBERS))
def numbers(case: Case) -> None:
    """Replace each number of each config file by extreme numbers."""
    path, key, place, edge = NUMBERS[case.seed % len(NUMBERS)]
    config = json.loads(content(path))
    if place is None:
        config[key] = edge
    else:
        config[key] = [edge if i == place else old for i, old in enumerate(config[key])]
    model = tiny(case.folder, path)
    case.keep(model / path, json.dumps(config).encode())
    check_model(case, model)


@attack("configs", cases=500)
def texts(case: Case) -> None:
    """Replace config files by what is almost JSON."""
    path = case.rng.choice(CONFIGS)
    model = tiny(case.folder, path)
    text = json_text(json.loads(content(path)), case.rng)
    case.keep(model / path, text)
    load_model_config(model)


@attack("configs", cases=250)
def tokenizers(case: Case) -> None:
    """Use vocabularies and merges that are damaged, or larger than the table of embeddings."""
    path = case.rng.choice(TOKENIZER)
    model = tiny(case.folder, path)
    if path.endswith(".txt") or case.rng.random() < 0.3:
        new = damaged(content(path).encode(), case.rng)
    else:
        parsed = json.loads(content(path))
        for key in case.rng.sample([*parsed, "added_tokens_decoder", "model_max_length"], 2):
            match case.rng.randrange(3):
                case 0:
                    parsed.pop(key, None)
                case 1:
                    parsed[key] = value(case.rng)
                case _:
                    parsed[f"new{case.rng.randrange(9)}"] = case.rng.choice([0, 49408, 10**6, -1])
        new = (
            json_text(parsed, case.rng) if case.rng.random() < 0.3 else json.dumps(parsed).encode()
        )
    case.keep(model / path, new)
    sd = StableDiffusion(model)
    ids = sd.tokenizer.encode("a red circle, naïve 新 \U0001f600")
    rows, positions = (
        len(table.weight)
        for table in (sd.text_encoder.token_embedding, sd.text_encoder.position_embedding)
    )
    require(all(0 <= i < rows for i in ids) and len(ids) <= positions, "beyond the tables")
