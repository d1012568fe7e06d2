import argparse
from pathlib import Path

from ..config.diffusion import PREDICTION_TYPES
from ..config.networks import BITS, GROUP_SIZES
from ..device import memory
from ..model_io.convert import convert
from ..utils import wording
from .arguments.argument_parser import Parser
from .job import UsageError
from .main import exit_status
from .terminal.console import say, with_lasting_streams


def main(argv: list[str] | None = None) -> int:
    """Convert as the command line says. Known errors become one line; returns the exit status."""
    return with_lasting_streams(lambda: exit_status(lambda: _run(_parser().parse_args(argv))))


def _run(args: argparse.Namespace) -> None:
    text_encoder_bits = args.text_encoder_bits or args.quantize
    unet_bits = args.unet_bits or args.quantize
    if args.group_size and not text_encoder_bits and not unet_bits:
        raise UsageError("--group-size is of quantization: say how many bits (-q)")
    memory.limit_cache()
    convert(
        args.model,
        args.folder,
        text_encoder_bits=text_encoder_bits,
        unet_bits=unet_bits,
        group_size=args.group_size,
        float16=args.fp16,
        vae=args.vae,
        prediction_type=args.prediction_type,
    )
    size = sum(file.stat().st_size for file in args.folder.glob("*/*"))
    say(f"Wrote {args.folder}, {wording.format_bytes(size)}")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "model folder",
        "Write a model as a folder that is quantized once, and loads fast.",
        prog="python -m stable_diffusion.convert",
    )
    add = parser.add_argument
    add("-h", "--help", action="help", help="say all this")
    add("model", help="whatever --model of the scripts takes")
    add("folder", type=Path, help="what to write: a new folder, to be given as --model")
    add("-q", "--quantize", type=int, choices=BITS, help="bits of text encoders and UNet")
    for name, what in (("text-encoder", "the text encoders"), ("unet", "the UNet")):
        names = (f"--{name}-bits", f"--{name.replace('-', '_')}_bits")
        add(*names, type=int, choices=BITS, help=f"bits of {what}, whatever -q says")
    add(
        *("--group-size", "--group_size"),
        type=int,
        choices=GROUP_SIZES,
        help="how many weights share a scale (default: text encoders 64, UNet 32)",
    )
    add("--fp16", action="store_true", help="store in half precision what is not quantized")
    add("--vae", help="a model, folder, repository or file to take the VAE from")
    add(
        *("--prediction-type", "--prediction_type"),
        choices=PREDICTION_TYPES,
        help="what the UNet predicts, for a file that does not say",
    )
    return parser
