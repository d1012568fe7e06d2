"""What changes a model from a file beside it: LoRA, textual inversion."""
