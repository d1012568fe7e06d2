"""Weights in prompts: the syntax, and that any string can be parsed."""

import random
import time
from itertools import pairwise

import pytest

from stable_diffusion.tokenizer.prompt_weights import (
    MAX_WEIGHT,
    find_networks,
    find_plain_syntax,
    parse_weights,
)


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
        # Brackets without a partner.
        (":) (open", [(":) (open", 1)]),
        ("a] b:1.3) [c", [("a] b:1.3) [c", 1)]),
        ("((a)", [("(", 1), ("a", 1.1)]),
        # Beyond the limit.
        (f"(a:{'9' * 400}) (((b:99):99):0)", [("a", MAX_WEIGHT), (" ", 1), ("b", 0)]),
    ],
)
def test_syntax(prompt, expected):
    parts = parse_weights(prompt)[: max(len(expected), 1)]
    assert [text for text, _ in parts] == [text for text, _ in expected]
    assert [weight for _, weight in parts] == pytest.approx([weight for _, weight in expected])


def test_any_string_can_be_parsed():
    """Everything except brackets and weights is kept, in order; neighbours differ in weight."""
    rng = random.Random(0)
    for _ in range(20_000):
        prompt = "".join(rng.choices("()[]():\\1.+- a九٣\n\x00\ud800", k=rng.randint(0, 40)))
        parts = parse_weights(prompt)
        assert all(text and abs(weight) <= MAX_WEIGHT for text, weight in parts)
        assert all(a[1] != b[1] for a, b in pairwise(parts))
        letters = [c for text, _ in parts for c in text if c in "a九\x00\ud800"]
        assert letters == [c for c in prompt if c in "a九\x00\ud800"]


def test_strings_without_brackets_stay_as_they_are():
    rng = random.Random(1)
    for _ in range(2_000):
        prompt = "".join(chr(rng.randint(0, 0x2FFF)) for _ in range(rng.randint(1, 30)))
        prompt = "".join(c for c in prompt if c not in "()[]\\")
        assert parse_weights(prompt) == ([(prompt, 1.0)] if prompt else [])


def test_deep_brackets_take_linear_time():
    assert parse_weights("(" * 50_000 + "x" + ")" * 50_000) == [("x", MAX_WEIGHT)]
    ((_, weight),) = parse_weights("[" * 50_000 + "x" + "]" * 50_000)
    assert 0 <= weight < 1e-300


def test_the_limit_of_weights():
    """Limits apply to single weights and to the product of nested ones, in both directions."""
    assert MAX_WEIGHT == 100
    for prompt, weight in {
        "(a:100)": 100,
        "(a:99.5)": 99.5,
        "(a:100.5)": 100,
        "(a:-100.5)": -100,
        "((a:60):2)": 100,
        "((a:60):-2)": -100,
        "[(a:1000)]": 100 / 1.1,
        "((a:0.5):1000)": 50,
    }.items():
        assert parse_weights(prompt) == [("a", pytest.approx(weight))], prompt


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ("a <lora:fur:0.8> cat", ["--lora fur.safetensors:0.8"]),
        ("<lyco:fur>", ["--lora fur.safetensors:1"]),
        ("<LoRA: a b :-1>", ["--lora 'a b.safetensors:-1'"]),
        ("<lora:x.safetensors:0.5:0.7>", ["--lora x.safetensors:0.5"]),
        ("<lora:x:y>", ["--lora x.safetensors:1"]),
        ("<hypernet:h:1>", []),
        ("<lora:a:1><lora:a:1>", ["--lora a.safetensors:1"]),
    ],
)
def test_networks(prompt, options):
    tags, found = find_networks(prompt)
    assert tags and found == options


@pytest.mark.parametrize("prompt", ["a < lora", "<cat-toy>", "<lora>", "<lora:>", "lora:a:1", "<3"])
def test_no_networks(prompt):
    assert find_networks(prompt) == ([], [])


@pytest.mark.parametrize(
    ("prompt", "part"),
    [
        ("a [cat:dog:0.5] here", "[cat:dog:0.5]"),
        ("[dog:10]", "[dog:10]"),
        ("[cat::.5]", "[cat::.5]"),
        ("[(cat:1.2):[dog]:0.5]", "[(cat:1.2):[dog]:0.5]"),
        ("a [cat|dog]", "[cat|dog]"),
        ("a {red|2$$blue} cat", "{red|2$$blue}"),
        ("a cat AND a dog", "AND"),
        ("a cat:1.2 AND a dog:0.5", "AND"),
        ("a cat BREAK a dog", "BREAK"),
        ("a cat, BREAK, a dog", "BREAK"),
        ("a __color__ cat", "__color__"),
        ("a __my/colors-2__", "__my/colors-2__"),
        ("(a [b:c:0.5]", "[b:c:0.5]"),
    ],
)
def test_syntax_of_other_programs(prompt, part):
    assert list(find_plain_syntax(prompt).values()) == [part]


@pytest.mark.parametrize(
    "prompt",
    [
        *("a (cat:1.3) [dog] ((x))", "[a: b]", "a|b", "(a|b)", "{a}", "a: 0.5]", "[a (b|c)]"),
        *(r"\[a:b:0.5\]", r"\[a|b\]", "[a (b:0.5)]", "12:30", "[at 12:30pm]"),
        *("a cat and a dog", "SAND", "AND", "a cat AND", "CATS AND DOGS", "R-AND-B", 'a "AND" b'),
        *("BREAK", "a BREAKING wave", "a break", "PRISON BREAK", "BREAK-dance of a cat"),
        *("a__b__c", "__", "____", "a __ b __ c", "_a_", ""),
    ],
)
def test_no_syntax_of_other_programs(prompt):
    assert find_plain_syntax(prompt) == {}


@pytest.mark.parametrize(
    "part", ["[", "[|", "[:", "{[(", "[a:0.5", "__a", " AND", "]", "[:]", "\\"]
)
def test_syntax_is_found_in_linear_time(part):
    start = time.process_time()
    find_plain_syntax(part * 100_000)
    find_networks("<lora:" * 100_000)
    assert time.process_time() - start < 5
