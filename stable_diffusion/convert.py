"""Write a model as a folder that loads as it is: `python -m stable_diffusion.convert`."""

from .cli.convert import main

if __name__ == "__main__":
    raise SystemExit(main())
