"""The options that say what is written and printed."""

from .. import list_models, value_types
from ..option import BOTH, Option

OUTPUT = (
    Option(
        "--output",
        "where to write: .png, .jpg, .webp, .bmp or .tif. One name is a grid of all pictures; a "
        "folder/, or a name with {index}, {seed} or {model} in it, is a file for each",
        default_text="out.png; with prompts.txt, prompts/",
        metavar="FILE",
        line_scripts=BOTH,
    ),
    Option(
        "--grid",
        "a grid of all pictures, in addition to a file for each",
        default_text="none",
        metavar="FILE",
    ),
    Option("--force", "overwrite files of single pictures, too", kind="switch", default=False),
    Option(
        "--no-metadata",
        "do not write into the files how they were made",
        kind="switch",
        default=False,
    ),
    Option(
        "--n_rows",
        "rows of the grid",
        parse=value_types.parse_count,
        default=1,
        metavar="N",
        in_recipe=True,
    ),
)
REPORTS = (
    Option(
        "--preview",
        "every N steps write a rough preview of the pictures to NAME.preview.png beside them, "
        "until they are finished; keeps the VAE's decoder in memory",
        parse=value_types.parse_count,
        default_text="none",
        metavar="N",
    ),
    Option(
        "--preview-vae",
        "decode the previews with a VAE: a tiny one, `taesd` or a folder, repository or file; "
        "without a value the whole VAE of the pictures, which takes their time and memory. A word "
        "that follows is a value if it names a file, a folder with a config.json, or is like a/b "
        "or taesd; --preview-vae=VALUE always is one",
        parse=value_types.parse_preview_vae,
        names_value=value_types.names_vae,
        default=False,
        default_text="a linear map, or the tiny VAE given with --vae",
        metavar="[VAE]",
    ),
    Option(
        "--verbose",
        "report the peak memory of each phase, and the forecast",
        short="-v",
        kind="switch",
        default=False,
    ),
    Option(
        "--list-models",
        "list the known models, those that are on this machine, and their sizes",
        kind="print",
        show=list_models.describe_models,
    ),
    Option(
        "--list-controls",
        "list the control models with a short name, their licences, and which are on this machine",
        kind="print",
        show=list_models.describe_controls,
    ),
    Option(
        "--version",
        "print the versions of this program and of MLX, and what computes: cpu, metal or cuda",
        kind="print",
        show=list_models.describe_version,
    ),
    Option("--help", "show this help", short="-h", kind="help"),
)
