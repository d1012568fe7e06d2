"""Recipes in pictures and prompts files, which ask for pictures like a command line."""

import io
import json
from dataclasses import fields, replace
from random import Random
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from attacks.arguments import PROGRAMS, reach
from attacks.harness import Case, attack, require
from attacks.hostile import damaged, json_text, value
from attacks.pictures import damage
from attacks.programs import txt2image_case
from attacks.texts import any_text
from stable_diffusion.cli.arguments.prompts_file import MAX_PICTURES
from stable_diffusion.cli.job import Job
from stable_diffusion.cli.recipe.recipe import Recipe
from stable_diffusion.cli.recipe.webui_text import SAMPLER_NAMES, SCHEDULE_NAMES
from stable_diffusion.images.text_chunks import PARAMETERS, RECIPE, make_save_options
from stable_diffusion.sampler.noise import MAX_SEED

TXT2IMAGE, IMAGE2IMAGE = (
    replace(program, usual=usual)
    for program, usual in zip(PROGRAMS[:2], ((), ("{folder}/i.png",)), strict=True)
)
OPTIONS = [*(field.name for field in fields(Recipe)), *(field.name for field in fields(Job))]
OPTIONS += ["output", "force", "from_image", "verbose", "auto_map", "schema", "x", "", "--seed"]
FILES = ["/dev/zero", "/etc/passwd", "..", "~nosuch/x", "a=/dev/zero", "/dev/zero:1", "x" * 5000]
WORDS = [*SAMPLER_NAMES, *SCHEDULE_NAMES, "tiny", "org/name@main", "--output=/x.png", "-q", "a\0b"]
KEYS = ["Steps", "Sampler", "Schedule type", "CFG scale", "Seed", "Size", "Model", "VAE", "Version"]
KEYS += [
    "Denoising strength",
    "Clip skip",
    "RNG",
    "Emphasis",
    "Lora",
    "Eta",
    "Hires upscale",
    "Tiling",
]
MEANT = ["1", "20", "DPM++ 2M", "Karras", "Euler a Karras", "7.5", "64x64", "CPU", "nan", "-1"]
MEANT += ["1e400", "9" * 5000, "99999x99999", "64x", "x", '"a, b: c"', '"', "٣", "sd_xl_base_1.0"]
VALID = {  # values of options
    "prompt": ["x", "", "(a:1.3) {seed}", "--help", "\n"],
    "negative_prompt": ["", "-q"],
    "seed": [0, 1, MAX_SEED],
    "n_images": [1, 2, 3, 100_000],
    "n_rows": [1, 2, 3],
    "width": [64, 4096, 16_384, 63],
    "height": [64, 4096, 1],
    "steps": [1, 20, 100_000],
    "cfg": [0, 0.0, 7.5, 1000, 1e-300],
    "guidance_rescale": [0, 1, 0.7],
    "cfg_range": [[0, 1], [0.1, 0.7], "0.1-0.7", [1, 0], [0.5], [0, 1, 2]],
    "reuse": [1, 2, 100_000, 0, 1.5],
    "sampler": [*SAMPLER_NAMES],
    "schedule": [*SCHEDULE_NAMES],
    "timesteps": [[999], [999, 0], [1, 2], [], "999,1", [10**9], [True]],
    "eta": [0, 1, 0.5],
    "clip_skip": [0, 1, 100_000],
    "long_prompt": [True, False],
    "prompt_weights": [True, False],
}
USUAL = Recipe(prompt="a star", model="tiny", seed=1, n_images=1, steps=2, width=64, height=64)


def setting(rng: Random, name: str) -> Any:
    """Return a valid or invalid value of an option."""
    if name in VALID and rng.random() < 0.6:
        return rng.choice(VALID[name])
    return rng.choice([value(rng), rng.choice(FILES), rng.choice(WORDS), [rng.choice(FILES)] * 2])


def recipe(rng: Random) -> str:
    """Return the JSON of a recipe with some options changed."""
    content = json.loads(USUAL.to_json())
    for _ in range(rng.choice([1, 1, 2, 5])):
        name = rng.choice(OPTIONS + 3 * [*VALID])
        content.pop(name, None)
        if rng.random() < 0.9:
            content[name] = setting(rng, name)
    if rng.random() < 0.2:
        return json_text(content, rng).decode(errors="replace")
    return json.dumps(content)


def parameters(rng: Random) -> str:
    """Return text similar to what AUTOMATIC1111 writes."""
    lines = [any_text(rng, 30)]
    if rng.random() < 0.5:
        lines.append(f"Negative prompt:{any_text(rng, 20)}")
    pairs = (f"{rng.choice(KEYS)}: {rng.choice(MEANT)}" for _ in range(rng.choice([3, 5, 12])))
    return rng.choice(["\n", "\r\n", "\n\n"]).join([*lines, ", ".join(pairs)])


def picture_with(rng: Random) -> bytes:
    """Return a picture file with a recipe, in one of the formats that can hold one."""
    texts = {RECIPE: recipe(rng)} if rng.random() < 0.6 else {PARAMETERS: parameters(rng)}
    texts = {key: text.encode(errors="replace").decode() for key, text in texts.items()}
    name = rng.choice(["PNG", "PNG", "JPEG", "WEBP", "TIFF"])
    options = make_save_options(texts, name)
    if name == "PNG" and rng.random() < 0.3:  # compressed several times
        options = {"pnginfo": PngInfo()}
        for key, text in texts.items():
            options["pnginfo"].add_itxt(key, text * rng.choice([1, 2, 9000]), zip=True)
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, name, **options)
    return damage(rng, file.getvalue()) if rng.random() < 0.2 else file.getvalue()


@attack("images", cases=800, quick=30)
def recipes(case: Case) -> None:
    """Check that options of a recipe are checked like those of a command line.

    Only options of pictures may be taken from it.
    """
    file = case.keep(case.folder / "r.png", picture_with(case.rng))
    output = f"{case.folder}/o.png"
    program = case.rng.choice([TXT2IMAGE, TXT2IMAGE, IMAGE2IMAGE])
    given = ["--model=tiny"] if case.rng.random() < 0.5 else []
    taken = reach(case, program, *given, f"--from-image={file}", f"--output={output}")
    require(taken["output"] == output and taken["from_image"] == str(file), "files")
    require(not taken["force"] and not taken["verbose"] and taken["grid"] is None, "other options")
    check_jobs(taken)


def check_jobs(taken: dict[str, Any]) -> None:
    """Check that jobs ask for nothing that a command line may not ask for."""
    jobs = taken["plan"].jobs
    require(1 <= len(jobs) <= MAX_PICTURES, f"{len(jobs)} pictures")
    for job in {jobs[0], jobs[-1]}:
        job.prompt.encode()
        require(0 <= job.seed <= MAX_SEED, f"seed {job.seed}")
        for option, kind in (("steps", int), ("width", int), ("cfg", float)):
            found = getattr(job, option)
            require(found is None or type(found) is kind, f"{option} {found!r}")


@attack("images", cases=60, quick=3)
def recipes_drawn(case: Case) -> None:
    """Make small pictures from such recipes."""
    file = case.keep(case.folder / "r.png", picture_with(case.rng))
    txt2image_case(case, f"--from-image={file}", "--width=64", "--height=64")


# --- prompts files -------------------------------------------------------------------------------

NAMES = ["a.png", "d/{seed}.png", "{index}", "../x.png", "/x.png", "{seed!r}.png", "{seed:9999999}"]
NAMES += ["a/../../x.png", "{model}.jpg", "{}", "{", "x" * 300 + ".png", "a\0.png", "-q.png", ""]


def line(rng: Random) -> str:
    """Return a line, mostly of JSON."""
    content = {"prompt": any_text(rng, 20).encode(errors="replace").decode()}
    for _ in range(rng.choice([0, 1, 1, 2, 4])):
        name = rng.choice([*OPTIONS, "output", "output", *(3 * [*VALID])])
        content[name] = rng.choice(NAMES) if name == "output" else setting(rng, name)
    if rng.random() < 0.1:
        return json_text(content, rng).decode(errors="replace")
    return json.dumps(content)


def prompts_file(rng: Random) -> bytes:
    """Return prompts or lines of JSON, in one encoding or another."""
    write = rng.choice([line, line, any_text])
    errors = "surrogatepass" if rng.random() < 0.1 else "replace"
    lines = [write(rng) for _ in range(rng.choice([1, 1, 2, 9]))]
    text = rng.choice(["\n", "\n", "\r\n", "\r", "\u2028"]).join(lines)
    if rng.random() < 0.1:
        text *= rng.choice([1000, 100_000 // (1 + len(text)) + 1])
    content = text.encode(rng.choice([*["utf-8"] * 6, "utf-8-sig", "utf-16"]), errors)
    return damaged(content, rng) if rng.random() < 0.2 else content


@attack("prompts", cases=800, quick=30)
def files(case: Case) -> None:
    """Read a prompts file: refused with the line number, or each picture has its own name.

    The names are inside the output folder.
    """
    file = case.keep(case.folder / "p.txt", prompts_file(case.rng))
    folder = case.folder / "d"
    taken = reach(case, TXT2IMAGE, f"--prompts-file={file}", f"--output={folder}/")
    check_jobs(taken)
    plan = taken["plan"]
    names = [plan.names.pictures[job.index].resolve() for job in plan.jobs]
    require(all(name.is_relative_to(folder.resolve()) for name in names), "outside of the folder")
    require(len({*names}) == len(names), "two with one name")
