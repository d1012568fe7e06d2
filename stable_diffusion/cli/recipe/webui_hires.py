"""The second pass in the text of AUTOMATIC1111's web UI, which calls it "Hires. fix".

    …, Denoising strength: 0.7, Hires upscale: 2, Hires steps: 10, Hires upscaler: Latent, …

The web UI draws the same noise again for the second pass, and here the noise continues. So the
picture that is made from such a text is not the same.
"""

from typing import Any

from ...hires import MAX_SCALE, MIN_SCALE, STRENGTH
from .recipe import Recipe

UPSCALER_NAMES = {"latent": "Latent", "lanczos": "Lanczos"}
UPSCALERS = {theirs: ours for ours, theirs in UPSCALER_NAMES.items()}
PREFIX, STRENGTH_KEY = "Hires ", "Denoising strength"
FIRST_SIZE = "First pass size"  # before 2023, in place of the others: "Size" was the second one
SCALE, STEPS, UPSCALER = "Hires upscale", "Hires steps", "Hires upscaler"
USUAL = {UPSCALER: "Latent", STRENGTH_KEY: str(STRENGTH)}  # if the text does not say it


def write_second_pass(recipe: Recipe, upscaler: str | None) -> dict[str, Any]:
    """Return the values about a second pass by their keys; nothing without one.

    Args:
        upscaler: the name of the upscaler's file, if it is one.
    """
    if recipe.hires is None:
        return {}
    strength = STRENGTH if recipe.hires_strength is None else recipe.hires_strength
    n_steps = recipe.hires_steps
    if n_steps is None and (total := len(recipe.timesteps) or recipe.steps):
        n_steps = max(int(total * strength), 1)
    return {
        STRENGTH_KEY: f"{strength:g}",
        SCALE: f"{recipe.hires:g}",
        STEPS: n_steps,
        UPSCALER: UPSCALER_NAMES.get(recipe.hires_upscale or "latent", upscaler),
    }


def read_second_pass(pairs: dict[str, str]) -> tuple[dict[str, Any], list[str], dict[str, str]]:
    """Return the options of a second pass, what is not understood of it, and the other pairs.

    Args:
        pairs: the values of the last line, by key.
    """
    theirs = {key: value for key, value in pairs.items() if key.startswith((PREFIX, FIRST_SIZE))}
    if not theirs:
        return {}, [], pairs
    if STRENGTH_KEY in pairs:
        theirs[STRENGTH_KEY] = pairs[STRENGTH_KEY]
    others = {key: value for key, value in pairs.items() if key not in theirs}
    try:
        options = _read_numbers(theirs, pairs.get("Steps", ""))
    except (KeyError, ValueError):  # such as "Hires resize: 1024x1024" in place of a scale
        return {}, [f"{key}: {value}" for key, value in theirs.items()], others
    name = theirs.get(UPSCALER, USUAL[UPSCALER])
    options["hires_upscale"] = UPSCALERS.get(name) or (
        "latent" if name.startswith("Latent") else "lanczos"
    )
    rest = []
    if name not in UPSCALERS:
        rest.append(f"{UPSCALER}: {name} ({options['hires_upscale']} is used)")
    known = (SCALE, STEPS, UPSCALER, STRENGTH_KEY)
    rest += [f"{key}: {value}" for key, value in theirs.items() if key not in known]
    return options, rest, others


def _read_numbers(theirs: dict[str, str], steps: str) -> dict[str, Any]:
    """Return the scale, the strength and the steps of a second pass.

    Raises:
        KeyError, ValueError: if one of them is missing or wrong.
    """
    scale = float(theirs[SCALE])
    strength = float(theirs.get(STRENGTH_KEY, USUAL[STRENGTH_KEY]))
    # Without a number of its own, or with 0, the web UI runs as many steps as in the first pass.
    n_steps = int(theirs.get(STEPS, 0)) or int(steps)
    if not (MIN_SCALE < scale <= MAX_SCALE and 0 < strength <= 1 and n_steps > 0):
        raise ValueError("it cannot be done here")
    return {"hires": scale, "hires_strength": strength, "hires_steps": n_steps}
