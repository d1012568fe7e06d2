"""Helpers that know nothing of models: strict JSON, atomic files, wording, sizes."""
