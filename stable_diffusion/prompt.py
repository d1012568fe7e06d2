"""Prompts with weights, in the syntax of AUTOMATIC1111's web UI."""

import re
from itertools import groupby

ROUND_FACTOR = 1.1  # of (brackets); [these] divide by it
MOST_WEIGHT = 100.0  # and least, negated: what goes beyond counts as this

# A bracket or backslash behind a backslash, a lone backslash, the end of a bracket with its weight,
# a bracket, a colon, anything else.
_PART = re.compile(
    r"\\[\\()\[\]]|\\|:\s*(?P<weight>[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))\s*\)|[()\[\]]|:|[^\\()\[\]:]+"
)
_OPENING = {")": "(", "]": "["}
_FACTORS = {"(": ROUND_FACTOR, "[": 1 / ROUND_FACTOR}


def parse_weights(prompt: str) -> list[tuple[str, float]]:
    """The parts of a prompt in turn, each with its weight.

    `(more)` weighs 1.1, `[less]` 1 / 1.1, `(this:1.3)` 1.3; in brackets within brackets the weights
    multiply. A backslash makes the bracket or backslash behind it plain text, and so is a bracket
    without its other half. Any string will do.
    """
    parts = list(_PART.finditer(prompt))
    factors, closing = _pair_brackets(parts)
    weights = {"(": [1.0], "[": [1.0]}  # the product of the open brackets of each kind
    weighted = []
    for i, part in enumerate(parts):
        text = part[0]
        if i in factors:
            weights[text].append(_bounded(weights[text][-1] * factors[i]))
        elif i in closing:
            weights[_OPENING[text[-1]]].pop()
        else:
            text = text.removeprefix("\\")  # once: of two one stays
            if text:
                weighted.append((text, _bounded(weights["("][-1] * weights["["][-1])))
    runs = groupby(weighted, key=lambda part: part[1])
    return [("".join(text for text, _ in run), weight) for weight, run in runs]


def _pair_brackets(parts: list[re.Match[str]]) -> tuple[dict[int, float], set[int]]:
    """Where brackets open that close again, with what each multiplies by; and where they close."""
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
            factor = _FACTORS[opening] if weight is None else _bounded(float(weight))
            factors[opened[opening].pop()] = factor
            closing.add(i)
    return factors, closing


def _bounded(weight: float) -> float:
    return max(-MOST_WEIGHT, min(weight, MOST_WEIGHT))
