"""What `--version` and `--list-models` print."""

from importlib.metadata import version
from pathlib import Path
from textwrap import wrap

from ...config.known_models import FEW_STEP_MODELS, MODELS, PACKAGE, FewStepModel, ModelSpec
from ...device import backend
from ...model_io import hub_cache
from ...model_io.sources import CACHE_MARKER, INDEX, Source
from ...model_io.unsupported import refuse_pipeline
from ...model_io.weight_files import STEMS
from ...utils.wording import format_bytes
from ...version import __version__

WIDTH, INDENT = 80, 12  # columns
NEEDS = {  # by task
    "inpainting": "repaints a part of a picture: image2image.py --mask FILE",
    "editing": "edits a picture by an instruction: image2image.py",
}


def describe_version() -> str:
    """Return the versions of this program and of MLX, and what computes, on one line."""
    kind = backend.find_backend()
    return f"Stable Diffusion for MLX {__version__} (MLX {version('mlx')}, {kind})"


def describe_models() -> str:
    """Return the known models and those in the Hub's cache, with their sizes on disk.

    This does not use the network.
    """
    cached = hub_cache.list_repositories()
    lines = ["Models with a name, for --model NAME:"]
    for name, spec in MODELS.items():
        lines += _format_entry(name, _describe_known(name, spec, cached))
    for name, model in FEW_STEP_MODELS.items():
        lines += _format_entry(name, _describe_few_step(model, cached))
    known = {repo for spec in MODELS.values() for repo in spec.repos}
    others = [Source(repo, root) for repo, root in cached.items() if repo not in known]
    others = [source for source in others if _looks_like_a_model(source)]
    if others:
        lines += ["", "Others in the cache that look like models, for --model REPOSITORY:"]
    for source in others:
        lines += _format_entry(source.name, _describe_other(source))
    return "\n".join([*lines, "", f"The cache: {hub_cache.cache_folder()}"])


def _format_entry(title: str, facts: list[str]) -> list[str]:
    """Return the lines of a model: the title, and the facts to the right of it if it is short."""
    lines = [line for fact in facts for line in wrap(fact, WIDTH - INDENT, break_on_hyphens=False)]
    lines = [" " * INDENT + line for line in lines]
    if 2 + len(title) >= INDENT:
        return ["", f"  {title}", *lines]
    return ["", f"  {title}".ljust(INDENT) + lines[0].lstrip(), *lines[1:]]


def _describe_known(name: str, spec: ModelSpec, cached: dict[str, Path]) -> list[str]:
    """Return the facts about a model with a name; `cached` has the folders of repositories."""
    guidance = f"guidance {spec.guidance}" if spec.guidance > 1 else "no guidance"
    facts = [f"{spec.size}x{spec.size} pixels, {spec.steps} steps, {guidance}"]
    if spec.task != "text":
        facts += [NEEDS[spec.task]]
    if spec.repo is None:
        facts += [f"in this package, {_format_size(PACKAGE / name)}"]
    for repo in spec.repos:
        if repo in cached:
            facts += [f"{repo}, {_describe_cached(Source(repo, cached[repo]))}"]
        elif repo == spec.repo:
            facts += [f"{repo}, not in the cache"]
    return [*facts, f"licence: {spec.licence}"]


def _describe_few_step(model: FewStepModel, cached: dict[str, Path]) -> list[str]:
    """Return the facts about a model that is another one with a LoRA."""
    size = MODELS[model.base].size
    root = cached.get(model.repo)
    found = [n for n, file in model.files.items() if root is not None and (root / file).is_file()]
    where = "in the cache" if found else "not in the cache"
    if found and len(model.files) > 1:
        where += f" for {model.join_steps(found, 'and')} steps"
    return [
        f"{size}x{size} pixels, {model.join_steps()} steps, by default {model.settings}",
        f"{model.base} with a LoRA of {model.repo}, {where}",
        f"licence of the LoRA: {model.licence}",
    ]


def _describe_other(source: Source) -> list[str]:
    """Return the facts about a model in the cache that has no name here."""
    try:
        if source.find(INDEX) is not None:
            refuse_pipeline(*source.config(INDEX))
    except ValueError as error:
        size = _format_size(source.root.parent)
        return [f"{size} in the cache, but it cannot be run:", str(error)]
    return [_describe_cached(source)]


def _describe_cached(source: Source) -> str:
    """Return the size of a model on disk, and what an interrupted download has left out."""
    missing = [component for component in STEMS if not _has_weights(source, component)]
    without = f", without the weights of {', '.join(missing)}" if missing else ""
    return f"{_format_size(source.root.parent)} in the cache{without}"


def _looks_like_a_model(source: Source) -> bool:
    """Return whether a repository has one of the files that mark a model of diffusers."""
    return source.find(INDEX) is not None or source.find(CACHE_MARKER) is not None


def _has_weights(source: Source, component: str) -> bool:
    """Return whether the weights of a component are on disk, or the model does not need them."""
    if component == "text_encoder_2" and source.find(f"{component}/config.json") is None:
        return True
    try:
        return bool(source.weights(component, float16=True))
    except (ValueError, OSError):
        return False


def _format_size(folder: Path) -> str:
    """Return the size of a folder in words."""
    return format_bytes(hub_cache.count_bytes(folder))
