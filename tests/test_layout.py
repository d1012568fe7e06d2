"""What each module may import: the table that keeps the house in order."""

import ast
import sys
from pathlib import Path

import pytest
from ours import python

PACKAGE = Path(__file__).parents[1] / "stable_diffusion"

# Beyond the standard library: modules of the package, and other packages.
MAY_IMPORT = {
    "__init__": {"blas", "pipeline"},
    "blas": set(),
    "bpe": {"regex"},
    "cli": {"diffusion_config", "image", "options", "numpy"},
    "clip": {"config", "cpu", "layers", "mlx"},
    "conditioning": {"clip", "config", "prompt", "tokenizer", "mlx"},
    "config": {"diffusion_config", "models", "quantization", "strict"},
    "convert": {
        *("config", "diffusion_config", "hub", "memory", "model_io", "native", "quantization"),
        *("quantize", "run", "mlx", "tqdm"),
    },
    "denoising": {"config", "cpu", "noise", "sampler", "schedule", "unet", "mlx"},
    "diffusion_config": {"strict"},
    "finite": {"denoising", "model_io", "pipeline", "weights", "mlx", "numpy"},
    "header": {"strict"},
    "hub": {"hub_errors", "models", "strict", "huggingface_hub"},
    "hub_errors": {"huggingface_hub"},
    "image": {"numpy", "PIL"},
    "cpu": {"mlx"},
    "cpu_conv": {"cpu", "mlx", "numpy"},
    "jobs": {"config", "sampler"},
    "layers": {"cpu", "cpu_conv", "mlx"},
    "lora": {"lora_names", "strict", "weights", "mlx", "regex"},
    "lora_names": {"config", "original", "weights", "mlx"},
    "memory": {"mlx"},
    "model_io": {
        *("clip", "config", "hub", "memory", "models", "native", "quantization", "quantize"),
        *("single_file", "tokenizer", "unet", "unsupported", "vae", "weights", "mlx"),
    },
    "models": set(),
    "native": {"quantize", "weights", "mlx"},
    "noise": {"numpy"},
    "normalize": {"regex"},
    "options": {"diffusion_config", "models", "values"},
    "original": {"header", "weights"},
    "output": {"image", "jobs", "numpy"},
    "pipeline": {
        *("conditioning", "config", "cpu", "denoising", "lora", "model_io", "noise", "precision"),
        *("quantize", "sampler", "schedule", "textual_inversion", "tiling", "weights"),
        *("mlx", "numpy"),
    },
    "precision": {"hub", "lora", "model_io", "quantize", "mlx"},
    "prompt": set(),
    "quantization": {"strict"},
    "quantize": {"quantization", "mlx"},
    "run": {
        *("config", "finite", "hub", "image", "jobs", "memory", "model_io", "output", "pipeline"),
        *("sampler", "mlx", "numpy", "tqdm"),
    },
    "sampler": {"diffusion_config", "schedule", "mlx"},
    "schedule": {"diffusion_config", "mlx", "numpy"},
    "single_file": {"header", "hub", "original", "unsupported", "weights"},
    "strict": set(),
    "textual_inversion": {"clip", "header", "hub", "tokenizer", "weights", "mlx"},
    "tiling": {"layers", "vae", "mlx"},
    "tokenizer": {"bpe", "normalize", "strict", "regex"},
    "unet": {"config", "layers", "mlx", "numpy"},
    "unsupported": {"config"},
    "vae": {"config", "layers", "mlx"},
    "values": set(),
    "weights": {"header", "mlx"},
}
MOST_LINES = 360


def imports(file: Path) -> set[str]:
    """Modules of the package, and other packages, that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names.add(node.module)
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.name for alias in node.names}
    return names - set(sys.stdlib_module_names)


@pytest.mark.parametrize("file", sorted(PACKAGE.glob("*.py")), ids=lambda file: file.stem)
def test_imports(file):
    assert imports(file) <= MAY_IMPORT[file.stem]


@pytest.mark.parametrize("file", sorted(PACKAGE.glob("*.py")), ids=lambda file: file.stem)
def test_no_file_is_too_long(file):
    assert len(file.read_text().splitlines()) <= MOST_LINES


def test_the_scripts_are_thin():
    for name in ("txt2image.py", "image2image.py"):
        assert len((PACKAGE.parent / name).read_text().splitlines()) <= 30


def test_the_library_needs_neither_pil_nor_tqdm_nor_the_hub():
    code = (
        "import stable_diffusion, sys; print({'PIL', 'tqdm', 'huggingface_hub'} & {*sys.modules})"
    )
    done = python("-c", code)
    assert done.stdout.strip() == "set()"
