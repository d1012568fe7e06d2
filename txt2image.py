"""Make pictures of a text: `python txt2image.py "A photo of an astronaut riding a horse"`."""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while modules are read: no traceback

from stable_diffusion import cli, run


def main(argv: list[str] | None = None) -> int:
    return run.main(
        lambda: cli.parse(cli.txt2image_parser(), argv),
        lambda sd, args, batch: sd.generate_latents(
            latent_size=batch.latent_size(sd.config.autoencoder.factor), **batch.options
        ),
    )


if __name__ == "__main__":
    raise SystemExit(main())
