"""Weight files: headers, bytes, tensors, shards, pickles; LoRAs and textual inversions."""

import json
import os
import pickle
import struct
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import mlx.core as mx
import numpy as np
import safetensors
from mlx.utils import tree_flatten
from safetensors.numpy import load, save

import txt2image
from attacks.harness import Case, attack, require
from attacks.hostile import TINY, WEIGHTS, damaged, tiny, value
from stable_diffusion import StableDiffusion
from stable_diffusion.adapters.lora import load_lora
from stable_diffusion.model_io import loaders
from stable_diffusion.model_io.number_types import EIGHT_BITS
from stable_diffusion.model_io.safetensors_file import BYTES, read_safetensors

KINDS = [*BYTES, "F4", "Q8_0", "", 7, None]


def file_of(header: Any, data: bytes, length: int | None = None) -> bytes:
    """Return a safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def small_header(rng: Random) -> tuple[dict[str, Any], bytes]:
    """Return a valid header and its data."""
    header, end = {}, 0
    if rng.random() < 0.5:
        header["__metadata__"] = {"format": "pt"}
    for i in range(rng.randint(0, 5)):
        shape = [rng.randint(0, 4) for _ in range(rng.randint(0, 3))]
        kind = rng.choice(["F32", "F16", "BF16", "I64", "U8"])
        size = int(np.prod(shape)) * BYTES[kind]
        header[f"layer.{i}"] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    return header, rng.randbytes(end)


def spoil(header: dict[str, Any], rng: Random) -> dict[str, Any] | bytes:
    """Return a header with one or two errors."""
    for _ in range(rng.randint(1, 2)):
        names = [name for name in header if name != "__metadata__"]
        name = rng.choice(names) if names else "new"
        entry = header.get(name)
        entry = entry if isinstance(entry, dict) else {}
        match rng.randrange(9):
            case 0:
                entry["dtype"] = rng.choice(KINDS)
            case 1:
                entry["shape"] = rng.choice([value(rng), [value(rng), value(rng)], [2**62, 4]])
            case 2:
                offsets = entry.get("data_offsets")
                offsets = list(offsets) if isinstance(offsets, list) else [0, 0]
                offsets[:] = rng.choice([[value(rng), value(rng)], offsets[::-1], offsets[:1]])
                entry["data_offsets"] = offsets
            case 3:
                entry.pop(rng.choice(["dtype", "shape", "data_offsets"]), None)
            case 4:
                header[rng.choice(["a\0b", "a\nb", "", "\ud800", "x" * 10_000, "..", "a"])] = entry
            case 5:
                header["__metadata__"] = value(rng)
            case 6:
                header[name] = value(rng)
                continue
            case 7:
                text = json.dumps(header)
                return (text[:-1] + "," + text[1:]).encode() if len(text) > 2 else b"{,}"
            case _:
                return b"[" * 50_000 if rng.random() < 0.5 else rng.randbytes(100)
        header[name] = entry
    return header


def check_reading(file: Path) -> None:
    """Check that tensors that are read have the bytes that the header names.

    What the format's own library refuses must be refused.
    """
    header, tensors = read_safetensors(file)
    try:
        with safetensors.safe_open(file, "np") as theirs:
            names = set(theirs.keys())
    except safetensors.SafetensorError as error:
        require(False, f"read, though the library says {error}")
    require(names == set(tensors) == set(header.shapes), "other names")
    content = file.read_bytes()
    start = len(content) - max((tensor.end for tensor in header.tensors.values()), default=0)
    for name, tensor in header.tensors.items():
        found = tensors[name]
        mx.eval(found)
        require(found.shape == tensor.shape, "another shape")
        expected = content[start + tensor.start : start + tensor.end]
        if tensor.kind not in ("BOOL", "F64", *EIGHT_BITS):  # which have other bytes in memory
            require(
                bytes(memoryview(mx.view(found.flatten(), mx.uint8))) == expected, "other bytes"
            )


@attack("checkpoints", cases=900)
def headers(case: Case) -> None:
    """Read headers with wrong statements."""
    header, data = small_header(case.rng)
    spoilt = spoil(header, case.rng) if case.rng.random() < 0.9 else header
    length = case.rng.choice([None] * 9 + [0, 1, 2**31, 2**63, 2**64 - 1, 99_999_999])
    data += case.rng.choice([b""] * 9 + [b"\0", b"garbage" * 100])
    check_reading(case.keep(case.folder / "a.safetensors", file_of(spoilt, data, length)))


@attack("checkpoints", cases=400)
def bytes_of_files(case: Case) -> None:
    """Change bytes of a real header, or truncate a file: as model, VAE and LoRA."""
    original = (TINY / WEIGHTS["vae"]).read_bytes()
    n = 8 + int.from_bytes(original[:8], "little")
    if case.rng.random() < 0.7:
        content = damaged(original[:n], case.rng) + original[n:]
    else:
        content = original[: case.rng.randrange(len(original))]
    model = tiny(case.folder, WEIGHTS["vae"])
    file = case.keep(model / WEIGHTS["vae"], content)
    sd = loaders.load_autoencoder(model)
    check_reading(file)
    exact = dict(tree_flatten(loaders.load_autoencoder("tiny").parameters()))
    for name, found in tree_flatten(sd.parameters()):
        require(mx.array_equal(found, exact[name]).item(), f"{name} is another one")


@attack("checkpoints", cases=300)
def tensors(case: Case) -> None:
    """Read valid files with missing, extra or misshapen tensors, or of another type."""
    network = case.rng.choice(["vae", "unet"])
    model = tiny(case.folder, WEIGHTS[network])
    weights = load((model / WEIGHTS[network]).read_bytes())
    key = case.rng.choice([*weights])
    old = weights[key]
    is_fine = False
    match case.rng.randrange(8):
        case 0:
            del weights[key]
        case 1:
            weights[f"{key}.{case.rng.randrange(9)}"] = old
        case 2:
            weights[key] = old[..., :-1]
        case 3:
            weights[key] = old[None]
        case 4:
            weights[key] = old.astype(case.rng.choice([np.int8, np.int64, np.bool_, np.float64]))
        case 5:
            weights[key], is_fine = old.astype(np.float16), True
        case 6:
            weights[key] = old.reshape(-1) if old.ndim > 1 else old[:, None]
        case _:
            weights[f"{key} "] = weights.pop(key)
    case.keep(model / WEIGHTS[network], save(weights))
    load_network = {"vae": loaders.load_autoencoder, "unet": loaders.load_unet}[network]
    try:
        mx.eval(load_network(model).parameters())
    except ValueError as error:
        require(not is_fine and key in str(error), f"does not name {key}: {error}")
        raise
    require(is_fine, f"accepted, {key} being wrong")


@attack("checkpoints", cases=300)
def shards(case: Case) -> None:
    """Read indices that name files outside, missing files, or a tensor twice."""
    model = tiny(case.folder, WEIGHTS["vae"])
    weights = load((model / WEIGHTS["vae"]).read_bytes())
    names = ["a-00001-of-00002.safetensors", "a-00002-of-00002.safetensors"]
    (model / WEIGHTS["vae"]).unlink()
    index = {key: names[i % 2] for i, key in enumerate(weights)}
    parts = [{k: weights[k] for k, n in index.items() if n == name} for name in names]
    key = case.rng.choice([*weights])
    is_fine = False
    content: Any = {"weight_map": index}
    match case.rng.randrange(8):
        case 0:
            evil = ["../unet/x.safetensors", "/etc/passwd", ".."]
            evil += ["a\0.safetensors", "\n.safetensors"]
            index[key] = case.rng.choice([*evil, value(case.rng)])
        case 1:
            parts[0] |= {key: weights[key]}
            parts[1] |= {key: weights[key]}
        case 2:
            parts = parts[: case.rng.randrange(2)]
        case 3:
            content = value(case.rng)
        case 4:
            content["weight_map"] = value(case.rng)
        case 5:
            for part in parts:
                part.pop(key, None)
        case 6:
            index["not.there"], is_fine = names[0], True
        case _:
            is_fine = True
    for name, part in zip(names, parts, strict=False):
        (model / "vae" / name).write_bytes(save(part))
    file = model / "vae/diffusion_pytorch_model.safetensors.index.json"
    text = json.dumps(content, default=str).encode()
    case.keep(file, text)
    mx.eval(loaders.load_autoencoder(model).parameters())
    require(is_fine, "accepted")


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple:
        return os.system, (f"touch '{self.file}'",)


def write_pickle(file: Path, victim: Path, rng: Random) -> None:
    """Write a pickle with a payload, plain or in a zip file as PyTorch writes it."""
    content = pickle.dumps(Payload(victim), protocol=rng.choice([0, 1, 2, 3, 4, 5]))
    if rng.random() < 0.5:
        with zipfile.ZipFile(file, "w") as zipped:
            zipped.writestr("archive/data.pkl", content)
            zipped.writestr("archive/version", "3\n")
    else:
        file.write_bytes(content)


@attack("checkpoints", cases=150)
def pickles(case: Case) -> None:
    """Give a pickle with any name wherever a file can be given: its payload must never run."""
    victim = case.folder / "victim"
    output = case.folder / "o.png"
    suffix = case.rng.choice([".safetensors", ".ckpt", ".pt", ".bin", ".pth", "", ".json"])
    try:
        if case.rng.random() < 0.4:
            path = case.rng.choice([*WEIGHTS.values(), "unet/config.json", "tokenizer/vocab.json"])
            model = tiny(case.folder)
            (model / path).unlink()
            names = [model / path, model / path.replace("safetensors", "bin")]
            write_pickle(case.rng.choice(names), victim, case.rng)
            arguments = ["--model", model]
        else:
            file = case.folder / f"evil{suffix}"
            write_pickle(file, victim, case.rng)
            options = (["--model"], ["--model=tiny", "--vae"], ["--model=tiny", "--lora"])
            arguments = [*case.rng.choice(options), file]
            if case.rng.random() < 0.2:
                arguments = ["--model=tiny", f"--embedding=<x>={file}"]
        case.script(
            txt2image.main, "a", *arguments, "--steps=1", "--n_images=1", "--output", output
        )
    finally:
        require(not victim.exists(), "the payload ran")
    require(False, "accepted")


@attack("checkpoints", cases=300)
def loras(case: Case) -> None:
    """Load LoRA files that do not fit, with hostile options."""
    name = "unet.mid_block.attentions.0.proj_in"
    dims = 128
    tensors = {
        f"{name}.lora_A.weight": np.ones((4, dims), np.float32),
        f"{name}.lora_B.weight": np.ones((dims, 4), np.float32),
    }
    key = case.rng.choice([*tensors])
    patterns = ["(a+)+$", "(", "(.*)*b", "x" * 10_000, "(?P<a>", "\\", ""]
    config: Any = {}
    match case.rng.randrange(7):
        case 0:
            tensors[f"{name}.alpha"] = np.array(any_number(case.rng), np.float32)
        case 1:
            config = {"unet.alpha_pattern": {case.rng.choice(patterns): value(case.rng)}}
        case 2:
            config = {"unet.alpha_pattern": {case.rng.choice(patterns): 1.0}}
        case 3:
            option = case.rng.choice(["lora_alpha", "use_rslora", "alpha_pattern"])
            config = {f"unet.{option}": value(case.rng)}
        case 4:
            config = value(case.rng)
        case 5:
            tensors[key] = tensors[key].astype(case.rng.choice([np.int32, np.bool_, np.float16]))
        case _:
            tensors[key] = tensors[key].reshape(case.rng.choice([(-1,), (2, -1), (-1, 1, 1, 1)]))
    text = json.dumps(config)
    if case.rng.random() < 0.1:
        text = text[: case.rng.randrange(1 + len(text))]
    file = case.folder / "lora.safetensors"
    case.keep(file, save(tensors, metadata={"lora_adapter_metadata": text}))
    unet = loaders.load_unet("tiny")
    load_lora({"unet": unet}, file, 1.0, mx.float32)
    layer = unet.mid_block.attentions[0].proj_in
    require(mx.isfinite(layer.up).all().item(), "not finite")


def any_number(rng: Random) -> float:
    """Return a number, possibly infinite or NaN."""
    return rng.choice([0.0, -1.0, 1e30, float("nan"), float("inf"), 4.0])


@attack("checkpoints", cases=150)
def learned_words(case: Case) -> None:
    """Load textual inversions that do not fit."""
    shape = case.rng.choice(
        [(128,), (3, 128), (2, 128), (0, 128), (128, 3), (), (1, 1, 128), (64,)]
    )
    kind = case.rng.choice([np.float32, np.float16, np.int32, np.bool_, np.float64])
    tensors = {case.rng.choice(["emb_params", "clip_l", "x"]): np.ones(shape, kind)}
    if case.rng.random() < 0.2:
        tensors["clip_g"] = np.ones(shape, kind)
    content = save(tensors)
    if case.rng.random() < 0.3:
        content = damaged(content, case.rng)
    file = case.keep(case.folder / "e.safetensors", content)
    sd = StableDiffusion("tiny")
    sd.load_embedding("<word>", file)
    ids = sd.tokenizer.encode("a <word>")
    require(max(ids) < len(sd.text_encoder.token_embedding.weight), "ids beyond the table")
