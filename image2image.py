"""Make pictures that start from a picture: `python image2image.py house.png "A lit fireplace"`."""

from stable_diffusion import cli, run


def main(argv: list[str] | None = None) -> int:
    args = cli.parse(cli.image2image_parser(), argv)
    return run.main(
        args,
        lambda sd: sd.generate_latents_from_image(
            args.image, args.prompt, strength=args.strength, **run.sampling_options(args)
        ),
    )


if __name__ == "__main__":
    raise SystemExit(main())
