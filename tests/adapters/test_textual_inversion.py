"""Textual inversion equals diffusers' `load_textual_inversion`, in every format of its files."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from oracle import relative_l2
from safetensors.torch import load_file, save_file

import txt2image
from stable_diffusion import StableDiffusion, StableDiffusionXL

ERROR = 1e-5
PROMPT = "a <Cat-Toy> in the grass, <cat-toy>!"


def random_vectors(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) / 10


def write(folder: Path, **tensors: torch.Tensor) -> Path:
    file = folder / "e.safetensors"
    save_file(tensors, file)
    return file


def assert_equal(sd: StableDiffusion, pipeline, prompt: str) -> None:
    ours, pooled = sd._embed_text(prompt, None)
    theirs = pipeline.to(torch.float64).encode_prompt(
        prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    assert relative_l2(ours, theirs[0].detach()) <= ERROR
    if pooled is not None:
        assert relative_l2(pooled, theirs[2].detach()) <= ERROR


@pytest.fixture
def sd(checkpoint) -> StableDiffusion:
    return StableDiffusion(checkpoint("sd-1"))


@pytest.fixture(scope="module")
def taught(checkpoint, tmp_path_factory) -> StableDiffusion:
    """Return a model that knows `<a>`. Tests must not change it."""
    sd = StableDiffusion(checkpoint("sd-1"))
    sd.load_embedding("<a>", write(tmp_path_factory.mktemp("a"), emb_params=random_vectors(2, 32)))
    return sd


def test_sd_equals_diffusers(oracle, sd, tmp_path):
    """Files with one vector, several, or no second axis, in both formats, loaded in turn."""
    pipeline = oracle("sd-1").read_text_parts()
    before, _ = sd._embed_text(PROMPT, None)
    files = {
        "<cat-toy>": {"<other>": random_vectors(32)},
        "<cat-toy-2>": {"emb_params": random_vectors(3, 32, seed=1)},
        "mystyle": {"<s>": random_vectors(1, 32, seed=2)},
    }
    for name, tensors in files.items():
        file = write(tmp_path, **tensors)
        sd.load_embedding(name, file)
        pipeline.load_textual_inversion(str(file), token=name)
    # diffusers finds several vectors in the case of the name only.
    prompts = (PROMPT, "<cat-toy-2> and<cat-toy>s, mystyle", "no such <cat", "MyStyle" * 3)
    for prompt in prompts:
        assert_equal(sd, pipeline, prompt)
    assert relative_l2(sd._embed_text(PROMPT, None)[0], before) > 0.05


def test_sdxl_equals_diffusers(checkpoint, oracle, tmp_path):
    pipeline = oracle("sdxl").read_text_parts()
    sd = StableDiffusionXL(checkpoint("sdxl"))
    file = write(tmp_path, clip_g=random_vectors(2, 48), clip_l=random_vectors(2, 32, seed=1))
    sd.load_embedding("<cat-toy>", file)
    tensors = load_file(file)
    for key, n in (("clip_l", ""), ("clip_g", "_2")):
        pipeline.load_textual_inversion(
            {"<cat-toy>": tensors[key]},
            tokenizer=getattr(pipeline, f"tokenizer{n}"),
            text_encoder=getattr(pipeline, f"text_encoder{n}"),
        )
    assert_equal(sd, pipeline, "a <cat-toy> in the grass, <cat-toy>!")


def test_a_name_is_as_many_tokens_as_vectors(sd, tmp_path):
    sd.load_embedding("My Style", write(tmp_path, emb_params=random_vectors(5, 32)))
    first = 49408
    ids = sd.tokenizer.tokenize("a MY  style cat")
    assert ids == [49406, 320, *range(first, first + 5), 2368, 49407]
    with pytest.warns(UserWarning, match="dropped: 'my style'"):
        assert len(sd.tokenizer.tokenize("my style " * 15 + "my style")) == 77
    assert len(sd.text_encoder.token_embedding.weight) == first + 5


def test_half_precision_and_few_bits(checkpoint, tmp_path):
    sd = StableDiffusion(checkpoint("sd-1"), float16=True)
    sd.quantize()
    sd.load_embedding("<cat-toy>", write(tmp_path, emb_params=random_vectors(2, 32).bfloat16()))
    weight = sd.text_encoder.token_embedding.weight
    assert weight.dtype == mx.float16
    assert relative_l2(weight[-2:], random_vectors(2, 32)) < 5e-3
    (x,) = sd.generate_latents(PROMPT, num_steps=1, seed=1)
    assert mx.isfinite(x).all().item()


@pytest.mark.parametrize("name", ["cat", " Cat ", "<|endoftext|>", "<a>", "<A>"])
def test_names_that_are_taken(taught, tmp_path, name):
    file = write(tmp_path, emb_params=random_vectors(2, 32))
    with pytest.raises(ValueError, match="is a token already: choose another name"):
        taught.load_embedding(name, file)
    assert len(taught.text_encoder.token_embedding.weight) == 49408 + 2  # nothing was changed


@pytest.mark.parametrize("name", ["", "  ", "wow!"])
def test_names_that_would_not_be_found(checkpoint, tmp_path, name):
    sd = StableDiffusion(checkpoint("sd-2"))  # where `!` is a token of its own
    with pytest.raises(ValueError, match="cannot be a token: choose another name"):
        sd.load_embedding(name, write(tmp_path, emb_params=random_vectors(2, 48)))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"x": (2, 768)}, "is for Stable Diffusion 1.x, this model is another kind of model: "),
        ({"x": (1024,)}, "is for Stable Diffusion 2.x, this model is .*vectors of 1024 numbers"),
        ({"clip_l": (2, 768), "clip_g": (2, 1280)}, "is for SDXL, .*vectors of 768 and 1280 num"),
        ({"x": (2, 5)}, "is for another kind of model, .*do not fit text encoders of 32"),
        (
            {"x": (2, 32), "y": (2, 32)},
            "is not a textual inversion, .*clip_l and clip_g; it has 2: x",
        ),
        ({"lora_unet_x.lora_down.weight": (4, 32)}, "is a LoRA, not a textual inversion: give it"),
        ({}, "it has 0"),
        ({"x": (1, 2, 32)}, r"its tensors are \[1, 2, 32\], not \[n, D\]"),
        ({"x": (0, 32)}, r"its tensors are \[0, 32\], not \[n, D\]"),
        ({"x": ()}, r"its tensors are \[\], not \[n, D\]"),
    ],
)
def test_files_that_do_not_fit(taught, tmp_path, tensors, message):
    file = write(tmp_path, **{key: torch.zeros(shape) for key, shape in tensors.items()})
    with pytest.raises(ValueError, match=message):
        taught.load_embedding("<b>", file)
    assert "<b>" not in taught.tokenizer._ids


def test_files_that_do_not_fit_sdxl(checkpoint, tmp_path):
    sd = StableDiffusionXL(checkpoint("sdxl"))
    with pytest.raises(ValueError, match="do not fit text encoders of 32 and 48"):
        sd.load_embedding("<a>", write(tmp_path, emb_params=random_vectors(2, 32)))
    file = write(tmp_path, clip_l=random_vectors(2, 32), clip_g=random_vectors(3, 48))
    with pytest.raises(ValueError, match="differ in the number of vectors: clip_l 2, clip_g 3"):
        sd.load_embedding("<a>", file)


def test_files_that_cannot_be_read(sd, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such embedding file"):
        sd.load_embedding("<a>", tmp_path / "none.safetensors")
    for name in ("e.pt", "e.bin"):
        (tmp_path / name).write_bytes(b"\x80\x04.")
        with pytest.raises(ValueError, match=r"is a pickle.*convert it in PyTorch.*save_file"):
            sd.load_embedding("<a>", tmp_path / name)
    file = write(tmp_path, emb_params=random_vectors(2, 32))
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ValueError, match="is cut short"):
        sd.load_embedding("<a>", file)


def test_script(checkpoint, tmp_path, capsys):
    """The script takes two embeddings, and refuses wrong usage of the option."""
    one, two = tmp_path / "a=b.safetensors", tmp_path / "e.safetensors"
    save_file({"x": random_vectors(1, 32)}, one)
    save_file({"x": random_vectors(2, 32, seed=1)}, two)
    usual = [PROMPT, "--model", str(checkpoint("sd-1")), "--steps=2", "--n_images=1", "--seed=1"]
    usual += ["--output", str(tmp_path / "o.png")]
    seen = set()
    for options in ([], [f"--embedding=<cat-toy>={one}"], [f"--embedding=<cat-toy>={two}"]):
        assert txt2image.main([*usual, "--embedding", f"<x>={two}", *options]) == 0
        seen.add((tmp_path / "o.png").read_bytes())
    assert len(seen) == 3
    assert txt2image.main([*usual, "--embedding", f"cat={two}"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == "error: 'cat' is a token already: choose another name, such as <my-style>"
    for wrong, message in (
        ("x", "must be NAME=FILE, got 'x'"),
        (f"={two}", "must be NAME=FILE"),
        ("x=/nowhere", "no such embedding file: /nowhere"),
    ):
        with pytest.raises(SystemExit):
            txt2image.main([*usual, "--embedding", wrong])
        assert message in capsys.readouterr().err


def test_nothing_else_changes(sd, tmp_path):
    before, _ = sd._embed_text("a photo of a cat", None)
    sd.load_embedding("<a>", write(tmp_path, emb_params=random_vectors(2, 32)))
    after, _ = sd._embed_text("a photo of a cat", None)
    assert np.array_equal(np.array(before), np.array(after))
