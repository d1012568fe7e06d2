"""What the program says of itself: its version, and the models that it knows or finds."""

from pathlib import Path
from textwrap import wrap

import mlx.core as mx

from ...config.known_models import MODELS, PACKAGE, ModelSpec
from ...model_io import hub_cache
from ...model_io.sources import CACHE_MARKER, Source
from ...model_io.unsupported import refuse_pipeline
from ...model_io.weight_files import STEMS
from ...utils import wording
from ...version import __version__

INDEX = "model_index.json"
WIDTH, INDENT = 80, 12  # columns


def version() -> str:
    """This program, MLX and the device that it computes on, in a line."""
    device = mx.default_device().type.name
    return f"Stable Diffusion for MLX {__version__} (MLX {mx.__version__}, {device})"


def models() -> str:
    """The known models and those in the Hub's cache, with their sizes on disk. Asks no network."""
    cached = hub_cache.list_repositories()
    lines = ["Models with a name, for --model NAME:"]
    for name, spec in MODELS.items():
        lines += _entry(name, _known(name, spec, cached))
    known = {repo for spec in MODELS.values() for repo in spec.repos}
    others = [Source(repo, root) for repo, root in cached.items() if repo not in known]
    others = [source for source in others if _looks_like_a_model(source)]
    if others:
        lines += ["", "Others in the cache that look like models, for --model REPOSITORY:"]
    for source in others:
        lines += _entry(source.name, _other(source))
    return "\n".join([*lines, "", f"The cache: {hub_cache.cache_folder()}"])


def _entry(title: str, facts: list[str]) -> list[str]:
    """Lines that begin with the title, beside it where it is short."""
    lines = [line for fact in facts for line in wrap(fact, WIDTH - INDENT, break_on_hyphens=False)]
    lines = [" " * INDENT + line for line in lines]
    if 2 + len(title) >= INDENT:
        return ["", f"  {title}", *lines]
    return ["", f"  {title}".ljust(INDENT) + lines[0].lstrip(), *lines[1:]]


def _known(name: str, spec: ModelSpec, cached: dict[str, Path]) -> list[str]:
    guidance = f"guidance {spec.guidance}" if spec.guidance > 1 else "no guidance"
    facts = [f"{spec.size}x{spec.size} pixels, {spec.steps} steps, {guidance}"]
    if spec.repo is None:
        facts += [f"in this package, {_size(PACKAGE / name)}"]
    for repo in spec.repos:
        if repo in cached:
            facts += [f"{repo}, {_state(Source(repo, cached[repo]))}"]
        elif repo == spec.repo:
            facts += [f"{repo}, not in the cache"]
    return [*facts, f"licence: {spec.licence}"]


def _looks_like_a_model(source: Source) -> bool:
    return source.find(INDEX) is not None or source.find(CACHE_MARKER) is not None


def _other(source: Source) -> list[str]:
    try:
        if source.find(INDEX) is not None:
            refuse_pipeline(*source.config(INDEX))
    except ValueError as error:
        return [f"{_size(source.root.parent)} in the cache, but not to be run:", str(error)]
    return [_state(source)]


def _state(source: Source) -> str:
    """How much is on disk, and what is not: a download may have been interrupted."""
    missing = [component for component in STEMS if not _has_weights(source, component)]
    without = f", without the weights of {', '.join(missing)}" if missing else ""
    return f"{_size(source.root.parent)} in the cache{without}"


def _has_weights(source: Source, component: str) -> bool:
    if component == "text_encoder_2" and source.find(f"{component}/config.json") is None:
        return True  # it needs none
    try:
        return bool(source.weights(component, float16=True))
    except (ValueError, OSError):
        return False


def _size(folder: Path) -> str:
    return wording.format_bytes(hub_cache.count_bytes(folder))
