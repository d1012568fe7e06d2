"""Convert a model, or quantize it: `python -m stable_diffusion.convert`."""

from .cli.convert import main

if __name__ == "__main__":
    raise SystemExit(main())
