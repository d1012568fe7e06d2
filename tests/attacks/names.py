"""Names that collide: files that are read and written, the grid, and previews."""

import json
import re

import image2image
import txt2image
from attacks.harness import Case, Defect, Outcome, attack
from attacks.system import USUAL, old_picture, require_whole
from stable_diffusion.cli.recipe.recipe import Recipe
from stable_diffusion.images.text_chunks import RECIPE, make_save_options

NAMES = ["a.png", "a.preview.png", "now.preview.png", "Now.Preview.png", "d/now.preview.png"]
NAMES += ["d/0001.png", "d/a.png", "link.png", "d/../a.png", "d/0001.preview.png"]
FOLDERS = ["d/", ".", "d/{index}.png", "{seed}.png"]
WROTE = re.compile(r"^Wrote (.+)$", re.MULTILINE)


@attack("system", cases=300, quick=8)
def names(case: Case) -> None:
    """Use any names for output, grid and preview: files that are read stay unchanged.

    Files that were reported as written must exist in the end.
    """
    rng, folder = case.rng, case.folder
    (folder / "d").mkdir()
    (folder / "link.png").symlink_to("a.png")
    read = folder / rng.choice(NAMES[:3] + NAMES[4:7])
    old_picture(read)
    output = rng.choice(FOLDERS if rng.random() < 0.6 else NAMES)
    words = [*USUAL, f"--n_images={rng.choice([1, 2])}"]
    if rng.random() < 0.7:
        words.append("--preview=1")
    if output in FOLDERS and rng.random() < 0.6:
        words.append(f"--grid={folder}/{rng.choice(NAMES)}")
    main = txt2image.main
    match rng.randrange(3):
        case 0:
            main, words = image2image.main, [*words, "--strength=1", str(read), "a star"]
        case 1:
            texts = {RECIPE: Recipe(prompt="a star", model="tiny", width=64, height=64).to_json()}
            old_picture(read, **make_save_options(texts, "PNG"))
            words.append(f"--from-image={read}")
        case _:
            read, output = folder / "p.txt", rng.choice(FOLDERS)
            lines = ({"prompt": "a star", "output": name} for name in rng.sample(NAMES, 2))
            read.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
            words.append(f"--prompts-file={read}")
    case.keep(read)
    for file in WROTE.findall("\n".join(case.script(main, f"--output={folder}/{output}", *words))):
        try:
            require_whole(folder / file)
        except Defect:
            raise Defect(Outcome.LOST, f"{file} was written, and is gone") from None
