"""Models with unusable numbers, in single files, or with something else in place of files."""

import tempfile
from functools import cache
from pathlib import Path
from random import Random
from time import process_time

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from PIL import Image
from safetensors.numpy import load, save

import txt2image
from attacks.checkpoints import file_of
from attacks.configs import CONFIGS, TOKENIZER, check_model
from attacks.harness import Case, Refused, attack, require
from attacks.hostile import NO_FILES, WEIGHTS, tiny, value
from attacks.programs import USUAL, txt2image_case
from stable_diffusion import StableDiffusion
from stable_diffusion.model_io import loaders
from stable_diffusion.model_io.model import Model
from stable_diffusion.model_io.single_file import open_vae_file

NETWORKS = ("text_encoder", "unet", "autoencoder")
SECONDS = 10  # of processor time, whatever a header says
BAD = [np.nan, np.inf, -np.inf, 3e38, -3e38, 1e30, 1e10, 7e4, 1e-44, 0.0]


@attack("checkpoints", cases=150, quick=2)
def numbers(case: Case) -> None:
    """Use weights that are not finite or too large: a picture, or an error with file and tensor."""
    component = case.rng.choice([*WEIGHTS])
    model = tiny(case.folder, WEIGHTS[component])
    weights = load((model / WEIGHTS[component]).read_bytes())
    key, bad = case.rng.choice([*weights]), case.rng.choice(BAD)
    tensor = weights[key].copy()
    where = ... if case.rng.random() < 0.3 else case.rng.randrange(tensor.size)
    with np.errstate(over="ignore"):
        tensor.reshape(-1)[where] = bad
    is_guilty = not np.isfinite(tensor).all()
    case.keep(model / WEIGHTS[component], save(weights | {key: tensor}))
    flags = case.rng.choice([[], ["--float16"], ["-q"], ["--float16", "-q"], ["--preview=1"]])
    output = case.folder / "o.png"
    arguments = ["a star", *USUAL, f"--model={model}", *flags, f"--output={output}"]
    try:
        _, said = case.script(txt2image.main, *arguments)
    except Refused as refused:
        require("not finite" in str(refused), f"another reason: {refused}")
        require(not is_guilty or key in str(refused), f"does not name {key}: {refused}")
        require(not output.exists(), "refused, but there is a picture")
        raise
    pixels = np.asarray(Image.open(output))
    require(pixels.std() > 0 or "all over" in said, "one colour, and nothing was said")


PLACES = [*CONFIGS, *TOKENIZER, *WEIGHTS.values()]
OPTIONS = ["--model={}", "--model=tiny --vae={}", "--model=tiny --lora={}", "--embedding=x={}"]


@attack("checkpoints", cases=300, quick=20)
def no_files(case: Case) -> None:
    """Put a pipe, device or folder into a model or in its place: refused without waiting."""
    kind = case.rng.choice(sorted(NO_FILES))
    if case.rng.random() < 0.6:
        model = tiny(case.folder)
        path = model / case.rng.choice(PLACES)
        path.unlink()
        words = [f"--model={model}"]
    else:
        path = case.folder / case.rng.choice(["a.safetensors", "model", "a.ckpt"])
        words = case.rng.choice(OPTIONS).format(path).split(" ")
    NO_FILES[kind](path)
    txt2image_case(case, *words, "a star")
    is_optional = path.name in ("model_index.json", "tokenizer_config.json")
    require(is_optional, f"{kind} as {path.name} was accepted as a model")


@cache
def original() -> dict[str, np.ndarray]:
    """Return a small model of SD 1 in the original layout."""
    from checkpoints import write_checkpoint
    from original_layout import original_tensors

    with tempfile.TemporaryDirectory() as folder:
        return original_tensors(write_checkpoint("sd-1-published", Path(folder)))


MANY = [
    "model.diffusion_model.input_blocks.{}.0.op.weight",
    "model.diffusion_model.input_blocks.{}.0.out_layers.3.weight",
    "model.diffusion_model.middle_block.1.transformer_blocks.{}.norm1.weight",
    "first_stage_model.decoder.up.{}.block.0.norm1.weight",
    "first_stage_model.encoder.down.{}.block.0.norm1.weight",
    "first_stage_model.encoder.down.0.block.{}.norm1.weight",
    "cond_stage_model.transformer.text_model.encoder.layers.{}.layer_norm1.weight",
    "stray{}",
    "model_ema.{}",
]
KINDS = ["modelspec.prediction_type", "modelspec.architecture", *"abcdef"]


@attack("checkpoints", cases=250, quick=2)
def single_files(case: Case) -> None:
    """Read a file in the original layout with missing, misshapen, misnamed or extra tensors.

    Whatever its metadata says, it is refused or read in time.
    """
    rng, tensors = case.rng, dict(original())
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    for _ in range(rng.choice([1, 1, 2])):
        spoil(shapes, rng)
    header, end = {"__metadata__": {rng.choice(KINDS): str(value(rng))}}, 0
    content = []
    for key, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        old = tensors.get(key)
        content.append(old.tobytes() if old is not None and old.nbytes == size else bytes(size))
        header[key] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    file = case.keep(case.folder / "a.safetensors", file_of(header, b"".join(content)))
    start = process_time()
    try:
        if rng.random() < 0.2:
            mx.eval(loaders.load_autoencoder(Model(open_vae_file("a", file))).parameters())
        else:
            check_model(case, file)
    finally:
        took = process_time() - start
        require(took < SECONDS, f"{took:.1f} s")


def spoil(shapes: dict[str, tuple[int, ...]], rng: Random) -> None:
    """Change the shapes that a header will list."""
    key = rng.choice([*shapes])
    shape = shapes[key]
    match rng.randrange(7):
        case 0:
            del shapes[key]
        case 1:
            prefix = key[: rng.randrange(1, len(key))]
            for each in [each for each in shapes if each.startswith(prefix)][:-1]:
                del shapes[each]
        case 2:
            shapes[key] = rng.choice([(), (0,), shape[::-1], (*shape, 1), shape[:-1], (1, 2, 3)])
        case 3:
            shapes[key] = tuple(max(n + rng.choice([-1, 0, 1, 64]), 0) for n in shape)
        case 4:
            pattern, n = rng.choice(MANY), rng.choice([1, 9, 1000, 20_000, 60_000])
            shapes.update((pattern.format(i), (0,)) for i in range(n))
        case 5:
            shapes[rng.choice([f"{key}.0", key.upper(), key.replace(".", "..", 1), "v_pred"])] = (
                shape
            )
        case _:
            part = rng.choice(key.split("."))
            shapes[key.replace(part, rng.choice(["0", "-1", "99999", "lora_up", "é"]), 1)] = shape


@attack("checkpoints", cases=30, quick=1)
def many_tensors(case: Case) -> None:
    """Load LoRAs, embeddings and files of diffusers with thousands of unexpected tensors."""
    names = ["lora_unet_mid_block_attentions_{}_proj_in.lora_up.weight", "x.{}", "x" * 400 + "{}"]
    names += ["unet.up_blocks.{}.lora_A.weight", "lora_te_text_model_encoder_layers_{}.alpha"]
    pattern, n = case.rng.choice(names), case.rng.choice([100, 5000, 40_000, 60_000])
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    content = file_of({pattern.format(i): entry for i in range(n)}, b"")
    model = tiny(case.folder, *WEIGHTS.values())
    file = case.keep(model / case.rng.choice([*WEIGHTS.values()]), content)
    sd = StableDiffusion(case.rng.choice(["tiny", model]))
    start = process_time()
    try:
        if sd.model.name == "tiny":
            case.rng.choice([sd.load_lora, lambda path: sd.load_embedding("<x>", path)])(file)
        else:
            mx.eval([tree_flatten(getattr(sd, part).parameters()) for part in NETWORKS])
    finally:
        took = process_time() - start
        require(took < SECONDS, f"{took:.1f} s")
    require(False, "accepted")
