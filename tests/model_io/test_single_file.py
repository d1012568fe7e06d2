"""One file in the original layout gives diffusers' pictures; errors say what is wrong with it."""

from collections.abc import Callable
from functools import cache, partial

import mlx.core as mx
import numpy as np
import original_layout
import pytest
import torch
from checkpoints import edit
from kinds import PUBLISHED_KINDS
from mlx.utils import tree_flatten
from oracle import psnr
from original_layout import OPEN_CLIP, XL_CLIP, XL_OPEN_CLIP, original_tensors, write_single_file
from ours import same
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch_file
from ways_in import PREDICTION, PROMPT, drawn, from_single_file

import txt2image
from stable_diffusion.model_io import loaders
from stable_diffusion.model_io.loaders import load_model_config, open_model

SAME, OTHER = 50, 25  # dB
SD_1, SD_2, SD_2_V, SDXL = PUBLISHED_KINDS
NETWORKS = {"model", "first_stage_model", "cond_stage_model"}  # starts of their keys


@pytest.fixture(scope="module")
def theirs(single, checkpoint) -> Callable[[str], np.ndarray]:
    """Return a function that gives diffusers' picture from a single file and a folder's configs."""

    @cache
    def draw(kind: str) -> np.ndarray:
        return from_single_file(single(kind), checkpoint(kind))

    return draw


@pytest.mark.parametrize("kind", [SD_1, SD_2_V, SDXL])
def test_picture_equals_that_of_diffusers(single, theirs, kind):
    expected = theirs(kind)
    assert expected.std() >= 30  # of 255: the picture shows something
    assert psnr(drawn(str(single(kind)), prediction_type=PREDICTION[kind]), expected) >= SAME


@pytest.mark.parametrize("kind", [SD_1, SD_2, SDXL])
def test_networks_equal_those_of_the_folder(single, checkpoint, kind):
    file, folder = str(single(kind)), checkpoint(kind)
    assert same(loaders.load_unet(file), loaders.load_unet(folder))
    assert same(loaders.load_autoencoder(file), loaders.load_autoencoder(folder))
    for name in [path.name for path in folder.glob("text_encoder*")]:
        one, other = (loaders.load_text_encoder(m, model_key=name) for m in (file, folder))
        assert same(one, other)
    for name in [path.name for path in folder.glob("tokenizer*")]:
        keys = (f"{name}_vocab", f"{name}_merges")
        one, other = (loaders.load_tokenizer(m, *keys) for m in (file, folder))
        assert one.encode(PROMPT) == other.encode(PROMPT)
        assert one.pad_id == other.pad_id


def test_half_precision_file(checkpoint, tmp_path):
    file = write_single_file(checkpoint(SDXL), tmp_path / "x.safetensors", dtype=np.float16)
    for load in (loaders.load_unet, loaders.load_text_encoder, loaders.load_autoencoder):
        half = load(file, float16=True)
        if load is not loaders.load_autoencoder:  # which is always in float32
            assert same(half, load(checkpoint(SDXL), float16=True))
        full = load(file)
        assert all(value.dtype == mx.float32 for _, value in tree_flatten(full.parameters()))
        half.set_dtype(mx.float32)
        assert same(full, half)


def test_prediction_type_of_a_folder(checkpoint):
    config = load_model_config(open_model(checkpoint(SD_1), prediction_type="v_prediction"))
    assert config.diffusion.prediction_type == "v_prediction"


def test_wrong_prediction_type_shows(single, theirs):
    """This shows that the comparison of pictures above can fail."""
    assert psnr(drawn(single(SD_2_V), prediction_type="epsilon"), theirs(SD_2_V)) < OTHER


def test_text_encoder_of_older_and_other_writers(spoil_file, checkpoint):
    """Some lack CLIP's `text_model.`, or store OpenCLIP's projection as a linear layer."""
    old = spoil_file(
        SD_1, lambda tensors: {k.replace("text_model.", ""): v for k, v in tensors.items()}
    )
    assert same(loaders.load_text_encoder(old), loaders.load_text_encoder(checkpoint(SD_1)))

    def as_linear(tensors, end):
        key = f"{XL_OPEN_CLIP}text_projection"
        tensors[f"{key}{end}"] = tensors.pop(key).T
        tensors[f"{XL_CLIP}text_projection.weight"] = np.eye(64)
        tensors["conditioner.embedders.0.logit_scale"] = np.ones(())

    expected = loaders.load_text_encoder(checkpoint(SDXL), model_key="text_encoder_2")
    for end in (".weight", ".weight.weight"):
        linear = spoil_file(SDXL, partial(as_linear, end=end))
        assert same(loaders.load_text_encoder(linear, model_key="text_encoder_2"), expected)


def test_all_problems_of_a_network_in_one_message(spoil_file):
    """The message has the names of the file; a tensor of several parameters is named once."""
    block = "model.diffusion_model.output_blocks.5"
    attention = f"{OPEN_CLIP}transformer.resblocks.0.attn."

    def spoil(tensors):
        del tensors[f"{block}.0.in_layers.0.bias"]
        tensors[f"{block}.7.weight"] = np.zeros(3)
        tensors[f"{block}.2.conv.weight"] = tensors[f"{block}.2.conv.weight"][:, :3]
        del tensors[f"{attention}in_proj_bias"]
        tensors[f"{attention}in_proj_weight"] = tensors[f"{attention}in_proj_weight"][:-1]

    file = spoil_file(SD_2, spoil)
    with pytest.raises(ValueError) as caught:
        loaders.load_unet(file)
    message = str(caught.value)
    assert f"missing: {block}.0.in_layers.0.bias;" in message
    assert f"not expected: {block}.7.weight;" in message
    assert f"wrong shape: {block}.2.conv.weight [64, 3, 3, 3], not [64, 64, 3, 3]" in message
    with pytest.raises(ValueError) as caught:
        loaders.load_text_encoder(file)
    message = str(caught.value)
    assert f"missing: {attention}in_proj_bias; wrong" in message
    assert message.endswith(f"{attention}in_proj_weight [383, 128], not [384, 128]")


def test_misshapen_projection(spoil_file):
    key = f"{XL_OPEN_CLIP}text_projection"
    file = spoil_file(SDXL, lambda tensors: tensors.update({key: tensors[key][1:]}))
    with pytest.raises(ValueError, match=r"text_projection \[127, 24\], not \[128, 24\]"):
        loaders.load_text_encoder(file, model_key="text_encoder_2")


def test_leftovers_are_passed_over_and_counted(spoil_file, checkpoint):
    """One line counts what belongs to no network; what the layout itself has is not mentioned."""
    left = {
        "extra": np.zeros(1),
        "global_step": np.array(875000),
        "optimizer_states.0.step": np.zeros(1, np.uint8),
        "embedding_manager.string_to_param.x": np.zeros((1, 8)),
        "first_stage_model.loss.discriminator.main.0.weight": np.zeros((4, 3, 4, 4)),
        "first_stage_model.encoder.norm_out.num_batches_tracked": np.array(3),
        "cond_stage_model.transformer.vision_model.x": np.zeros(2),
        "cond_stage_model.transformer.text_projection.weight": np.zeros((128, 128)),
        "cond_stage_model.transformer.embedding_manager.x": np.zeros(2),
        "model.diffusion_model.model_ema.decay": np.zeros(()),
        "lora_unet_x.alpha": np.zeros((), np.float16),
    }
    original = {"cond_stage_model.transformer.text_model.embeddings.position_ids": np.arange(77.0)}

    def leave(tensors):
        own = {k: v for k, v in tensors.items() if k.split(".")[0] in NETWORKS}
        del own["first_stage_model.loss.logvar"]
        return {**own, **left, **original}

    with pytest.warns(UserWarning) as caught:
        model = open_model(spoil_file(SD_1, leave))
    (line,) = {str(each.message) for each in caught}
    assert "x.safetensors: no network needs 10 of its " in line
    assert "extra" in line and "num_batches_tracked" in line
    assert "position_ids" not in line and "text_projection" not in line
    folder = checkpoint(SD_1)
    assert same(loaders.load_unet(model), loaders.load_unet(folder))
    assert same(loaders.load_text_encoder(model), loaders.load_text_encoder(folder))
    assert same(loaders.load_autoencoder(model), loaders.load_autoencoder(folder))


def test_file_without_leftovers_has_no_line(checkpoint, tmp_path, recwarn):
    file = original_layout.save(original_tensors(checkpoint(SD_2)), tmp_path / "x.safetensors")
    open_model(file)
    assert not [each for each in recwarn if issubclass(each.category, UserWarning)]


@pytest.mark.parametrize(
    ("kind", "key"),
    [(SD_1, "first_stage_model.encoder.extra.weight"), (SDXL, f"{XL_CLIP}text_model.extra")],
)
def test_strays_in_networks_stay_errors(spoil_file, kind, key):
    file = spoil_file(kind, lambda tensors: tensors.update({key: np.zeros(1)}))
    load = loaders.load_autoencoder if "first" in key else loaders.load_text_encoder
    with pytest.raises(ValueError, match=f"not expected: {key}$"):
        load(file)


def test_leftovers_of_folders(copy):
    """Weight files of diffusers have buffers too, and a projection that the config does not use."""
    folder = copy("sd-1")
    buffers = {"logit_scale": np.ones(()), "text_projection.weight": np.ones((32, 32))}
    edit(folder / "text_encoder/model.safetensors", lambda tensors: tensors | buffers)
    counter = {"encoder.conv_norm_out.num_batches_tracked": np.array(7)}
    edit(folder / "vae/diffusion_pytorch_model.safetensors", lambda tensors: tensors | counter)
    assert loaders.load_text_encoder(folder).token_embedding.weight.shape[1] == 32
    loaders.load_autoencoder(folder)


@pytest.mark.parametrize("kind", [SD_1, SD_2])
def test_names_of_sgm(spoil_file, checkpoint, kind):
    """Stability's later programs wrote SD 1 and 2 (and SD 2 Turbo) with the names of SDXL."""
    file = spoil_file(
        kind,
        lambda tensors: {
            k.replace("cond_stage_model.", "conditioner.embedders.0."): v
            for k, v in tensors.items()
        },
    )
    model = open_model(file, prediction_type="epsilon")
    assert model.source.family.name == kind.removesuffix("-published").replace("sd-", "SD ")
    assert same(loaders.load_text_encoder(model), loaders.load_text_encoder(checkpoint(kind)))
    assert not model.config.is_xl


def test_second_text_encoder_in_the_names_of_transformers(spoil_file, checkpoint):
    """As in the memory of ComfyUI, whose names for the roots are read too."""
    theirs = load_file(checkpoint(SDXL) / "text_encoder_2/model.safetensors")

    def rename(tensors):
        others = {k: v for k, v in tensors.items() if not k.startswith("conditioner.")}
        first = {
            k.replace(XL_CLIP, "text_encoders.clip_l.transformer."): v
            for k, v in tensors.items()
            if k.startswith(XL_CLIP)
        }
        named = {
            k if "projection" in k else f"text_model.{k.removeprefix('text_model.')}": v
            for k, v in theirs.items()
        }
        return {
            **others,
            **first,
            **{f"text_encoders.clip_g.transformer.{k}": v for k, v in named.items()},
        }

    model = open_model(spoil_file(SDXL, rename))
    for name in ("text_encoder", "text_encoder_2"):
        one, other = (
            loaders.load_text_encoder(m, model_key=name) for m in (model, checkpoint(SDXL))
        )
        assert same(one, other)


def test_refiner_and_half_of_sdxl(spoil_file):
    """The refiner has the second text encoder in the place of the first."""

    def keep(start: str, new: str):
        def change(tensors):
            other = f"conditioner.embedders.{0 if start[-2] == '1' else 1}."
            return {k.replace(start, new): v for k, v in tensors.items() if other not in k}

        return change

    refiner = keep("conditioner.embedders.1.", "conditioner.embedders.0.")
    with pytest.raises(ValueError, match="this is the SDXL refiner; only Stable Diffusion"):
        open_model(spoil_file(SDXL, refiner))
    half = keep("conditioner.embedders.0.", "conditioner.embedders.0.")
    with pytest.raises(ValueError, match="has only one of the two text encoders of SDXL"):
        open_model(spoil_file(SDXL, half))


VAE_NAMES = {
    "diffusers of 2023": {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"},
    "older": {
        "q": "query",
        "k": "key",
        "v": "value",
        "proj_out": "proj_attn",
        "norm": "group_norm",
    },
}


@pytest.mark.parametrize("names", VAE_NAMES)
@pytest.mark.parametrize("ends", [(), (1,), (1, 1)])
def test_other_names_of_the_attention_of_a_vae(checkpoint, tmp_path, names, ends):
    """In a model, or alone; in both halves or one; as linear layers or as convolutions."""
    tensors = original_tensors(checkpoint(SD_1))
    for key in [k for k in tensors if ".mid.attn_1." in k and (ends or "decoder" in k)]:
        value = tensors.pop(key)
        if value.ndim == 4:
            value = value.reshape(value.shape[:2] + ends)
        start, _, end = key.partition(".attn_1.")
        name, _, parameter = end.rpartition(".")
        tensors[f"{start}.attn_1.{VAE_NAMES[names].get(name, name)}.{parameter}"] = value
    expected = loaders.load_autoencoder(checkpoint(SD_1))
    file = original_layout.save(tensors, tmp_path / "x.safetensors")
    assert same(loaders.load_autoencoder(file), expected)
    alone = {k.removeprefix("first_stage_model."): v for k, v in tensors.items() if "first" in k}
    vae = original_layout.save(alone, tmp_path / "vae.safetensors")
    assert same(loaders.load_autoencoder(open_model(checkpoint(SD_1), vae=vae)), expected)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("first_stage_model.", r"x.safetensors has no VAE: give one \(--vae\)"),
        ("cond_stage_model.", "has no text encoder of SD 1.x, 2.x or XL"),
        (
            ("model.diffusion_model.", "model_ema."),
            "not a Stable Diffusion checkpoint in one file: no keys begin with model.d",
        ),
        (
            "model.diffusion_model.out.2",
            "is not clear, because model.diffusion_model.out.2.weight is",
        ),
    ],
)
def test_missing_networks(spoil_file, start, message):
    def drop(tensors):
        return {key: value for key, value in tensors.items() if not key.startswith(start)}

    with pytest.raises((ValueError, OSError), match=message):
        load_model_config(spoil_file(SD_1, drop))


def run(model, *options) -> int:
    return txt2image.main(["a photo", "--model", str(model), *map(str, options)])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.ckpt", b"PK\x03\x04", "is a pickle, and pickles are never loaded: convert it in diff"),
        ("x.pt", b"PK\x03\x04", "is a pickle"),
        ("x.safetensors", None, "there is no file"),
        ("x.ckpt", None, "there is no file"),
        ("x.safetensors", b"", "is not a readable safetensors file"),
        ("x.safetensors", b"\xff" * 100, "is not a readable safetensors file"),
        ("x.safetensors", b"\x02\0\0\0\0\0\0\0[]", "is not a readable safetensors file"),
        ("x.safetensors", b"\x0d\0\0\0\0\0\0\0" + b'{"a":{"b":1}}', "is not a readable"),
    ],
)
def test_files_that_are_not_models(tmp_path, capsys, name, content, message):
    """The error is one line, with status 1, for a model and for a VAE."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert run(tmp_path / name) == 1
    assert run("tiny", "--vae", tmp_path / name) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(message in line and str(tmp_path / name) in line for line in lines)


def test_file_that_is_cut_short(single, tmp_path):
    file = tmp_path / "x.safetensors"
    content = single(SD_1).read_bytes()
    file.write_bytes(content[:-1])
    sizes = f"it has {len(content) - 1} of {len(content)} bytes"
    with pytest.raises(ValueError, match=f"x.safetensors is cut short: {sizes}; download it again"):
        open_model(file)


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2", "F64"])
def test_types_of_numbers(checkpoint, tmp_path, kind):
    """A file in 8-bit floats or float64 is one with the same numbers in float32."""
    dtype = {
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "F64": torch.float64,
    }[kind]
    tensors = original_tensors(checkpoint(SD_1))
    stored = {k: torch.from_numpy(np.array(v)).to(dtype).contiguous() for k, v in tensors.items()}
    save_torch_file(stored, tmp_path / "x.safetensors")
    save_torch_file({k: v.float() for k, v in stored.items()}, tmp_path / "y.safetensors")
    for load in (loaders.load_text_encoder, loaders.load_autoencoder):
        one, other = load(tmp_path / "x.safetensors"), load(tmp_path / "y.safetensors")
        assert all(value.dtype == mx.float32 for _, value in tree_flatten(one.parameters()))
        assert same(one, other)
    one, other = (
        loaders.load_text_encoder(tmp_path / f"{name}.safetensors", float16=True) for name in "xy"
    )
    assert same(one, other)


def test_script_with_a_single_file(single, tmp_path, capsys):
    output = tmp_path / "o.png"
    options = ["--steps", 1, "--width", 64, "--height", 64, "--n_images", 1, "--output", output]
    assert run(single(SD_2_V), *options) == 0
    warned = [x for x in capsys.readouterr().err.splitlines() if x.startswith("warning: ")]
    assert len(warned) == 2
    assert ": no network needs 10 of its " in warned[0]
    assert "is taken to predict v_prediction: its weights look like it" in warned[1]
    options[-1] = tmp_path / "said.png"
    assert run(single(SD_2_V), *options, "--prediction-type", "v_prediction") == 0
    assert "is taken to predict" not in capsys.readouterr().err
    assert output.exists()


@pytest.mark.parametrize("layout", ["original", "diffusers", "folder", "model"])
def test_another_vae(single, checkpoint, tmp_path, layout):
    """File or folder, alone or in a model, for a model that is a file or a folder."""
    folder = checkpoint(SD_2)
    vae = {
        "original": tmp_path / "x.safetensors",
        "diffusers": folder / "vae" / original_layout.WEIGHTS["vae"],
        "folder": folder,
        "model": single(SD_2),
    }[layout]
    if layout == "original":
        loss = {"loss.logvar": np.zeros(()), "model_ema.decay": np.zeros(())}
        original_layout.save({**original_layout.vae_tensors(folder), **loss}, vae)
    expected = loaders.load_autoencoder(folder)
    for model in (checkpoint(SD_1), single(SD_1)):
        opened = open_model(model, vae=vae)
        assert same(loaders.load_autoencoder(opened), expected)
        assert opened.config.autoencoder.scaling_factor == 0.18215
        assert same(loaders.load_unet(opened), loaders.load_unet(checkpoint(SD_1)))
    assert not same(loaders.load_autoencoder(single(SD_1)), expected)


def test_vae_alone_takes_the_scale_of_the_model(checkpoint, tmp_path):
    """So it does if the model is a file without a VAE."""
    tensors = original_tensors(checkpoint(SDXL))
    without = {k: v for k, v in tensors.items() if not k.startswith("first_stage_model.")}
    file = original_layout.save(without, tmp_path / "model.safetensors")
    vae = original_layout.save(
        original_layout.vae_tensors(checkpoint(SD_1)), tmp_path / "vae.safetensors"
    )
    for model in (file, checkpoint(SDXL)):
        autoencoder = loaders.load_autoencoder(open_model(model, vae=vae))
        assert autoencoder.config.scaling_factor == 0.13025
        assert same(autoencoder, loaders.load_autoencoder(checkpoint(SD_1)))


def test_vae_that_does_not_fit(single, checkpoint, tmp_path):
    wrong = r"scales latents by 0.13025, .* by 0.18215: it is the VAE of another kind of model"
    for model in (checkpoint(SD_1), single(SD_1)):
        for vae in (checkpoint(SDXL), checkpoint(SDXL) / "vae", single(SDXL)):
            with pytest.raises(ValueError, match=wrong):
                load_model_config(open_model(model, vae=vae))
    tensors = original_layout.vae_tensors(checkpoint(SD_1))
    tensors["decoder.conv_in.weight"] = np.zeros((64, 16, 3, 3))
    within = {f"first_stage_model.{key}": value for key, value in tensors.items()}
    within |= {"model.diffusion_model.x": np.zeros(1)}  # a model without text encoders
    within = original_layout.save(within, tmp_path / "within.safetensors")
    wide = original_layout.save(tensors, tmp_path / "wide.safetensors")
    for vae in (wide, within):
        with pytest.raises(ValueError, match="takes 4 channels .* the VAE has 16: they do not fit"):
            load_model_config(open_model(single(SD_1), vae=vae))
    none = tmp_path / "none.safetensors"
    save_file({"a": np.zeros(1)}, none)
    ema = tmp_path / "ema.safetensors"
    save_file({"model_ema.decay": np.zeros(1)}, ema)
    with pytest.raises(ValueError, match="averaged weights of a UNet"):
        open_model(ema)
    with pytest.raises(ValueError, match="holds no VAE"):
        open_model(single(SD_1), vae=none)
    with pytest.raises(ValueError, match=r"it is a VAE \(--vae\)"):
        open_model(wide)
