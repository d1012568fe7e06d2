"""8-bit floats, their scales, and numbers that MLX does not read."""

import json

import mlx.core as mx
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from stable_diffusion.model_io.number_types import QUANTIZERS
from stable_diffusion.model_io.safetensors_file import Header, read_safetensors

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
ALL_BYTES = torch.arange(256, dtype=torch.uint8)


@pytest.fixture
def read(tmp_path):
    """Return a function that writes tensors of torch and returns what is read, as float32."""

    def write(tensors, has=None):
        file = tmp_path / "x.safetensors"
        save_file(tensors, file)
        found = read_safetensors(file, has)[1]
        return {key: np.array(value.astype(mx.float32)) for key, value in found.items()}

    return write


@pytest.mark.parametrize("kind", [E4M3, E5M2])
def test_every_number_of_8_bits(read, kind):
    """Also zeros with a sign, subnormal numbers, infinities and NaN."""
    numbers = ALL_BYTES.view(kind)
    (found,) = read({"x": numbers}).values()
    expected = numbers.float().numpy()
    assert np.array_equal(found, expected, equal_nan=True)
    assert np.array_equal(np.signbit(found), np.signbit(expected))


@pytest.mark.parametrize("foreign", [torch.float64, E5M2])
def test_other_types_beside_one_that_mlx_does_not_read(read, foreign):
    """All of them are read, as torch does, also empty ones and scalars."""
    kinds = [torch.float32, torch.float16, torch.bfloat16, torch.float64, E4M3, E5M2]
    kinds += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
    numbers = torch.tensor([[1.5, 3.0, 0.25], [0.0, 448.0, 7.0]], dtype=torch.float64)
    tensors = {str(kind): numbers.to(kind, copy=True) for kind in kinds}
    tensors |= {
        "foreign": numbers.to(foreign, copy=True),
        "empty": torch.zeros((0, 3)),
        "one": numbers[0, 0].clone(),
    }
    found = read(tensors)
    for key, value in tensors.items():
        assert np.array_equal(found[key], value.float().numpy()), key
    assert read(tensors, lambda key: key == "one").keys() == {"one"}


@pytest.mark.parametrize("name", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("shape", [(), (1,), (4,), (4, 1)])
def test_scales(read, name, shape):
    """One for the weight or one for each row; what else belongs to it is left out."""
    torch.manual_seed(0)
    weight = torch.randn(4, 3, 2).to(E4M3)
    scale = torch.rand(shape) + 0.5
    form = json.dumps({"format": "float8_e4m3fn", "full_precision_matrix_mult": True}).encode()
    tensors = {"a.weight": weight, f"a.{name}": scale, "a.bias": torch.ones(4, dtype=E4M3)}
    tensors |= {"a.input_scale": torch.ones(()), "a.scale_input": torch.ones(())}
    tensors |= {"a.comfy_quant": torch.tensor(list(form), dtype=torch.uint8)}
    tensors |= {"model.scaled_fp8": torch.zeros(0, dtype=E4M3), "b.weight": torch.ones(2)}
    found = read(tensors)
    assert found.keys() == {"a.weight", "a.bias", "b.weight"}
    factor = scale if scale.numel() == 1 else scale.reshape(4, 1, 1)
    assert np.array_equal(found["a.weight"], (weight.float() * factor).numpy())
    assert np.array_equal(found["a.bias"], np.ones(4))


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (torch.ones(3), r"the scale of a.weight is \[3\] of .*float32, which is not supported"),
        (torch.ones((4, 2)), r"the scale of a.weight is \[4, 2\]"),
        (torch.ones(4, dtype=torch.uint8), r"the scale of a.weight is \[4\] of .*uint8"),
    ],
)
def test_scales_that_do_not_fit(read, scale, message):
    with pytest.raises(ValueError, match=message):
        read({"a.weight": torch.zeros((4, 6)).to(E4M3), "a.weight_scale": scale})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"format": "float8_e4m3fn", "convrot": true}', "as 'float8_e4m3fn' and rotated, which"),
        (b'{"format": "mxfp8"}', "is quantized as 'mxfp8', which is not supported"),
        (b"[]", "as 'a format that is not readable'"),
        (b"\xff", "as 'a format that is not readable'"),
    ],
)
def test_formats_of_comfyui_that_are_not_read(read, content, message):
    form = torch.tensor(list(content), dtype=torch.uint8)
    with pytest.raises(ValueError, match=message):
        read({"a.weight": torch.zeros((4, 6)).to(E4M3), "a.comfy_quant": form})


@pytest.mark.parametrize("end", QUANTIZERS)
def test_quantized_files_are_refused_by_name(tmp_path, end):
    save_file({f"a.{end}": torch.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(
        ValueError,
        match=f"^x is quantized {QUANTIZERS[end]}, which".replace("(", ".").replace(")", "."),
    ):
        Header("x", tmp_path / "x.safetensors")


@pytest.mark.parametrize("beside", ["comfy_quant", "weight_scale", "scale_weight"])
def test_integers_are_refused_by_name(tmp_path, beside):
    tensors = {"a.weight": torch.zeros(3, dtype=torch.int8), f"a.{beside}": torch.zeros(1)}
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"is quantized to I8, .*\(it has a.weight\)"):
        Header("x", tmp_path / "x.safetensors")


def test_file_that_is_cut_after_its_header_was_read(tmp_path, monkeypatch):
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(1000, dtype=torch.float64)}, file)
    check = Header.__init__

    def cut(header, *arguments):
        check(header, *arguments)
        file.write_bytes(file.read_bytes()[:-8])

    monkeypatch.setattr(Header, "__init__", cut)
    with pytest.raises(ValueError, match="is not a readable file: it is cut short"):
        read_safetensors(file)
