"""What each module may import: the table that keeps the house in order."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest
from ours import python

import stable_diffusion

PACKAGE = Path(__file__).parents[1] / "stable_diffusion"

# Beyond the standard library: modules of the package, and other packages.
MAY_IMPORT = {
    "__init__": {"blas", "pipeline", "version"},
    "about": {
        *("hub", "hub_cache", "messages", "models", "unsupported", "version", "weight_files"),
        "mlx",
    },
    "blas": set(),
    "bpe": {"regex"},
    "cli": {
        *("diffusion_config", "from_image", "image", "jobs", "messages", "noise", "options"),
        *("other_names", "parser", "progress", "prompts_file", "numpy"),
    },
    "clip": {"config", "cpu", "layers", "mlx"},
    "conditioning": {"clip", "config", "messages", "prompt", "tokenizer", "mlx"},
    "config": {"diffusion_config", "models", "quantization", "strict"},
    "convert": {
        *("config", "diffusion_config", "hub", "interrupt", "memory", "messages", "model_io"),
        *("native", "parser", "progress", "quantization", "quantize", "run", "streams"),
        *("weight_files", "mlx", "tqdm"),
    },
    "denoising": {"config", "cpu", "noise", "sampler", "schedule", "unet", "mlx"},
    "diffusion_config": {"messages", "strict"},
    "finite": {"denoising", "model_io", "pipeline", "weights", "mlx", "numpy"},
    "from_image": {"messages", "metadata", "parameters", "picture", "recipe", "values"},
    "header": {"strict"},
    "hub": {
        *("hub_cache", "hub_errors", "messages", "models", "strict", "weight_files"),
        "huggingface_hub",
    },
    "hub_cache": {"huggingface_hub"},
    "hub_errors": {"huggingface_hub"},
    "image": {"interrupt", "metadata", "picture", "numpy", "PIL"},
    "cpu": {"cpu_library", "mlx", "numpy"},
    "cpu_library": set(),
    "jobs": {"conditioning", "config", "sampler"},
    "interrupt": set(),
    "layers": {"cpu", "mlx"},
    "lora": {"layers", "lora_names", "strict", "weights", "mlx", "regex"},
    "lora_names": {"config", "original", "weights", "mlx"},
    "memory": {"mlx"},
    "messages": set(),
    "metadata": {"picture", "PIL"},
    "model_io": {
        *("clip", "config", "hub", "memory", "models", "native", "quantization", "quantize"),
        *("single_file", "tokenizer", "unet", "unsupported", "vae", "weight_files", "weights"),
        "mlx",
    },
    "models": set(),
    "native": {"quantize", "weights", "mlx"},
    "noise": {"numpy"},
    "normalize": {"regex"},
    "options": {"about", "diffusion_config", "image", "models", "parser", "values"},
    "original": {"header", "weights"},
    "other_names": set(),
    "output": {"image", "jobs", "messages", "picture", "progress", "record", "numpy"},
    "parameters": {"models", "prompt", "recipe"},
    "parser": {"messages", "streams"},
    "pipeline": {
        *("conditioning", "config", "cpu", "denoising", "lora", "model_io", "noise", "precision"),
        *("quantize", "sampler", "schedule", "textual_inversion", "tiling", "weights"),
        *("mlx", "numpy"),
    },
    "picture": {"messages", "numpy", "PIL"},
    "plan": {"jobs", "memory", "output", "progress", "ranks", "record"},
    "preview": {"image", "mlx", "numpy"},
    "progress": {"denoising", "memory", "messages", "streams", "weights", "mlx", "tqdm"},
    "precision": {"hub", "lora", "model_io", "quantize", "mlx"},
    "prompt": set(),
    "prompts_file": {"messages", "strict"},
    "quantization": {"strict"},
    "quantize": {"quantization", "mlx"},
    "ranks": {"mlx", "numpy"},
    "recipe": {"messages", "strict"},
    "record": {"hub", "jobs", "metadata", "models", "parameters", "recipe", "version"},
    "run": {
        *("config", "cpu", "finite", "hub", "image", "interrupt", "jobs", "memory", "messages"),
        *("model_io", "pipeline", "plan", "preview", "progress", "ranks", "record", "sampler"),
        *("streams", "weight_files", "mlx", "numpy"),
    },
    "sampler": {"diffusion_config", "schedule", "mlx"},
    "schedule": {"diffusion_config", "mlx", "numpy"},
    "single_file": {"header", "hub", "original", "unsupported", "weights"},
    "streams": set(),
    "strict": set(),
    "textual_inversion": {"clip", "header", "hub", "tokenizer", "weights", "mlx"},
    "tiling": {"cpu", "layers", "vae", "mlx"},
    "tokenizer": {"bpe", "messages", "normalize", "strict", "regex"},
    "unet": {"config", "layers", "mlx", "numpy"},
    "unsupported": {"config"},
    "vae": {"config", "layers", "mlx"},
    "values": {"messages", "noise"},
    "version": set(),
    "weight_files": set(),
    "weights": {"header", "mlx", "numpy"},
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


def test_the_readme_maps_the_code():
    """Every module stands there once, and what stands there is a module."""
    _, text = (PACKAGE.parent / "README.md").read_text().split("\n## The code\n")
    table = [line.split("|")[1] for line in text.splitlines() if line.startswith("|")]
    named = re.findall(r"`(\w+)\.py`", " ".join(table[1:]))  # but for the head of the table
    assert sorted(named) == sorted(file.stem for file in PACKAGE.glob("*.py"))


def test_the_scripts_are_thin():
    for name in ("txt2image.py", "image2image.py"):
        assert len((PACKAGE.parent / name).read_text().splitlines()) <= 30


def test_installing_takes_everything_along():
    """`pip install .`: every module and all of `tiny`; the version, read without an import."""
    settings = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = ["*.py", *settings["package-data"]["stable_diffusion"]]
    taken = {file for pattern in patterns for file in PACKAGE.glob(pattern)}
    files = {file for file in PACKAGE.rglob("*") if file.is_file()}
    assert {file for file in files if "__pycache__" not in file.parts} <= taken
    module, _, name = settings["dynamic"]["version"]["attr"].rpartition(".")
    tree = ast.parse((PACKAGE.parent / f"{module.replace('.', '/')}.py").read_text())
    (value,) = [node.value for node in tree.body if isinstance(node, ast.Assign)]
    assert (name, ast.literal_eval(value)) == ("__version__", stable_diffusion.__version__)


def test_the_library_needs_neither_pil_nor_tqdm_nor_the_hub():
    code = (
        "import stable_diffusion, sys; print({'PIL', 'tqdm', 'huggingface_hub'} & {*sys.modules})"
    )
    done = python("-c", code)
    assert done.stdout.strip() == "set()"
