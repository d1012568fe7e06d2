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
    "__main__": {"streams"},
    "about": {
        *("hub", "hub_cache", "messages", "models", "unsupported", "version", "weight_files"),
        *("mlx",),
    },
    "arguments": {"conditioning", "config", "hub", "messages", "mlx", "numpy"},
    "blas": set(),
    "bpe": {"regex"},
    "cli": {
        *("diffusion_config", "from_image", "image", "jobs", "messages", "noise", "options"),
        *("other_names", "parser", "picture", "progress", "prompts_file", "numpy"),
    },
    "clip": {"config", "cpu", "layers", "mlx"},
    "conditioning": {"clip", "config", "messages", "prompt", "tokenizer", "mlx"},
    "config": {"diffusion_config", "models", "quantization", "strict"},
    "convert": {
        *("config", "diffusion_config", "hub", "memory", "messages", "model_io", "native"),
        *("parser", "progress", "quantization", "quantize", "run", "streams", "unfinished"),
        *("weight_files", "mlx", "tqdm"),
    },
    "cpu": {"cpu_calls", "cpu_library", "mlx"},
    "cpu_calls": {"cpu_check", "cpu_cores", "cpu_library", "mlx", "numpy"},
    "cpu_library": {"own_files"},
    "denoising": {"arguments", "config", "cpu", "noise", "sampler", "schedule", "unet", "mlx"},
    "diffusion_config": {"messages", "strict"},
    "finite": {"denoising", "model_io", "pipeline", "weights", "mlx", "numpy"},
    "from_image": {"messages", "metadata", "parameters", "picture", "recipe", "values"},
    "header": {"strict"},
    "hub": {
        *("hub_cache", "hub_errors", "messages", "models", "strict", "unfinished"),
        *("weight_files", "huggingface_hub"),
    },
    "hub_cache": {"huggingface_hub"},
    "hub_errors": {"huggingface_hub"},
    "image": {"metadata", "picture", "unfinished", "numpy", "PIL"},
    "interrupt": set(),
    "jobs": {"conditioning", "config", "image", "sampler"},
    "layers": {"cpu", "mlx"},
    "lora": {"layers", "lora_names", "strict", "weights", "mlx", "regex"},
    "lora_names": {"config", "original", "weights", "mlx"},
    "memory": {"mlx"},
    "messages": set(),
    "metadata": {"picture", "PIL"},
    "model_io": {
        *("clip", "config", "hub", "memory", "models", "native", "quantization", "quantize"),
        *("single_file", "tokenizer", "unet", "unsupported", "vae", "weight_files", "weights"),
        *("mlx",),
    },
    "models": set(),
    "native": {"quantize", "weights", "mlx"},
    "noise": {"numpy"},
    "normalize": {"regex"},
    "options": {"about", "diffusion_config", "image", "models", "parser", "values"},
    "original": {"header", "weights"},
    "other_names": set(),
    "output": {"image", "jobs", "messages", "picture", "progress", "record", "unfinished", "numpy"},
    "own_files": set(),
    "parameters": {"models", "prompt", "recipe"},
    "parser": {"messages", "streams"},
    "picture": {"messages", "pillow_heif", "unreadable", "numpy", "PIL"},
    "pipeline": {
        *("arguments", "conditioning", "config", "cpu", "denoising", "lora", "model_io"),
        *("noise", "precision", "quantize", "sampler", "schedule", "textual_inversion"),
        *("tiling", "weights", "mlx", "numpy"),
    },
    "plan": {"jobs", "memory", "output", "progress", "ranks", "record"},
    "precision": {"hub", "lora", "model_io", "quantize", "mlx"},
    "preview": {"image", "mlx", "numpy"},
    "progress": {"denoising", "memory", "messages", "streams", "weights", "mlx", "tqdm"},
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
    "streams": {"messages"},
    "strict": set(),
    "textual_inversion": {"clip", "header", "hub", "tokenizer", "weights", "mlx"},
    "tiling": {"cpu", "cpu_calls", "layers", "vae", "mlx"},
    "tokenizer": {"bpe", "messages", "normalize", "strict", "regex"},
    "unet": {"config", "layers", "mlx", "numpy"},
    "unfinished": set(),
    "unreadable": {"messages"},
    "unsupported": {"config"},
    "vae": {"config", "layers", "mlx"},
    "values": {"messages", "noise"},
    "version": set(),
    "weight_files": set(),
    "weights": {"header", "mlx", "numpy"},
    "cpu_check": {"cpu", "cpu_calls", "mlx"},
    "cpu_cores": set(),
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


def test_what_the_package_may_do_is_said():
    """`python -m stable_diffusion` does nothing, but says what does; each of that is there."""
    done, asked = python("-m", "stable_diffusion"), python("-m", "stable_diffusion", "--help")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", asked.stdout)
    assert (asked.returncode, asked.stderr) == (0, "")
    named = re.findall(r"^  python (-m )?([\w.]+)", done.stderr, re.MULTILINE)
    assert len(named) == 3
    for is_module, name in named:
        path = f"{name.replace('.', '/')}.py" if is_module else name
        assert (PACKAGE.parent / path).is_file()


def test_a_source_distribution_takes_everything_along():
    """Its tests can be run: every folder and file beside the package is in MANIFEST.in."""
    root = PACKAGE.parent
    rules = [line.split() for line in (root / "MANIFEST.in").read_text().splitlines()]
    folders = {rule[1] for rule in rules if rule[0] in ("graft", "recursive-include")}
    files = {
        file.name
        for rule in rules
        if rule[0] == "include"
        for p in rule[1:]
        for file in root.glob(p)
    }
    # setuptools takes these by itself.
    files |= {"LICENSE", "MANIFEST.in", "README.md", "pyproject.toml"}
    wanted = {"txt2image.py", "image2image.py", "requirements.txt", "SECURITY.md"}
    assert wanted <= files
    assert folders >= {".ci", "benchmarks", "images", "stable_diffusion", "tests", "tools"}


def test_the_urls_and_classifiers_are_whole():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    assert all(url.startswith("https://github.com/") for url in project["urls"].values())
    lowest = project["requires-python"].removeprefix(">=")
    assert f"Programming Language :: Python :: {lowest}" in project["classifiers"]
    assert not [each for each in project["classifiers"] if each.startswith("License ::")]
