"""Long prompts, weights and skipped layers equal transformers in float64.

If diffusers has no option for something, the tests compute it with its text encoders.
"""

import json
import warnings

import mlx.core as mx
import numpy as np
import pytest
import torch
from oracle import psnr, relative_l2
from ours import pictures
from transformers import CLIPTextModel

import image2image
import txt2image
from stable_diffusion import StableDiffusion, StableDiffusionXL
from stable_diffusion.conditioning import PLAIN, TextOptions, apply_weights, split_into_windows
from stable_diffusion.model_io.loaders import load_tokenizer

ERROR = 2e-6
SAME = 50  # dB
KINDS = ("sd-1", "sd-2", "sdxl")
SHORT = "a photo of a café!!, at night"
LONG = ", ".join(f"{word} number {i}!!" for i in range(20) for word in ("house", "tree"))
# And its parts as `parse_weights` returns them, which has tests of its own.
WEIGHTED = "a (big:1.4) [red] house, " * 30
PARTS = [("a ", 1.0), ("big", 1.4), (" ", 1.0), ("red", 1 / 1.1), (" house, ", 1.0)] * 30


@pytest.fixture(scope="module")
def models(checkpoint) -> dict[str, StableDiffusion]:
    return {
        k: (StableDiffusionXL if k == "sdxl" else StableDiffusion)(checkpoint(k)) for k in KINDS
    }


@torch.no_grad()
def embed_exactly(pipeline, parts, n_windows=None) -> tuple[np.ndarray, np.ndarray | None]:
    """Return embeddings [1, 77·k, D] and pooled ones by transformers and NumPy.

    k is `n_windows`, or as many windows as the parts need.
    """
    readers = [(pipeline.tokenizer, pipeline.text_encoder)]
    if hasattr(pipeline, "text_encoder_2"):
        readers.append((pipeline.tokenizer_2, pipeline.text_encoder_2))
    tokens = [
        [
            (token, weight)
            for text, weight in parts
            for token in tokenizer(text, add_special_tokens=False).input_ids
        ]
        for tokenizer, _ in readers
    ]
    n = n_windows or max(-(-len(of_reader) // 75) for of_reader in tokens)
    states, pooled = [], None
    for (tokenizer, text_encoder), of_reader in zip(readers, tokens, strict=True):
        in_windows = []
        for i in range(n):
            window = of_reader[75 * i : 75 * (i + 1)]
            ids = [tokenizer.bos_token_id, *(t for t, _ in window), tokenizer.eos_token_id]
            ids += [tokenizer.pad_token_id] * (77 - len(ids))
            weights = np.ones(77)
            weights[1 : 1 + len(window)] = [w for _, w in window]
            output = text_encoder(torch.tensor([ids]), output_hidden_states=True)
            if len(readers) == 1:
                z = output.last_hidden_state.numpy()
            else:
                z = output.hidden_states[-2].numpy()
                if i == 0 and hasattr(output, "text_embeds"):
                    pooled = output.text_embeds.numpy()
            weighted = z * weights[:, None]
            in_windows.append(weighted * (z.mean() / weighted.mean()))
        states.append(np.concatenate(in_windows, axis=1))
    return np.concatenate(states, axis=-1), pooled


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("prompt", "parts", "options"),
    [
        (LONG, [(LONG, 1.0)], TextOptions(long_prompt=True)),
        (WEIGHTED, PARTS, TextOptions(long_prompt=True, prompt_weights=True)),
        (WEIGHTED[:25], PARTS[:5], TextOptions(prompt_weights=True)),
    ],
)
def test_embeddings_equal_a_direct_computation(models, oracle, kind, prompt, parts, options):
    """They do; a short negative prompt gets as many windows, the last ones empty."""
    sd, pipeline = models[kind], oracle(kind).exact
    ours, ours_pooled = sd._embed_text(prompt, SHORT, options)
    theirs, pooled = embed_exactly(pipeline, parts)
    n = theirs.shape[1] // 77
    assert (n > 1) == options.long_prompt
    negative, negative_pooled = embed_exactly(pipeline, [(SHORT, 1.0)], n)
    # The mean of a window is small beside its numbers: in float32 it has fewer digits.
    assert relative_l2(ours[:1], theirs) <= (1e-5 if options.prompt_weights else ERROR)
    assert relative_l2(ours[1:], negative) <= ERROR
    if sd.config.is_xl:
        assert relative_l2(ours_pooled, np.concatenate([pooled, negative_pooled])) <= ERROR


def test_encoders_that_count_differently(models):
    """`!!` is one token for SDXL's first tokenizer, two for its second: the windows match."""
    sd = models["sdxl"]
    options = TextOptions(long_prompt=True)
    counts = [
        len(split_into_windows("wow!! " * 30, tokenizer, options)[0])
        for tokenizer in (sd.tokenizer_1, sd.tokenizer_2)
    ]
    assert counts == [1, 2]
    states, pooled = sd._embed_text("wow!! " * 30, "", options)
    assert states.shape == (2, 2 * 77, 80) and pooled.shape == (2, 24)
    assert not np.array(states[1]).any()  # no negative prompt means zeros


def test_windows(checkpoint):
    tokenizer = load_tokenizer(checkpoint("sd-1"))
    long = TextOptions(long_prompt=True)
    cat, bos, eos = 2368, tokenizer.bos_id, tokenizer.eos_id
    for count, lengths in ((0, [0]), (1, [1]), (75, [75]), (76, [75, 1]), (160, [75, 75, 10])):
        found, dropped = split_into_windows("cat " * count, tokenizer, long)
        expected = [[bos, *[cat] * n, *[eos] * (76 - n)] for n in lengths]
        assert [window.ids for window in found] == expected
        assert all(window.weights == [1.0] * 77 for window in found)
        assert dropped == ""
    (cut,), dropped = split_into_windows(
        "(cat:2) " * 76 + "dog", tokenizer, TextOptions(prompt_weights=True)
    )
    assert dropped == "cat dog"
    assert cut.ids == [bos, *[cat] * 75, eos]
    assert cut.weights == [1.0, *[2.0] * 75, 1.0]


@pytest.mark.parametrize("kind", ["sd-1", "sdxl"])
def test_there_is_one_warning_for_a_cut_prompt(models, kind):
    """There is one, however many tokenizers read it, and it names the prompt."""
    with pytest.warns(UserWarning) as caught:
        models[kind]._embed_text(["cat " * 80 + "end", "short"], ["dog " * 80 + "stop", ""])
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 2
    assert messages[0].startswith("the prompt has more than 77") and "end" in messages[0]
    assert messages[1].startswith("the negative prompt has more than 77") and "stop" in messages[1]


def test_the_second_tokenizer_alone_cuts(models):
    with pytest.warns(UserWarning, match="the prompt has more than 77 tokens") as caught:
        models["sdxl"]._embed_text("wow!! " * 30, "")
    assert len(caught) == 1


def collect_warnings(prompts, negatives, *, weights=False) -> list[str]:
    """Return the warnings of a call of the library."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        StableDiffusion("tiny").generate_latents(
            prompts,
            len(prompts),
            negative_text=negatives,
            cfg_weight=2,
            prompt_weights=weights,
        )
    return [str(warning.message) for warning in caught]


def test_networks_in_prompts_are_warned_of():
    (line,) = collect_warnings(["a", "b <lora:fur:0.8>", "<lora:c:1>"], ["", "", ""])
    assert line == (
        "the prompt has <lora:fur:0.8>, which is read as words, and so are the tags of 1 more "
        "prompt: take it out, and add the file with --lora fur.safetensors:0.8 (in the library: "
        "load_lora)"
    )
    (line,) = collect_warnings(["a"], ["<hypernet:h:1>"])
    assert line.startswith("the negative prompt has <hypernet:h:1>, which is read as words: take")
    assert line.endswith("as hypernetworks are not supported")
    assert collect_warnings(["a <3"], ["b"]) == []


def test_syntax_of_other_programs_is_warned_of():
    prompts = ["a", "[cat:dog:0.5] AND (b:1.2)", "[a|b]"]
    (line,) = collect_warnings(prompts, [""] * 3, weights=True)
    assert line == (
        "the prompt has '[cat:dog:0.5]' (prompt editing) and 'AND' (several prompts at once), "
        "which other programs interpret, but which is plain text here: only (more), [less] and "
        "(this:1.3) have weights"
    )
    assert collect_warnings(prompts, [""] * 3) == []


def test_a_run_warns_once(tmp_path, capsys):
    """There is one warning for all batches, with the line of the prompts file."""
    file = tmp_path / "p.jsonl"
    lines = [{"prompt": f"a <lora:x{i}:1> [b|c{i}]", "steps": i + 1} for i in range(3)]
    lines[0] = {"prompt": "a", "negative_prompt": "[d|e]", "steps": 1}
    file.write_text("\n".join(map(json.dumps, lines)))
    options = ["--prompts-file", str(file), "--model=tiny", f"--output={tmp_path}/o/"]
    assert txt2image.main([*options, "--prompt-weights"]) == 0
    found = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert [line.startswith(f"warning: {file}, line ") for line in found] == [True, True]
    assert "line 2: the prompt has <lora:x1:1>, which is read as words, and so" in found[0]
    assert "line 1: the negative prompt has '[d|e]' (words in turn), which" in found[1]


@pytest.mark.parametrize("kind", KINDS)
def test_options_that_have_no_effect_change_nothing(models, kind):
    sd = models[kind]
    tokens = [t.encode(SHORT) for t, _ in sd._readers]
    outputs = [e(mx.array([ids])) for ids, (_, e) in zip(tokens, sd._readers, strict=True)]
    expected = [o.hidden_states[-2] if sd.config.is_xl else o.last_hidden_state for o in outputs]
    expected = mx.concatenate(expected, axis=-1)
    for options in (PLAIN, TextOptions(long_prompt=True, prompt_weights=True)):
        states, pooled = sd._embed_text(SHORT, None, options)
        assert mx.array_equal(states, expected).item()
        if sd.config.is_xl:
            assert mx.array_equal(pooled, outputs[-1].pooled_output).item()
    brackets = "a (photo:1.3) of [it]"
    plain, _ = sd._embed_text(brackets, None)
    weighted, _ = sd._embed_text(brackets, None, TextOptions(prompt_weights=True))
    assert relative_l2(weighted, plain) > 0.01
    escaped, _ = sd._embed_text(
        r"a \(photo:1.3\) of \[it\]", None, TextOptions(prompt_weights=True)
    )
    assert mx.array_equal(escaped, plain).item()


def test_weights_of_zero():
    """A mean of zero cannot be restored: the embeddings stay finite."""
    states = mx.array([[[1.0, 2.0], [3.0, 4.0]]])
    assert not np.array(apply_weights(states, mx.zeros((1, 2)))).any()
    half = apply_weights(states.astype(mx.float16) * 1000, mx.array([[50.0, 1.0]]))
    assert half.dtype == mx.float16 and mx.isfinite(half).all().item()


@pytest.mark.parametrize("kind", KINDS)
def test_clip_skip_equals_diffusers(models, oracle, kind, monkeypatch):
    # diffusers looks for the final norm in `text_model`, which transformers 5 does not have.
    itself = property(lambda text_encoder: text_encoder)
    monkeypatch.setattr(CLIPTextModel, "text_model", itself, raising=False)
    sd, pipeline = models[kind], oracle(kind).exact
    max_skip = sd.config.max_clip_skip
    assert max_skip == (1 if kind == "sdxl" else 2)  # of 3 layers
    usual, _ = sd._embed_text(SHORT, "ugly")
    for skip in range(max_skip + 1):
        ours, pooled = sd._embed_text(SHORT, "ugly", TextOptions(clip_skip=skip))
        for i, text in enumerate((SHORT, "ugly")):
            theirs = pipeline.encode_prompt(
                text,
                device="cpu",
                num_images_per_prompt=1,
                do_classifier_free_guidance=False,
                clip_skip=skip,
            )
            assert relative_l2(ours[i : i + 1], theirs[0].detach()) <= ERROR
            if pooled is not None:
                assert relative_l2(pooled[i : i + 1], theirs[2].detach()) <= ERROR
        assert mx.array_equal(ours, usual).item() == (skip == 0)


@pytest.mark.parametrize("clip_skip", [-1, 3, 0.5, None])
def test_clip_skip_is_checked_when_called(models, clip_skip):
    message = f"clip_skip must be from 0 to 2 for this model, got {clip_skip}"
    with pytest.raises(ValueError, match=message):
        models["sd-1"].generate_latents("x", clip_skip=clip_skip)
    with pytest.raises(ValueError, match=message):
        models["sd-1"].generate_latents_from_image(np.zeros((64, 64, 3)), "x", clip_skip=clip_skip)


@pytest.mark.parametrize("kind", ["sd-1", "sdxl"])
def test_pictures_equal_diffusers(models, oracle, kind):
    """They do with all options at once and guidance, from text and from a picture."""
    single = oracle(kind).single
    positive, pooled = embed_exactly(single, PARTS)
    negative, negative_pooled = embed_exactly(single, [("blurry", 1.0)], positive.shape[1] // 77)
    given = {
        "prompt_embeds": positive,
        "negative_prompt_embeds": negative,
        "pooled_prompt_embeds": pooled,
        "negative_pooled_prompt_embeds": negative_pooled,
    }
    given = {k: torch.from_numpy(v).float() for k, v in given.items() if v is not None}
    options = {"long_prompt": True, "prompt_weights": True, "negative_text": "blurry"}
    options |= {"num_steps": 2, "cfg_weight": 4, "seed": 7, "n_images": 2}
    sd = models[kind]
    theirs = oracle(kind).pictures(
        None, seeds=[7, 8], num_inference_steps=2, guidance_scale=4, **given
    )
    assert psnr(pictures(sd, sd.generate_latents(WEIGHTED, **options)), theirs) >= SAME
    plain = pictures(sd, sd.generate_latents(WEIGHTED, **options | {"prompt_weights": False}))
    assert psnr(plain, theirs) < SAME

    image = np.linspace(-1, 1, 64 * 64 * 3, dtype=np.float32).reshape(64, 64, 3)
    theirs = oracle(kind).pictures_from_image(
        image, None, seeds=[7, 8], strength=0.5, num_inference_steps=2, guidance_scale=4, **given
    )
    latents = sd.generate_latents_from_image(image, WEIGHTED, strength=0.5, **options)
    assert psnr(pictures(sd, latents), theirs) >= SAME


def test_scripts(checkpoint, tmp_path, capsys):
    """The options reach the library from both scripts, also with --low-memory."""
    output = str(tmp_path / "o.png")
    usual = ["--model", str(checkpoint("sd-1")), "--steps=1", "--n_images=1", "--seed=1"]
    usual += ["--output", output]
    wanted = ["--long-prompt", "--prompt-weights", "--clip_skip=1", "-q", "--low-memory"]
    seen = {}
    for options in ((), *([option] for option in wanted[:3]), wanted):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert txt2image.main([WEIGHTED, *usual, *options]) == 0
        seen[(tmp_path / "o.png").read_bytes()] = options
    assert len(seen) == 5
    assert "dropped" in capsys.readouterr().err
    assert image2image.main([output, LONG, *usual, *wanted, "--force"]) == 0
    assert "dropped" not in capsys.readouterr().err
    assert txt2image.main(["x", *usual, "--clip-skip=3"]) == 2
    error = "error: --clip-skip must be from 0 to 2 for this model, got 3\n"
    assert capsys.readouterr().err == error
    with pytest.raises(SystemExit):
        txt2image.main(["x", "--model=/nowhere", "--clip-skip=-1"])
    assert "must be from 0 to 100000, got -1" in capsys.readouterr().err


def test_encoders_can_be_freed(models, checkpoint):
    sd = StableDiffusion(checkpoint("sd-1"), float16=True)
    latents = sd.generate_latents(LONG, num_steps=1, long_prompt=True, clip_skip=1, cfg_weight=2)
    mx.eval(latents.inputs)
    sd.free_text_encoders()
    (x,) = latents
    assert mx.isfinite(x).all().item()
