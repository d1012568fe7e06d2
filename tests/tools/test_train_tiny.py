"""The parts of the training of `tiny` that can be wrong without anyone seeing it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from tools import tiny_model
from tools.shapes import INVERSE, complete, held_out, sample
from tools.tiny_text import FIELDS, build_text_config, labels
from tools.tiny_training import Training, crops, to_tensor, training_scenes
from tools.tiny_unet import standardise


def test_training_never_sees_a_held_out_scene():
    scenes = training_scenes(np.random.default_rng(0))
    assert not any(held_out(next(scenes)[1]) for _ in range(500))


def test_labels_do_not_depend_on_the_side_a_relation_is_told_from():
    rng = np.random.default_rng(1)
    for _ in range(100):
        scene = complete(sample(rng, pair=1.0), rng)
        mirror = replace(scene, items=scene.items[::-1], relation=INVERSE[scene.relation])
        assert labels(scene) == labels(mirror)
        assert len(labels(scene)) == 2 * len(FIELDS) + 1


def test_standardising_changes_the_latents_and_not_the_pictures():
    torch.manual_seed(0)
    vae = tiny_model.build_vae().eval()
    with torch.no_grad():
        vae.post_quant_conv.bias.normal_()
        vae.quant_conv.bias[: tiny_model.LATENT_CHANNELS].normal_()
        pictures = torch.rand(8, 3, 64, 64) * 2 - 1
        latents = vae.encode(pictures).latent_dist.mean
        decoded = vae.decode(latents).sample
        standardise(vae, latents)
        scaled = vae.encode(pictures).latent_dist.mean
        again = vae.decode(scaled).sample
    torch.testing.assert_close(again, decoded, rtol=1e-4, atol=1e-5)
    scaled = scaled * vae.config.scaling_factor
    torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(8), rtol=0, atol=1e-4)
    torch.testing.assert_close(scaled.std((0, 2, 3)), torch.ones(8), rtol=0, atol=1e-4)


def test_a_compact_encoder_computes_what_the_full_one_does():
    torch.manual_seed(0)
    used = [5, 320, 736, 2368, 49406, 49407]
    compact = tiny_model.build_text_encoder().__class__(build_text_config(len(used))).eval()
    full = tiny_model.build_text_encoder().eval()
    state = compact.state_dict()
    name = next(key for key in state if key.endswith("token_embedding.weight"))
    table = state[name].mean(0).repeat(tiny_model.VOCABULARY, 1)
    table[used] = state[name]
    full.load_state_dict(state | {name: table})
    short = torch.tensor([[4, 1, 2, 3, 5, 5, 5]])
    with torch.no_grad():
        expected = compact(short).last_hidden_state
        got = full(torch.tensor(used)[short]).last_hidden_state
    torch.testing.assert_close(got, expected)


def test_windows_hold_some_of_a_shape():
    pictures = np.zeros((4, 64, 64, 3), np.uint8)
    pictures[:, 40:44, 2:6] = 200
    windows = crops(pictures, 32, np.random.default_rng(0))
    assert windows.shape == (4, 32, 32, 3)
    assert windows.any(axis=(1, 2, 3)).all()
    tensor = to_tensor(windows)
    assert tensor.shape == (4, 3, 32, 32) and tensor.min() == -1


def test_a_training_goes_on_where_it_stopped(tmp_path):
    def run(steps: int, stop: int | None = None) -> torch.nn.Linear:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)
        training = Training("toy", model, steps, 0.1, tmp_path)
        for step in training:
            if step == stop:
                training.save()
                break
            inputs = torch.ones(4, 3) * step
            training.descend(model(inputs).square().mean(), 4)
        return model

    whole = run(10).weight.detach().clone()
    (tmp_path / "toy.pt").unlink()
    run(10, stop=6)
    torch.testing.assert_close(run(10).weight.detach(), whole)
