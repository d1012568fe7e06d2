"""Tokenizer folders for the tests: CLIP's real vocabulary, as the published repositories have it.

The embedded model's merges.txt holds OpenAI's 48,894 merges (its MIT licence is beside it);
the vocabulary follows from them.
"""

import json
from functools import cache
from pathlib import Path
from typing import Literal

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
TINY = Path(__file__).parents[1] / "stable_diffusion" / "tiny"
MERGES_FILE = TINY / "tokenizer" / "merges.txt"

Layout = Literal["slow", "decoder", "json"]


def byte_symbols() -> list[str]:
    """Return the 256 symbols that stand for bytes, in the order of their ids (as in GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(b) for b in printable] + [chr(0x100 + i) for i in range(256 - len(printable))]


@cache
def vocabulary() -> dict[str, int]:
    """Return CLIP's 49,408 tokens: bytes, bytes that end a word, one per merge, begin, end."""
    merges = MERGES_FILE.read_text(encoding="utf-8").splitlines()[1:]
    symbols = byte_symbols()
    tokens = [*symbols, *(s + "</w>" for s in symbols), *(m.replace(" ", "") for m in merges)]
    return {token: i for i, token in enumerate([*tokens, BOS, EOS])}


def write_tokenizer(folder: Path, pad_token: str = EOS, layout: Layout = "slow") -> None:
    """Write CLIP's tokenizer into `folder`, which is created if it does not exist.

    `pad_token` is `<|endoftext|>` in SD 1.x and in SDXL's first tokenizer, `!` in SD 2.x and in
    SDXL's second. `layout` says which files hold what:

    - "slow": SD 1.x and 2.x. vocab.json, merges.txt, special_tokens_map.json and
      tokenizer_config.json, where the last always names `<|endoftext|>` as the pad token: in SD 2.x
      only the map says `!`, and it has priority.
    - "decoder": SDXL. The same files; the config lists `added_tokens_decoder`, so that the map is
      not read.
    - "json": transformers 5. tokenizer.json and tokenizer_config.json, written by it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "json":
        _write_as_transformers(folder, pad_token)
        return

    def added(token: str) -> dict:
        flags = {"lstrip": False, "normalized": token != "!", "rstrip": False}
        return {"content": token, **flags, "single_word": False}

    vocab = vocabulary()
    named = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS}
    config = {
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
    }
    if layout == "decoder":
        tokens = sorted({pad_token, BOS, EOS}, key=vocab.__getitem__)
        decoder = {str(vocab[t]): {**added(t), "special": True} for t in tokens}
        config |= {"added_tokens_decoder": decoder, "pad_token": pad_token, **named}
    else:
        config |= {key: {"__type": "AddedToken", **added(token)} for key, token in named.items()}
        config |= {"pad_token": EOS}
    special = {key: added(token) for key, token in named.items()} | {"pad_token": pad_token}

    (folder / "merges.txt").write_bytes(MERGES_FILE.read_bytes())
    _write_json(folder / "vocab.json", vocab)
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", special)


def _write_as_transformers(folder: Path, pad_token: str) -> None:
    from transformers import CLIPTokenizer

    lines = MERGES_FILE.read_text(encoding="utf-8").splitlines()[1:]
    merges = [tuple(line.split(" ")) for line in lines]
    tokenizer = CLIPTokenizer(vocabulary(), merges, pad_token=pad_token, model_max_length=77)
    tokenizer.save_pretrained(folder)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
