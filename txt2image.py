"""Make pictures of a text: `python txt2image.py "A photo of an astronaut riding a horse"`."""

from stable_diffusion import cli, run


def main(argv: list[str] | None = None) -> int:
    args = cli.parse(cli.txt2image_parser(), argv)
    return run.main(
        args,
        lambda sd: sd.generate_latents(
            args.prompt, latent_size=run.latent_size(sd, args), **run.sampling_options(args)
        ),
    )


if __name__ == "__main__":
    raise SystemExit(main())
