"""Prompts with weights, in the syntax of AUTOMATIC1111's web UI.

Other syntax of the web UI is not supported, but found, for warnings.
"""

import re
import shlex
from collections.abc import Iterator
from itertools import groupby

ROUND_FACTOR = 1.1  # the weight of (round brackets); [square ones] divide by it
MAX_WEIGHT = 100.0  # weights are limited to -100 and 100

# In order: a bracket or backslash after a backslash, another backslash, the end of a bracket with
# its weight, another bracket, another colon, other text.
_PART = re.compile(
    r"\\[\\()\[\]]|\\|:\s*(?P<weight>[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))\s*\)|[()\[\]]|:|[^\\()\[\]:]+"
)
_OPENING = {")": "(", "]": "["}
_FACTORS = {"(": ROUND_FACTOR, "[": 1 / ROUND_FACTOR}

# Tags that add a network in the web UI: <lora:name:0.8>.
EXTRA_NETWORK = re.compile(r"<(lora|lyco|hypernet):([^<>:]+)((?::[^<>]*)?)>", re.IGNORECASE)
SCALE = re.compile(r":\s*(-?(?:[0-9]+\.?[0-9]*|\.[0-9]+))\s*(?::.*)?")
MAX_OPTIONS = 5  # that a warning suggests for the networks of a prompt

# The number at the end of prompt editing, [a:b:0.5].
EDITING = re.compile(r":\s*(?:[0-9]+\.?[0-9]*|\.[0-9]+)\s*")
MAX_EDITING = 20  # characters of that number, with its colon and spaces
_SYMBOL = re.compile(r"\\.|[()\[\]{}|:]", re.DOTALL)
_CLOSES = {")": "(", "]": "[", "}": "{"}
_WORDS = re.compile(r"\S+")
_WILDCARD = re.compile(r"(?<!\w)__[^\W_](?:[\w/*.~-]{0,60}[^\W_]|\*)?__(?!\w)")


def find_networks(prompt: str) -> tuple[list[str], list[str]]:
    """Return the tags that add a network in the web UI, and the options that do the same here."""
    tags: list[str] = []
    options: list[str] = []
    for tag in EXTRA_NETWORK.finditer(prompt):
        tags.append(tag[0])
        if tag[1].lower() == "hypernet":
            continue  # not supported
        scale = SCALE.fullmatch(tag[3])
        file = tag[2].strip().removesuffix(".safetensors") + ".safetensors"
        option = f"--lora {shlex.quote(f'{file}:{scale[1] if scale else 1}')}"
        if option not in options and len(options) < MAX_OPTIONS:
            options.append(option)
    return tags, options


def find_plain_syntax(prompt: str) -> dict[str, str]:
    """Return the parts of a prompt that are syntax for other programs and plain text here, by kind.

    These are `[a:b:0.5]`, `[a|b]`, `{a|b}`, `AND`, `BREAK` and `__a__`, the first of each kind. Any
    string may be given.
    """
    found: dict[str, str] = {}
    for kind, start, end in _find_brackets(prompt):
        found.setdefault(kind, prompt[start:end])
    words = [word[0].strip(",.;:") for word in _WORDS.finditer(prompt)]
    for i, word in enumerate(words):
        if word not in ("AND", "BREAK"):
            continue
        around = words[max(i - 1, 0) : i] + words[i + 1 : i + 2]
        if any(len(other) > 1 and other.isupper() and other != word for other in around):
            continue  # a title in capitals
        if word == "AND" and 0 < i < len(words) - 1:
            found.setdefault("several prompts at once", word)
        elif word == "BREAK" and len(words) > 1:
            found.setdefault("a new window of tokens", word)
    if wildcard := _WILDCARD.search(prompt):
        found["a wildcard"] = wildcard[0]
    return found


def _find_brackets(prompt: str) -> Iterator[tuple[str, int, int]]:
    """Yield the brackets that mean something in other programs: kind, start and end."""
    opened: list[tuple[str, int]] = []  # the open brackets, and their positions
    bars: list[bool] = []  # whether each has a bar, not counting brackets in it
    colons: list[int] = []  # the position of its last colon, or -1
    n_open = dict.fromkeys(_CLOSES.values(), 0)
    for symbol in _SYMBOL.finditer(prompt):
        text, at = symbol[0], symbol.start()
        if text in n_open:
            opened.append((text, at))
            bars.append(False)
            colons.append(-1)
            n_open[text] += 1
        elif text in _CLOSES:
            if not n_open[_CLOSES[text]]:
                continue
            while True:  # skip brackets that are not closed
                (opening, start), has_bar, colon = opened.pop(), bars.pop(), colons.pop()
                n_open[opening] -= 1
                if opening == _CLOSES[text]:
                    break
            ends_in_number = colon >= 0 and at - colon <= MAX_EDITING
            if has_bar and opening == "[":
                yield "words in turn", start, at + 1
            elif has_bar and opening == "{":
                yield "a choice of words", start, at + 1
            elif opening == "[" and ends_in_number and EDITING.fullmatch(prompt[colon:at]):
                yield "prompt editing", start, at + 1
        elif opened and text == "|":
            bars[-1] = True
        elif opened and text == ":":
            colons[-1] = at


def parse_weights(prompt: str) -> list[tuple[str, float]]:
    """Return the parts of a prompt in order, each with its weight.

    `(more)` has the weight 1.1, `[less]` 1 / 1.1, `(this:1.3)` 1.3; the weights of nested brackets
    multiply. A bracket or backslash after a backslash is plain text, and so is a bracket without a
    partner. Any string may be given.
    """
    parts = list(_PART.finditer(prompt))
    factors, closing = _pair_brackets(parts)
    weights = {"(": [1.0], "[": [1.0]}  # the product of the open brackets of each kind
    weighted = []
    for i, part in enumerate(parts):
        text = part[0]
        if i in factors:
            weights[text].append(_limit(weights[text][-1] * factors[i]))
        elif i in closing:
            weights[_OPENING[text[-1]]].pop()
        else:
            text = text.removeprefix("\\")  # leaves one of two backslashes
            if text:
                weighted.append((text, _limit(weights["("][-1] * weights["["][-1])))
    runs = groupby(weighted, key=lambda part: part[1])
    return [("".join(text for text, _ in run), weight) for weight, run in runs]


def _pair_brackets(parts: list[re.Match[str]]) -> tuple[dict[int, float], set[int]]:
    """Return the parts that open a bracket, with their factors, and the parts that close one.

    Brackets without a partner are in neither.
    """
    factors: dict[int, float] = {}
    closing: set[int] = set()
    opened: dict[str, list[int]] = {"(": [], "[": []}
    for i, part in enumerate(parts):
        text = part[0]
        if text in opened:
            opened[text].append(i)
        elif not text.startswith("\\") and opened.get(_OPENING.get(text[-1], "")):
            opening = _OPENING[text[-1]]
            weight = part["weight"]
            factor = _FACTORS[opening] if weight is None else _limit(float(weight))
            factors[opened[opening].pop()] = factor
            closing.add(i)
    return factors, closing


def _limit(weight: float) -> float:
    """Return a weight limited to `MAX_WEIGHT` and its negative."""
    return max(-MAX_WEIGHT, min(weight, MAX_WEIGHT))
