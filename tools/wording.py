"""Words a scene in English, in many ways: `caption(scene, rng)`."""

from __future__ import annotations

import numpy as np

from tools.shapes import INVERSE, PLACE_OF, Item, Scene, _pick, mirrored

SHAPE_WORDS = {  # the plain name is repeated so that it stays the most frequent
    "circle": ("circle", "circle", "circle", "disc", "dot"),
    "square": ("square", "square", "square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "diamond": ("diamond", "diamond", "diamond", "rhombus"),
    "heart": ("heart",),
    "cross": ("cross", "cross", "cross", "plus", "plus sign"),
    "ring": ("ring", "ring", "ring", "donut"),
    "crescent": ("crescent", "crescent", "moon", "crescent moon"),
    None: ("shape", "object", "thing"),
}
SIZE_WORDS = {
    "small": ("small", "small", "little", "tiny"),
    "big": ("big", "big", "large", "huge"),
}
COLOUR_WORDS = {"grey": ("grey", "gray"), "purple": ("purple", "purple", "violet")}
RELATION_WORDS = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "above", "over", "on top of"),
    "below": ("below", "below", "under", "beneath", "underneath"),
}
PLACE_WORDS = {
    "left": ("on the left", "at the left", "on the left side", "left"),
    "right": ("on the right", "at the right", "on the right side", "right"),
    "top": ("at the top", "on the top", "in the top part", "top"),
    "bottom": ("at the bottom", "on the bottom", "in the bottom part", "bottom"),
    "centre": ("in the centre", "in the center", "in the middle", "at the center", "centre"),
}
OPENINGS = (
    *("",) * 6,
    "photo of ",
    "a photo of ",
    "a picture of ",
    "an image of ",
    "a drawing of ",
    "there is ",
    "draw ",
    "show me ",
)
GROUNDS = ("{} background", "a {} background", "a plain {} background", "{}")


def _colour(colour: str, rng: np.random.Generator) -> str:
    return _pick(rng, COLOUR_WORDS.get(colour, (colour,)))


def _noun(item: Item, rng: np.random.Generator) -> str:
    """Return an item in words: "a small red circle", "the red circle", "red circle, small"."""
    colour = _colour(item.colour, rng) if item.colour else ""
    shape = _pick(rng, SHAPE_WORDS[item.shape])
    size = _pick(rng, SIZE_WORDS[item.size]) if item.size else ""
    form = rng.random()
    if colour and form < 0.05:
        words = [size, shape, f"in {colour}"]
    elif colour and size and form < 0.1:
        words = [colour, size, shape]
    else:
        words = [size, colour, shape]
    phrase = " ".join(word for word in words if word)
    article = _pick(rng, ("a", "a", "a", "the", "one", ""))
    if article == "a" and phrase[0] in "aeiou":
        article = "an"
    return f"{article} {phrase}".strip()


def _things(scene: Scene, rng: np.random.Generator) -> str:
    """Return the items with their place or relation, without the background."""
    form = rng.random()
    if len(scene.items) == 1:
        noun = _noun(scene.items[0], rng)
        if scene.place is None:
            return noun
        where = _pick(rng, PLACE_WORDS[scene.place])
        return f"{where}, {noun}" if form < 0.2 else f"{noun} {where}"
    if scene.relation is not None and rng.random() < 0.5:
        scene = mirrored(scene)
    first, second = (_noun(item, rng) for item in scene.items)
    if scene.relation is None:
        return f"{first} and {second}"
    if form < 0.7:
        return f"{first} {_pick(rng, RELATION_WORDS[scene.relation])} {second}"
    here = _pick(rng, PLACE_WORDS[PLACE_OF[scene.relation]])
    there = _pick(rng, PLACE_WORDS[PLACE_OF[INVERSE[scene.relation]]])
    if form < 0.8:
        relation = _pick(rng, RELATION_WORDS[scene.relation])
        return f"{first} and {second}, the first {relation} the second"
    if form < 0.9:
        return f"{here} {first}, {there} {second}"
    return f"{first} {here} and {second} {there}"


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Return one of many English descriptions of `scene`; none names what it leaves open."""
    things, opening = _things(scene, rng), _pick(rng, OPENINGS)
    if scene.background is None:
        return f"{opening}{things}"
    ground = _pick(rng, GROUNDS).format(_colour(scene.background, rng))
    form = rng.random()
    if form < 0.15:
        return f"on {ground}, {things}"
    if form < 0.2:
        return f"{ground}, {things}" if "background" in ground else f"{ground} background, {things}"
    if form < 0.3 and "background" in ground:
        return f"{opening}{things}, {ground}"
    link = (
        _pick(rng, ("on", "on", "on", "against"))
        if "background" not in ground
        else _pick(rng, ("on", "on", "on", "against", "with"))
    )
    return f"{opening}{things} {link} {ground}"
