"""From text to CLIP's token ids, and the weights of the parts of a prompt."""

from .tokenizer import Tokenizer

__all__ = ["Tokenizer"]
