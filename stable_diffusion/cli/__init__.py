"""The programs: the two scripts and `python -m stable_diffusion.convert`."""
