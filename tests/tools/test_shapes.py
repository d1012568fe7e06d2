"""The renderer, the captions and the checker that judges pictures of `tiny`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tools.check_shapes import accepts, compare, judge, look
from tools.shapes import (
    BACKGROUNDS,
    COLOURS,
    INVERSE,
    PALETTE,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZE,
    SIZES,
    Item,
    Scene,
    complete,
    coverage,
    held_out,
    render,
    sample,
)
from tools.wording import caption


def other(value: str, values: tuple[str, ...], rng: np.random.Generator) -> str:
    """Return one of `values` that is not `value`."""
    return str(rng.choice([v for v in values if v != value]))


def one_change(scene: Scene, rng: np.random.Generator) -> Scene:
    """Return `scene` with one thing changed, so that its picture differs."""
    at = int(rng.integers(len(scene.items)))
    item = scene.items[at]
    kinds = ["background", "shape", "colour", "size"]
    if scene.place:
        kinds.append("place")
    elif scene.items[0] != scene.items[1]:  # else a mirrored relation is the same scene
        kinds.append("relation")
    kind = str(rng.choice(kinds))
    if kind == "background":
        return replace(scene, background=other(scene.background, BACKGROUNDS, rng))
    if kind == "place":
        return replace(scene, place=other(scene.place, tuple(PLACES), rng))
    if kind == "relation":
        return replace(scene, relation=other(scene.relation, RELATIONS, rng))
    values = {"shape": SHAPES, "colour": COLOURS, "size": SIZES}[kind]
    changed = replace(item, **{kind: other(getattr(item, kind), values, rng)})
    items = tuple(changed if i == at else same for i, same in enumerate(scene.items))
    if len(items) == 2 and items[0] == items[1]:
        return one_change(scene, rng)
    return replace(scene, items=items)


def soften(picture: np.ndarray) -> np.ndarray:
    """Blur a picture slightly, as a VAE does: a 3 × 3 binomial kernel at half strength."""
    wide = np.pad(picture.astype(float), ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = (wide[:-2] + 2 * wide[1:-1] + wide[2:]) / 4
    blurred = (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4
    return np.round((picture + blurred) / 2).astype(np.uint8)


@pytest.mark.parametrize("finish", [np.asarray, soften])
def test_checker_accepts_true_pictures_and_refuses_one_change(finish):
    rng = np.random.default_rng(0)
    right = wrong = 0
    count = 25
    for _ in range(count):
        scene = complete(sample(rng), rng)
        picture = finish(render(scene, rng))
        seen = look(picture)  # what `accepts` does, once for both scenes
        right += all(compare(*seen, scene).values())
        wrong += all(compare(*seen, one_change(scene, rng)).values())
    assert right == count
    assert wrong == 0


def test_checker_accepts_what_a_vague_prompt_leaves_open():
    rng = np.random.default_rng(1)
    for _ in range(20):
        asked = sample(rng, bare=0.5)
        assert accepts(render(complete(asked, rng), rng), asked)


def test_checker_blames_the_relation_when_two_shapes_are_swapped():
    items = (Item("circle", "red", "small"), Item("star", "blue", "big"))
    scene = Scene(items, "white", "left of")
    picture = render(replace(scene, relation="right of"), np.random.default_rng(2))
    verdict = judge(picture, scene)
    assert not verdict.pop("relation")
    assert all(verdict.values())


def test_checker_refuses_noise_an_empty_picture_and_a_third_shape():
    rng = np.random.default_rng(3)
    scene = Scene((Item("circle", "red", "small"),), "white", place="centre")
    empty = np.full((SIZE, SIZE, 3), PALETTE["white"], np.uint8)
    assert look(empty) == ("white", [])
    assert not accepts(empty, scene)
    assert not accepts(rng.integers(0, 256, empty.shape, dtype=np.uint8), scene)
    picture = render(scene, rng)
    assert accepts(picture, scene)
    picture[4:12, 4:12] = PALETTE["blue"]
    assert not judge(picture, scene)["count"]


def test_checker_reads_floats_like_bytes():
    rng = np.random.default_rng(4)
    scene = complete(sample(rng), rng)
    picture = render(scene, rng)
    assert judge((picture / 255).astype(np.float32), scene) == judge(picture, scene)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_antialiased_and_stay_in_their_box(shape):
    alpha = coverage(shape, 32.3, 31.6, 13.0)
    assert alpha.max() == 1 and alpha.min() == 0
    assert ((alpha > 0) & (alpha < 1)).sum() >= 10  # soft pixels along the edge
    y, x = np.nonzero(alpha)
    assert max(abs(x + 0.5 - 32.3).max(), abs(y + 0.5 - 31.6).max()) <= 1.1 * 13.0 + 1


def test_an_unknown_shape_is_refused_by_name():
    with pytest.raises(ValueError, match="'blob'"):
        coverage("blob", 32, 32, 10)


def test_a_tenth_of_combinations_is_held_out_and_the_choice_is_fixed():
    grid = [
        Scene((Item(shape, colour, "big"),), background, place="centre")
        for shape in SHAPES
        for colour in COLOURS
        for background in BACKGROUNDS
        if colour != background
    ]
    share = np.mean([held_out(scene) for scene in grid])
    assert 0.07 < share < 0.13
    # Where a shape stands does not matter: what counts is what is shown.
    moved = [replace(scene, place="left") for scene in grid]
    assert [held_out(scene) for scene in grid] == [held_out(scene) for scene in moved]


def test_a_scene_is_held_out_from_either_side():
    rng = np.random.default_rng(5)
    for _ in range(200):
        scene = complete(sample(rng, pair=1.0), rng)
        mirror = replace(scene, items=scene.items[::-1], relation=INVERSE[scene.relation])
        assert held_out(scene) == held_out(mirror)


def test_completion_keeps_what_was_said_and_leaves_nothing_invisible():
    rng = np.random.default_rng(6)
    for _ in range(300):
        asked = sample(rng, bare=0.5)
        scene = complete(asked, rng)
        assert asked.background in (None, scene.background)
        for want, got in zip(asked.items, scene.items, strict=True):
            assert want.shape in (None, got.shape)
            assert want.colour in (None, got.colour)
            assert want.size in (None, got.size)
            assert got.colour != scene.background


def test_captions_name_what_was_said_in_many_ways():
    rng = np.random.default_rng(7)
    scene = Scene((Item("star", "red"), Item("heart", "blue")), "yellow", "above")
    captions = {caption(scene, rng) for _ in range(300)}
    assert len(captions) > 200
    for text in captions:
        assert all(word in text for word in ("star", "red", "heart", "blue", "yellow"))
    vague = Scene((Item("star", None),), None)
    assert not any(word in caption(vague, rng) for _ in range(50) for word in COLOURS)
