"""Weights in prompts: the syntax, and that no string is too odd for it."""

import random
from itertools import pairwise

import pytest

from stable_diffusion.prompt import MOST_WEIGHT, parse_weights


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("plain, text: 1.3", [("plain, text: 1.3", 1)]),
        ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
        ("((very)) [less] [[least]]", [("very", 1.21), (" ", 1), ("less", 1 / 1.1), (" ", 1)]),
        ("(this:1.3) (and: -.5 )", [("this", 1.3), (" ", 1), ("and", -0.5)]),
        ("(a:b:2.)(gone:0)", [("a:b", 2), ("gone", 0)]),
        (r"\(literal\] \\ (a\)b)", [(r"(literal] \ ", 1), ("a)b", 1.1)]),
        (r"\a", [("a", 1)]),
        ("(joined)(parts)", [("joinedparts", 1.1)]),
        ("([both])", [("both", 1)]),
        ("(a [b) c]", [("a ", 1.1), ("b", 1), (" c", 1 / 1.1)]),
        ("((house:1.3) [on] a (hill:0.5))", [("house", 1.43), (" ", 1.1), ("on", 1), (" a ", 1.1)]),
        ("[a:1.3]", [("a:1.3", 1 / 1.1)]),
        ("(a:1.2.3) (b:x)", [("a:1.2.3", 1.1), (" ", 1), ("b:x", 1.1)]),
        ("()[]", []),
        ("", []),
        # Without the other half.
        (":) (open", [(":) (open", 1)]),
        ("a] b:1.3) [c", [("a] b:1.3) [c", 1)]),
        ("((a)", [("(", 1), ("a", 1.1)]),
        # Beyond what counts.
        (f"(a:{'9' * 400}) (((b:99):99):0)", [("a", MOST_WEIGHT), (" ", 1), ("b", 0)]),
    ],
)
def test_syntax(prompt, expected):
    parts = parse_weights(prompt)[: max(len(expected), 1)]
    assert [text for text, _ in parts] == [text for text, _ in expected]
    assert [weight for _, weight in parts] == pytest.approx([weight for _, weight in expected])


def test_any_string_will_do():
    """All texts but brackets and weights come through, in order; neighbours differ in weight."""
    rng = random.Random(0)
    for _ in range(20_000):
        prompt = "".join(rng.choices("()[]():\\1.+- a九٣\n\x00\ud800", k=rng.randint(0, 40)))
        parts = parse_weights(prompt)
        assert all(text and abs(weight) <= MOST_WEIGHT for text, weight in parts)
        assert all(a[1] != b[1] for a, b in pairwise(parts))
        letters = [c for text, _ in parts for c in text if c in "a九\x00\ud800"]
        assert letters == [c for c in prompt if c in "a九\x00\ud800"]


def test_strings_without_brackets_are_themselves():
    rng = random.Random(1)
    for _ in range(2_000):
        prompt = "".join(chr(rng.randint(0, 0x2FFF)) for _ in range(rng.randint(1, 30)))
        prompt = "".join(c for c in prompt if c not in "()[]\\")
        assert parse_weights(prompt) == ([(prompt, 1.0)] if prompt else [])


def test_deep_brackets_take_linear_time():
    assert parse_weights("(" * 50_000 + "x" + ")" * 50_000) == [("x", MOST_WEIGHT)]
    ((_, weight),) = parse_weights("[" * 50_000 + "x" + "]" * 50_000)
    assert 0 <= weight < 1e-300
