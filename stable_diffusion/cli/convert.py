"""The command that converts a model: `python -m stable_diffusion.convert MODEL FOLDER`."""

import argparse
from pathlib import Path

from ..config.diffusion import PREDICTION_TYPES
from ..config.networks import BITS, GROUP_SIZES
from ..device import memory
from ..model_io.convert import convert_model
from ..utils.wording import format_bytes
from .arguments.argument_parser import Parser
from .job import UsageError
from .main import report_errors
from .terminal.console import run_with_safe_streams, say
from .terminal.progress import ByteBars

LESS_MEMORY = "end other programs, or convert the model on a machine with more memory"


def main(argv: list[str] | None = None) -> int:
    """Convert a model as the command line says, and return the exit status."""
    return run_with_safe_streams(
        lambda: report_errors(lambda: _convert(convert_parser().parse_args(argv)), LESS_MEMORY)
    )


def convert_parser() -> argparse.ArgumentParser:
    """Return the parser of `python -m stable_diffusion.convert`."""
    parser = Parser(
        "model folder",
        "Write a model as a folder that is quantized once, and loads fast.",
        prog="python -m stable_diffusion.convert",
    )
    add = parser.add_argument
    add("-h", "--help", action="help", help="show this help")
    add("model", help="anything that --model of the scripts takes")
    add("folder", type=Path, help="a new folder to write, which --model then takes")
    add("-q", "--quantize", type=int, choices=BITS, help="bits of text encoders and UNet")
    for name, what in (("text-encoder", "the text encoders"), ("unet", "the UNet")):
        names = (f"--{name}-bits", f"--{name.replace('-', '_')}_bits")
        add(*names, type=int, choices=BITS, help=f"bits of {what}, instead of those of -q")
    add(
        *("--group-size", "--group_size"),
        type=int,
        choices=GROUP_SIZES,
        help="how many weights share a scale (default: text encoders 64, UNet 32, its "
        "convolutions 64)",
    )
    add(
        "--fp16",
        action="store_true",
        help="store the weights that are not quantized in half precision",
    )
    add("--vae", help="a model, folder, repository or file to take the VAE from")
    add("--unet", help="a model, folder, repository or file to take the UNet from")
    add(
        *("--prediction-type", "--prediction_type"),
        choices=PREDICTION_TYPES,
        help="what the UNet predicts, if the file does not say it",
    )
    return parser


def _convert(args: argparse.Namespace) -> None:
    """Convert a model; show what is downloaded, how far it is, and how large the folder is."""
    text_encoder_bits = args.quantize if args.text_encoder_bits is None else args.text_encoder_bits
    unet_bits = args.quantize if args.unet_bits is None else args.unet_bits
    if args.group_size is not None and text_encoder_bits is None and unet_bits is None:
        raise UsageError("--group-size is for quantization: say how many bits (-q)")
    memory.limit_cache()
    with ByteBars() as bars:
        convert_model(
            args.model,
            args.folder,
            text_encoder_bits=text_encoder_bits,
            unet_bits=unet_bits,
            group_size=args.group_size,
            float16=args.fp16,
            vae=args.vae,
            unet=args.unet,
            prediction_type=args.prediction_type,
            on_message=say,
            on_progress=bars.show,
        )
    size = sum(file.stat().st_size for file in args.folder.glob("*/*"))
    say(f"Wrote {args.folder}, {format_bytes(size)}")
