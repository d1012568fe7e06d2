"""What a model's config and tokenizer files say."""

import json
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np

from attacks.harness import Case, attack, require
from attacks.hostile import TINY, damaged, json_text, tiny, value
from stable_diffusion import StableDiffusion
from stable_diffusion.model_io import load_model_config

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
    """A file of the embedded model."""
    return (TINY / path).read_text()


def check_model(case: Case, model: Any) -> None:
    """Whatever is not refused makes a picture of finite numbers, or says that it cannot."""
    sd = StableDiffusion(model)
    height, width = sd.config.defaults.size
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
    """Values of the wrong type, absurd, missing, and keys that nobody knows."""
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


@attack("configs", cases=500)
def texts(case: Case) -> None:
    """What is nearly JSON."""
    path = case.rng.choice(CONFIGS)
    model = tiny(case.folder, path)
    text = json_text(json.loads(content(path)), case.rng)
    case.keep(model / path, text)
    load_model_config(model)


@attack("configs", cases=250)
def tokenizers(case: Case) -> None:
    """Vocabularies and merges that are broken, or that the text encoder has no rows for."""
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
