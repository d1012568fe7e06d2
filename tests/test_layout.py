"""Each module imports only what the tables here allow, and is short."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from ours import python

import stable_diffusion

PACKAGE = Path(__file__).parents[1] / "stable_diffusion"

# The parts of the package, which are folders and files in it, and the parts that each may import.
# `cli` is below; only the entries import it.
LOWER = {"config", "device", "sampler", "tokenizer", "utils"}
NETWORKS = {
    *("activations", "attention", "autoencoder_tiny", "clip", "controlnet", "layers", "rrdbnet"),
    *("resnet_block", "t2i_adapter", "time_embedding", "unet", "unet_blocks", "vae"),
}
BELOW_PIPELINE = {
    *(LOWER | NETWORKS),
    *("active_control", "adapted", "adapters", "check_arguments", "check_pictures", "check_task"),
    *("compiled", "conditioning", "control", "denoising", "editing", "generation"),
    *("half_weights", "image_start", "inpainting", "loaded_networks", "model_io", "precision"),
    *("prediction", "quantize", "quantized_convolution", "stored_weights", "vae_strips"),
}
MAY_IMPORT: dict[str, set[str]] = {
    "utils": set(),
    "device": set(),
    "config": {"utils"},
    "tokenizer": {"utils"},
    "images": {"utils"},
    "sampler": {"config", "utils"},
    "activations": {"device"},
    "stored_weights": {"device"},
    "layers": {"activations", "device", "stored_weights"},
    "attention": {"device", "layers"},
    "clip": {"activations", "attention", "config", "device", "layers"},
    "time_embedding": {"activations", "layers"},
    "resnet_block": {"activations", "device", "layers"},
    "unet_blocks": {"attention", "config", "layers", "resnet_block"},
    "unet": {"activations", "attention", "config", "layers", "time_embedding", "unet_blocks"},
    "controlnet": {
        *("activations", "attention", "config", "layers", "time_embedding", "unet", "unet_blocks")
    },
    "t2i_adapter": {"activations", "attention", "config", "layers", "unet"},
    "vae": {"activations", "attention", "config", "device", "layers", "resnet_block"},
    "autoencoder_tiny": {"activations", "config", "device", "layers", "vae"},
    "rrdbnet": {"config", "layers"},
    "quantized_convolution": {"device", "layers", "stored_weights"},
    "quantize": {"config", "device", "layers", "quantized_convolution"},
    "half_weights": {"device", "stored_weights"},
    "latent_preview": {"images", "vae_strips"},
    "vae_strips": {
        *("activations", "autoencoder_tiny", "compiled", "config", "device", "layers"),
        *("resnet_block", "vae"),
    },
    "conditioning": {"clip", "config", "tokenizer", "utils"},
    "compiled": {"device"},
    "merged_layers": {"compiled", "device"},
    "active_control": {"attention", "device", "unet"},
    "control": {
        *("active_control", "check_arguments", "check_pictures", "config", "half_weights"),
        *("model_io", "quantize", "utils"),
    },
    "prediction": {
        *("active_control", "attention", "compiled", "device", "merged_layers", "time_embedding"),
        "unet",
    },
    "denoising": {"device", "prediction", "sampler"},
    "inpainting": {"denoising", "sampler"},
    "image_start": {
        *("config", "denoising", "inpainting", "prediction", "sampler", "vae_strips"),
    },
    "model_io": LOWER | NETWORKS | {"quantize", "stored_weights"},
    "adapters": LOWER | NETWORKS | {"model_io", "quantized_convolution"},
    "precision": {"adapters", "model_io", "quantize"},
    "check_arguments": {"conditioning", "config", "model_io", "sampler", "utils"},
    "check_pictures": {"check_arguments", "utils"},
    "check_task": {"check_arguments", "config"},
    "editing": {"image_start", "prediction", "sampler", "vae_strips"},
    "adapted": {"adapters", "check_arguments", "conditioning", "config", "model_io", "sampler"},
    "loaded_networks": {
        *("adapted", "autoencoder_tiny", "check_arguments", "clip", "conditioning", "config"),
        *("control", "half_weights", "model_io", "precision", "quantize", "unet", "vae"),
    },
    "generation": {
        *("check_arguments", "check_task", "conditioning", "config", "control", "prediction"),
        *("sampler", "utils"),
    },
    "pipeline": BELOW_PIPELINE,
    "faults": {"utils"},
    "step_memory": {"config", "device"},
    "forecast": {"config", "device", "quantized_convolution", "rrdbnet"},
    "hires": BELOW_PIPELINE | {"images", "pipeline"},
    "overflow": BELOW_PIPELINE | {"faults", "pipeline"},
    "version": set(),
    "__init__": {"device", "pipeline", "version"},
    "__main__": {"cli"},
    "convert": {"cli"},
}
# Inside `cli`, from the bottom up: each may import those before it, and itself.
CLI = (
    *(
        {"mlx_errors", "settings", "terminal"},
        {"larger"},
        {"few_step", "job", "model_task", "ranks", "start"},
        {"controls", "recipe"},
    ),
    {"arguments", "output"},
    *({"plan"}, {"run"}, {"decode"}, {"denoise"}, {"room"}, {"generate"}, {"main"}, {"convert"}),
)
# Packages outside of the standard library, and who may import them.
OTHERS = {
    "PIL": {"cli", "images"},
    "cv2": {"images"},
    "pillow_heif": {"images"},
    "tqdm": {"cli"},
    "huggingface_hub": {"model_io"},
    "regex": {"adapters", "tokenizer"},
    "mlx": {*MAY_IMPORT, "cli"} - {"config", "images", "tokenizer", "utils"},
    "numpy": {*MAY_IMPORT, "cli"} - {"config", "tokenizer", "utils"},
}
MAX_LINES = 360  # of a file
MAX_FUNCTION, MAX_CLASS = 40, 200  # lines, docstrings not counted

FILES = sorted(file for file in PACKAGE.rglob("*.py") if "tiny" not in file.parts)


def get_module_name(file: Path) -> tuple[str, ...]:
    """Return the parts of a module's name within the package."""
    return file.relative_to(PACKAGE).with_suffix("").parts


def find_imports(file: Path) -> Iterator[tuple[int, tuple[str, ...], bool]]:
    """Yield the line of each import, the parts of its name, and whether it is in the package."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, tuple(alias.name.split(".")), False
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, tuple(node.module.split(".")), False
        elif isinstance(node, ast.ImportFrom):
            folder = get_module_name(file)[: -node.level]
            module = tuple(node.module.split(".")) if node.module else ()
            for alias in node.names if len(folder + module) < 2 else node.names[:1]:
                name = (*folder, *module) if module else (*folder, alias.name)
                yield node.lineno, name, True


def may_import(importer: tuple[str, ...], imported: tuple[str, ...]) -> bool:
    """Return whether one module of the package may import another."""
    part, other = importer[0], imported[0]
    if part == "cli" and other == "cli":
        if len(imported) < 2 or len(importer) < 2 or importer[1] == "__init__":
            return True
        floors = {name: floor for floor, names in enumerate(CLI) for name in names}
        is_same = importer[1] == imported[1]
        return is_same or floors[importer[1]] > floors[imported[1]]
    return part in ("cli", other) or other in MAY_IMPORT[part]


def test_imports():
    """Every import is allowed; the message lists the lines that are not."""
    wrong = []
    for file in FILES:
        for line, imported, is_own in find_imports(file):
            if is_own:
                is_allowed = may_import(get_module_name(file), imported)
            elif imported[0] in sys.stdlib_module_names:
                is_allowed = True
            else:
                is_allowed = get_module_name(file)[0] in OTHERS.get(imported[0], set())
            if not is_allowed:
                wrong.append(f"{file.relative_to(PACKAGE.parent)}:{line}: {'.'.join(imported)}")
    assert not wrong, "\n".join(wrong)


def test_files_functions_and_classes_are_short():
    long = []
    for file in FILES:
        name, text = file.relative_to(PACKAGE.parent), file.read_text()
        n = len(text.splitlines())
        if n > MAX_LINES:
            long.append(f"{name}: {n}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                n = count_lines(node)
                if n > (MAX_CLASS if isinstance(node, ast.ClassDef) else MAX_FUNCTION):
                    long.append(f"{name}:{node.lineno}: {node.name}: {n}")
    assert not long, "\n".join(long)


def count_lines(node: ast.FunctionDef | ast.ClassDef) -> int:
    """Return how many lines a function or class has, without its docstring."""
    first = node.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = first.end_lineno - first.lineno + 1 if is_docstring else 0
    return node.end_lineno - node.lineno + 1 - docstring


def test_the_scripts_are_thin():
    for name in ("txt2image.py", "image2image.py"):
        assert len((PACKAGE.parent / name).read_text().splitlines()) <= 30


def test_installing_takes_everything_along():
    """`pip install .` takes every module, all of `tiny`, and the version without an import."""
    settings = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = ["**/*.py", *settings["package-data"]["stable_diffusion"]]
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


def test_the_package_lists_its_commands():
    """`python -m stable_diffusion` lists the commands, and each of them exists."""
    done, asked = python("-m", "stable_diffusion"), python("-m", "stable_diffusion", "--help")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", asked.stdout)
    assert (asked.returncode, asked.stderr) == (0, "")
    named = re.findall(r"^  python (-m )?([\w.]+)", done.stderr, re.MULTILINE)
    assert len(named) == 3
    for is_module, name in named:
        path = f"{name.replace('.', '/')}.py" if is_module else name
        assert (PACKAGE.parent / path).is_file()


def test_a_source_distribution_takes_everything_along():
    """Every folder and file beside the package is in MANIFEST.in, so its tests can be run."""
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
    wanted = {"txt2image.py", "image2image.py", "requirements.txt"}
    assert wanted | {"CONTRIBUTING.md", "SECURITY.md"} <= files
    assert folders >= {".ci", "benchmarks", "docs", "images", "stable_diffusion", "tests", "tools"}


def test_the_urls_and_classifiers_are_complete():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    assert all(url.startswith("https://github.com/") for url in project["urls"].values())
    lowest = project["requires-python"].removeprefix(">=")
    assert f"Programming Language :: Python :: {lowest}" in project["classifiers"]
    assert not [each for each in project["classifiers"] if each.startswith("License ::")]
