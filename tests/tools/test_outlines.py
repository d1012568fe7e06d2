"""The outlines, and the judges of control, inpainting and outpainting with `tiny`."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from tools.control_scores import judge_layout, outlined, score_outlines
from tools.mask_scores import SIDES, extensions, score_extensions, score_swaps, swaps
from tools.outlines import GAP, layouts
from tools.shapes import PALETTE, SIZE, held_out
from tools.tiny_control import draw_outline, label

MUST = ("count", "shape", "position", "region")


def test_training_never_sees_a_held_out_layout_and_scoring_only_these():
    rng = np.random.default_rng(0)
    seen, unseen = layouts(rng, unseen=False), layouts(rng, unseen=True)
    assert not any(held_out(next(seen).scene) for _ in range(100))
    assert all(held_out(next(unseen).scene) for _ in range(20))


def test_shapes_stand_anywhere_apart_from_one_another_and_from_the_border():
    rng = np.random.default_rng(1)
    scenes = layouts(rng, unseen=False, pair=1.0)
    centres = []
    for _ in range(60):
        layout = next(scenes)
        first, second = layout.silhouettes()
        assert first.any() and second.any() and not (first & second).any()
        for shape in (first, second):
            assert not shape[:2].any() and not shape[-2:].any() and not shape[:, :2].any()
        centres += [(spot.x, spot.y) for spot in layout.spots]
    # Uniform places: far more than the few that prompts name.
    assert (np.std(centres, axis=0) > SIZE / 6).all()
    assert GAP > 2  # what the first lines check


def test_an_outline_is_the_border_of_the_shapes():
    layout = next(layouts(np.random.default_rng(2), unseen=False, pair=1.0))
    shapes = np.logical_or.reduce(layout.silhouettes())
    inner, outer = layout.outline(), layout.outline(inner=False, outer=True)
    assert inner.any() and (inner <= shapes).all()
    assert outer.any() and not (outer & shapes).any()
    assert (layout.outline(inner=True, outer=True) == (inner | outer)).all()
    assert inner.sum() < 0.5 * shapes.sum()


def test_prompts_leave_shapes_open_and_are_sometimes_empty():
    rng = np.random.default_rng(3)
    scenes = layouts(rng, unseen=False)
    prompts = [label(next(scenes), rng) for _ in range(200)]
    assert 0.08 < np.mean([text == "" for text in prompts]) < 0.25
    assert any(word in text for text in prompts for word in (" shape", " thing", " object"))
    widths = {int(draw_outline(next(scenes), rng).sum()) for _ in range(10)}
    assert len(widths) > 5


def test_the_judge_of_outlines_accepts_true_pictures_and_refuses_moved_ones():
    asked = outlined(6)
    for _, layout in asked:
        verdict = judge_layout(layout.render(), layout)
        assert all(verdict.values()), verdict
    for (_, layout), (_, other) in pairwise(asked):
        verdict = judge_layout(layout.render(), other)
        assert not all(verdict[aspect] for aspect in MUST)
    moved = np.roll(asked[0][1].render(), 5, axis=1)  # pixels
    verdict = judge_layout(moved, asked[0][1])
    assert verdict["shape"] and verdict["colour"] and not verdict["position"]


def test_scores_of_outlines_are_shares():
    asked = outlined(4)
    right = np.stack([layout.render() for _, layout in asked]) / 255
    right[0] = 0.5  # an empty picture

    def draw(texts, lines):
        assert texts == [text for text, _ in asked]
        assert lines.shape == (4, SIZE, SIZE) and lines.max() == 1
        return right

    assert score_outlines(draw, asked)["outline"] == 0.75


@pytest.mark.parametrize("box", [False, True])
def test_a_mask_covers_the_shape_that_is_replaced_and_not_the_other_one(box):
    for swap in swaps(10, box):
        ground = np.array(PALETTE[swap.scene.background])
        shapes = (swap.picture != ground).any(-1)
        other = PALETTE[swap.scene.items[1].colour]
        first = shapes & swap.mask
        assert first.sum() > 40 and (shapes & ~swap.mask).sum() > 40
        assert (swap.picture[~swap.mask] == other).all(-1).any()
        assert held_out(swap.scene)


def test_scores_of_swaps_count_unchanged_pictures_and_changed_pixels():
    asked = swaps(4)

    def draw(prompts, pictures, masks):
        drawn = pictures.copy()
        drawn[0][~(masks[0] > 0)] += 2 / 255  # as a VAE would
        return drawn.clip(0, 1)

    scores = score_swaps(draw, asked)
    assert scores["kept"] == 0.75
    assert scores["prompt"] == 0  # the old shape is still there


@pytest.mark.parametrize("fill", ["edge", "symmetric", "grey"])
def test_scores_of_extensions(fill):
    asked = extensions(6, pixels=16)
    for one in asked:
        larger, new = one.extend(fill)
        assert larger[~new].reshape(one.picture.shape).tobytes() == one.picture.tobytes()
        assert new.sum() == 16 * SIZE
        assert one.side in SIDES

    def draw(prompts, pictures, masks):
        return pictures

    scores = score_extensions(draw, asked, fill)
    assert scores["kept"] == 1
    if fill == "edge":  # repeats the border, which has no shape
        assert scores["pixels"] == scores["clean"] == 1
    if fill == "grey":
        assert scores["clean"] < 1
