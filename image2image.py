"""Make pictures that start from a picture: `python image2image.py house.png "A lit fireplace"`."""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while modules are read: no traceback

from stable_diffusion import cli, run


def main(argv: list[str] | None = None) -> int:
    return run.main(
        lambda: cli.parse(cli.image2image_parser(), argv),
        lambda sd, args, batch: sd.generate_latents_from_image(
            args.image, strength=batch.strength, **batch.options
        ),
    )


if __name__ == "__main__":
    raise SystemExit(main())
