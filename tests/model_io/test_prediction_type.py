"""What the UNet of a single file predicts is said by it, or guessed aloud."""

import numpy as np
import original_layout
import pytest
from kinds import PUBLISHED_KINDS
from original_layout import original_tensors

from stable_diffusion.model_io.loaders import load_model_config, open_model
from stable_diffusion.model_io.prediction_type import MIN_DEVIATION, TELLTALE

SD_1, SD_2, _, SDXL = PUBLISHED_KINDS
EPSILON, VELOCITY = "epsilon", "v_prediction"
MARKERS = {name: np.zeros(0, np.float32) for name in ("v_pred", "ztsnr")}


@pytest.fixture
def write(checkpoint, tmp_path):
    """Return a function that writes a single file with metadata and further tensors."""

    def save(kind, metadata=None, **tensors):
        own = {**original_tensors(checkpoint(kind)), **tensors}
        return original_layout.save(own, tmp_path / "x.safetensors", metadata)

    return save


@pytest.mark.parametrize(
    ("metadata", "predicts"),
    [
        ({"modelspec.prediction_type": "v"}, VELOCITY),
        ({"modelspec.prediction_type": "epsilon"}, EPSILON),
        ({"modelspec.predict_key": "v"}, VELOCITY),
        ({"modelspec.predict_key": "epsilon"}, EPSILON),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v"}, VELOCITY),
        ({"modelspec.architecture": "stable-diffusion-v2-512"}, EPSILON),
        ({"ss_v_parameterization": "True"}, VELOCITY),
    ],
)
def test_metadata(write, metadata, predicts, recwarn):
    file = write(SD_2, metadata)
    config = load_model_config(file)
    assert config.diffusion.prediction_type == predicts
    assert config.defaults.size == ((768, 768) if predicts == VELOCITY else (512, 512))
    other = EPSILON if predicts == VELOCITY else VELOCITY
    config = load_model_config(open_model(file, prediction_type=other))
    assert config.diffusion.prediction_type == other
    assert not [each for each in recwarn if issubclass(each.category, UserWarning)]


def test_comfyui_says_it_for_sdxl(write):
    assert load_model_config(write(SDXL)).diffusion.prediction_type == EPSILON
    file = write(
        SDXL,
        {"modelspec.predict_key": "v", "modelspec.architecture": "stable-diffusion-xl-v1-base"},
    )
    assert load_model_config(file).diffusion.prediction_type == VELOCITY


def test_something_that_is_not_supported(write):
    file = write(SD_1, {"modelspec.predict_key": "edm"})
    with pytest.raises(ValueError, match="predict_key = 'edm' is not supported$"):
        load_model_config(file)


@pytest.mark.parametrize("markers", [["v_pred"], ["v_pred", "ztsnr"], ["ztsnr"]])
def test_markers(write, markers):
    """Zero terminal SNR: the schedule ends in pure noise, where only trailing spacing begins."""
    config = load_model_config(write(SDXL, **{name: MARKERS[name] for name in markers}))
    assert config.diffusion.prediction_type == (VELOCITY if "v_pred" in markers else EPSILON)
    assert config.defaults.size == (1024, 1024)
    is_zero_snr = len(markers) == 2
    assert config.diffusion.rescale_betas_zero_snr == is_zero_snr
    assert config.diffusion.timestep_spacing == ("trailing" if is_zero_snr else "leading")


def test_zero_snr_in_the_metadata(write):
    config = load_model_config(write(SDXL, {"ss_zero_terminal_snr": "True"})).diffusion
    assert config.rescale_betas_zero_snr


def test_contradictions(write):
    """A marker counts more than metadata, and the first statement more than others."""
    file = write(SDXL, {"modelspec.predict_key": "epsilon"}, v_pred=MARKERS["v_pred"])
    with pytest.warns(UserWarning, match="tensor v_pred says v_prediction, which is taken, model"):
        assert load_model_config(file).diffusion.prediction_type == VELOCITY
    said = {"modelspec.prediction_type": "epsilon", "modelspec.predict_key": "v"}
    with pytest.warns(UserWarning, match="prediction_type says epsilon, which is taken, modelspec"):
        assert load_model_config(write(SD_1, said)).diffusion.prediction_type == EPSILON


@pytest.mark.parametrize(
    ("factor", "predicts"), [(1.05, VELOCITY), (0.95, EPSILON), (None, EPSILON)]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rule_for_sd_2(write, checkpoint, tmp_path, factor, predicts, dtype, recwarn):
    """The deviation of one bias decides, around whatever mean; a model without it is the usual."""
    tensors = original_tensors(checkpoint(SD_2))
    bias = tensors.pop(TELLTALE)
    if factor is not None:
        bias = (bias - bias.mean()) / bias.std() * MIN_DEVIATION * factor + 0.5
        tensors[TELLTALE] = bias
    file = original_layout.save(tensors, tmp_path / "x.safetensors", dtype=dtype)
    model = open_model(file)
    assert model.diffusion_config.prediction_type == predicts
    assert model.unet_config.sample_size == (96 if predicts == VELOCITY else 64)
    copied = open_model(model, prediction_type=EPSILON)
    assert copied.diffusion_config.prediction_type == EPSILON
    (line,) = [str(each.message) for each in recwarn if issubclass(each.category, UserWarning)]
    other = VELOCITY if predicts == EPSILON else EPSILON
    assert f"is taken to predict {predicts}: " in line
    assert line.endswith(f"if the pictures are noise, give --prediction-type {other}")
