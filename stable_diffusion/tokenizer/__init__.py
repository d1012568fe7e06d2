"""Text to the token ids that CLIP takes, and the weights that a prompt gives its words."""

from .tokenizer import Tokenizer

__all__ = ["Tokenizer"]
