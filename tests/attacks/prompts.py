"""Prompts against the tokenizer."""

from attacks.harness import Case, attack, require
from stable_diffusion.model_io import load_tokenizer


@attack("prompts", cases=10)
def smoke(case: Case) -> None:
    """Any text."""
    tokenizer = load_tokenizer("tiny")
    text = "".join(chr(case.rng.randrange(0x110000)) for _ in range(20))
    require(len(tokenizer.encode(text)) == 77, "length")
