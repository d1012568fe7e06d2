"""Adapters, which change a model by a small file of their own: LoRA, textual inversion."""
