"""Any text as a prompt: for the tokenizer, windows and weights, the encoder and the scripts."""

import unicodedata
from functools import cache
from itertools import pairwise
from time import process_time

import mlx.core as mx
import numpy as np
from clip_vocabulary import BOS, EOS, TINY, vocabulary

from attacks.harness import Case, attack, require
from attacks.programs import program, txt2image_case
from attacks.texts import OPTIONS, any_text, huge_text
from stable_diffusion import StableDiffusion
from stable_diffusion.conditioning import MAX_WINDOWS, TextOptions, split_into_windows
from stable_diffusion.tokenizer.prompt_weights import MAX_WEIGHT, parse_weights
from stable_diffusion.tokenizer.tokenizer import Tokenizer

SECONDS = 10  # of processor time, for a million characters


@cache
def tiny() -> StableDiffusion:
    """Return the embedded model."""
    return StableDiffusion("tiny")


def check_tokens(tokenizer: Tokenizer, text: str) -> None:
    """Check that any text gives the right number of ids, all of them rows of the embedding."""
    ids, most = tokenizer.tokenize(text), tokenizer.max_length
    require(2 <= len(ids) <= most, f"{len(ids)} ids")
    require((ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id), "begin or end")
    require(all(0 <= i < len(vocabulary()) for i in ids), "an id beyond the vocabulary")
    require(tokenizer.encode(text) == tokenizer.pad(ids), "encode is tokenize and pad")
    cleaned = text.encode(errors="replace").decode()
    require(tokenizer.tokenize(cleaned) == ids, "surrogates are question marks")


def check_weights(text: str) -> None:
    """Check that all text except brackets, backslashes and weights is kept in order.

    Weights must be finite.
    """
    parts = parse_weights(text)
    require(all(part and abs(weight) <= MAX_WEIGHT for part, weight in parts), "bounds")
    require(all(a[1] != b[1] for a, b in pairwise(parts)), "neighbours weigh the same")
    letters = [c for c in text if c not in "()[]\\:+-.0123456789" and not c.isspace()]
    found = "".join(part for part, _ in parts)
    require([c for c in found if c in {*letters}] == letters, "characters lost or added")
    if not {*text} & {*"()[]\\"}:
        require(parts == ([(text, 1.0)] if text else []), "plain text is itself")


def check_windows(tokenizer: Tokenizer, text: str, options: TextOptions) -> None:
    """Check that windows have 77 tokens with begin and end, and that there are enough of them."""
    found, _ = split_into_windows(text, tokenizer, options)
    n = 0
    for window in found:
        require(len(window.ids) == len(window.weights) == tokenizer.max_length, "length")
        require(window.ids[0] == tokenizer.bos_id, "begin")
        require(tokenizer.eos_id in window.ids[1:], "end")
        require(all(0 <= i < len(vocabulary()) for i in window.ids), "ids")
        require(all(abs(weight) <= MAX_WEIGHT for weight in window.weights), "weights")
    parts = parse_weights(text) if options.prompt_weights else [(text, 1.0)]
    n = sum(len(ids) for part, _ in parts for _, ids in tokenizer.words(part))
    needed = max(1, -(-n // tokenizer.room)) if options.long_prompt else 1
    require(len(found) == needed <= MAX_WINDOWS, f"{len(found)} windows for {n} tokens")


def any_options(case: Case) -> TextOptions:
    """Return any way of reading a prompt."""
    long, weights = case.rng.random() < 0.5, case.rng.random() < 0.7
    return TextOptions(long, weights, case.rng.randint(0, tiny().config.max_clip_skip))


@attack("prompts", cases=1500)
def tokens(case: Case) -> None:
    """Turn any text into ids."""
    check_tokens(tiny().tokenizer, any_text(case.rng))


@attack("prompts", cases=1000, quick=100)
def oracle(case: Case) -> None:
    """Compare the ids with those that transformers finds."""
    text = any_text(case.rng).encode(errors="replace").decode()
    # For unassigned code points the result depends on the Unicode version of each library.
    text = "".join(c for c in text if unicodedata.category(c) != "Cn")
    expected = transformers_tokenizer()(text, max_length=77, truncation=True).input_ids
    require(tiny().tokenizer.tokenize(text) == expected, f"differs: {text!r}")


@cache
def transformers_tokenizer():
    """Return transformers' tokenizer with the files of the embedded model."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(TINY / "tokenizer")


@attack("prompts", cases=1200)
def weights(case: Case) -> None:
    """Split any text into parts with weights."""
    check_weights(any_text(case.rng))


@attack("prompts", cases=800)
def long_and_weighted(case: Case) -> None:
    """Split any text into windows."""
    check_windows(tiny().tokenizer, any_text(case.rng, 3000), any_options(case))


@attack("prompts", cases=400, quick=30)
def names(case: Case) -> None:
    """Check that names of embeddings are found anywhere in a prompt, or refused."""
    tokenizer = bytewise()
    name = any_text(case.rng, 10)
    tokenizer.add(name, [7, 8, 9])
    for text in (name, f"a {name}.", name * 3, f"{any_text(case.rng)} {name}"):
        ids = [i for _, of_word in tokenizer.words(text) for i in of_word]
        require("7, 8, 9" in str(ids), f"{name!r} not in {text!r}")


def bytewise() -> Tokenizer:
    """Return a tokenizer without merges, which is quick to make."""
    tokens = [*list(vocabulary())[:512], BOS, EOS]
    return Tokenizer({token: i for i, token in enumerate(tokens)}, [])


@attack("prompts", cases=100, quick=0)
def megabytes(case: Case) -> None:
    """Read a million characters, whatever they are, in linear time."""
    text = huge_text(case.rng)
    for work in (
        lambda: check_tokens(tiny().tokenizer, text),
        lambda: parse_weights(text),
        lambda: split_into_windows(text, tiny().tokenizer, TextOptions(prompt_weights=True)),
        lambda: read_or_refuse(text),
    ):
        start = process_time()
        work()
        took = process_time() - start
        require(took < SECONDS, f"{took:.1f} s for {text[:20]!r}… of {len({*text})} characters")


def read_or_refuse(text: str) -> None:
    """Read a long prompt to its end, or refuse it."""
    try:
        split_into_windows(
            text, tiny().tokenizer, TextOptions(long_prompt=True, prompt_weights=True)
        )
    except ValueError as error:
        require("tokens" in str(error) and len(str(error)) < 500, str(error))


@attack("prompts", cases=150)
def embeddings(case: Case) -> None:
    """Embed any text: all numbers are finite."""
    options, negative = any_options(case), any_text(case.rng)
    states, _ = tiny()._embed_text(any_text(case.rng), negative, options)
    require(states.shape[0] == 2 and states.shape[1] % 77 == 0, f"shape {states.shape}")
    require(np.isfinite(np.array(states, copy=False)).all(), "not finite")
    mx.clear_cache()


@attack("prompts", cases=150, quick=3)
def pictures(case: Case) -> None:
    """Make a picture of any text, by the script in this process."""
    prompt, negative = any_text(case.rng), any_text(case.rng, 30)
    if case.rng.random() < 0.4:
        prompt = case.rng.choice(OPTIONS)
    flags = [flag for flag in FLAGS if case.rng.random() < 0.4]
    ahead = ["--"] if case.rng.random() < 0.7 else []
    txt2image_case(case, *flags, f"--negative-prompt={negative}", *ahead, prompt)


FLAGS = ("--long-prompt", "--prompt-weights", "--clip-skip=1", "-q", "--float16", "--cfg=7")


@attack("prompts", cases=30, quick=1)
def as_programs(case: Case) -> None:
    """Make a picture by the script in a process of its own, also if the locale is not UTF-8."""
    locale = case.rng.choice(["C", "C.UTF-8", "POSIX", "en_US.ISO-8859-1"])
    utf8 = case.rng.choice(["0", "1"])
    prompt = any_text(case.rng).replace("\0", "").encode(errors="surrogatepass")[:60_000]
    flags = [flag for flag in FLAGS if case.rng.random() < 0.4]
    program(case, "txt2image.py", *flags, "--", prompt, LC_ALL=locale, PYTHONUTF8=utf8)
