"""Text to token ids, as CLIP wants them."""

from .tokenizer import Tokenizer

__all__ = ["Tokenizer"]
