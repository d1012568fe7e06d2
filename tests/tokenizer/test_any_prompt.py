"""Any text works: properties of everything that reads prompts, tested with hypothesis."""

import warnings
from time import process_time

import numpy as np
import pytest
from attacks.prompts import check_tokens, check_weights, check_windows, tiny
from attacks.texts import any_text
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stable_diffusion.conditioning import MAX_WINDOWS, TextOptions, split_into_windows
from stable_diffusion.tokenizer.normalize import normalize
from stable_diffusion.tokenizer.prompt_weights import parse_weights

TEXTS = st.one_of(
    st.text(st.characters()),  # also lone surrogates and NULs
    st.randoms(use_true_random=False).map(lambda rng: any_text(rng, 30)),
)
OPTIONS = st.builds(TextOptions, long_prompt=st.booleans(), prompt_weights=st.booleans())
MANY = 100_000
SECONDS = 4  # of processor time; `tests/fuzz.py` takes a million

quick = settings(
    max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about dropped words
        yield


@given(text=TEXTS)
@quick
def test_tokens(text):
    check_tokens(tiny().tokenizer, text)


@given(text=TEXTS)
@quick
def test_weights(text):
    check_weights(text)


@given(text=TEXTS, options=OPTIONS)
@quick
def test_windows(text, options):
    check_windows(tiny().tokenizer, text, options)


@given(text=TEXTS, negative=TEXTS, options=OPTIONS)
@settings(quick, max_examples=10)
def test_embeddings_are_finite(text, negative, options):
    states, _ = tiny()._embed_text(text, negative, options)
    assert states.shape[0] == 2 and states.shape[1] % 77 == 0
    assert np.isfinite(np.array(states)).all()


@pytest.mark.parametrize(
    "unit",
    ["a\u0301\u0316\u0345", "\u0316\u0301", "\u0f73", "(a:1.1)[", "((", "x", "\ud800", "日 ", "😀"],
    ids=ascii,
)
def test_time_is_linear(unit):
    """Time would be quadratic with Python's own NFC, for example, which sorts runs of marks."""
    text = (unit * MANY)[:MANY]
    start = process_time()
    assert len(tiny().tokenizer.encode(text)) == 77
    parse_weights(text)
    assert process_time() - start < SECONDS


def test_long_runs_of_marks_are_composed_like_short_ones():
    marks = "\u0301\u0316\u0f73\u0345\u0344\u0323\u0f71\u093f\u0302" * 30
    for base in ("", "a", "\u0f40", "\u00e5", "\u093e"):
        with pytest.MonkeyPatch.context() as patch:
            ours = normalize(f"{base}{marks} b")
            patch.setattr("stable_diffusion.tokenizer.normalize._sort_marks", lambda marks: marks)
            assert ours == normalize(f"{base}{marks} b")


def test_prompts_that_are_too_long_are_refused():
    tokenizer, long = tiny().tokenizer, TextOptions(long_prompt=True)
    most = MAX_WINDOWS * 75
    windows, dropped = split_into_windows("cat " * most, tokenizer, long)
    assert (len(windows), dropped) == (MAX_WINDOWS, "")
    with pytest.raises(ValueError, match="may have up to 3750 tokens, this one has more"):
        split_into_windows("cat " * (most + 1), tokenizer, long)


@pytest.mark.parametrize("name", ["\u0301", "\u0316\u0301x\u0323", " ", "", "<|endoftext|>"])
def test_names_that_would_not_be_found(name):
    with pytest.raises(ValueError, match="cannot be a token|is a token already"):
        tiny().tokenizer.check_new(name)
