"""`value_types.py`: files, web addresses and seeds on a command line."""

import pytest
from command_lines import parse_in_folder

from stable_diffusion.cli.arguments.parse import parse, txt2image_parser

LAST_SEED = 2**64 - 1


@pytest.mark.parametrize("option", ["--lora={}", "--embedding=x={}", "--lora={}:1"])
@pytest.mark.parametrize("name", ["x" * 999, "~nosuch/x", "a\0b", "/dev/zero"])
def test_files_that_do_not_exist(capsys, option, name):
    with pytest.raises(SystemExit) as stopped:
        parse(txt2image_parser(), ["a", option.format(name)])
    assert stopped.value.code == 2
    assert "error: argument" in (said := capsys.readouterr().err) and "no such" in said


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--model=https://huggingface.co/org/name", "give org/name"),
        ("--model=https://huggingface.co/org/name/", "give org/name"),
        ("--model=http://www.hf.co/org/name/tree/main?x=1#y", "give org/name"),
        ("--model=https://huggingface.co/org/name/tree/fp16", "give org/name@fp16"),
        ("--model=https://huggingface.co/org/name/tree/refs%2Fpr%2F1", "give org/name@refs/pr/1"),
        ("--model=https://huggingface.co/o/n/blob/main/model_index.json", "give o/n"),
        ("--model=huggingface.co/org/name", "give org/name"),
        ("--vae=https://huggingface.co/org/name", "give org/name"),
        ("--model=https://huggingface.co/o/n/blob/main/a/b.safetensors", None),
        ("--model=https://huggingface.co/o/n/resolve/fp16/b.safetensors?download=true", None),
        ("--model=https://civitai.com/models/4384/dreamshaper", None),
        ("--model=civitai.com/models/4384", None),
        ("--model=HTTPS://example.org", None),
        ("--lora=https://huggingface.co/o/n", "give o/n"),
        ("--lora=https://huggingface.co/o/n/blob/main/a/b.safetensors", "give o/n/a/b.safetensors"),
        ("--lora=https://hf.co/o/n/resolve/v1/b.safetensors?x=1", "give o/n@v1/b.safetensors"),
        ("--lora=https://civitai.com/api/download/models/1:0.8", None),
        ("--embedding=x=https://example.org/x.safetensors", None),
    ],
)
def test_addresses(capsys, option, said):
    with pytest.raises(SystemExit) as stopped:
        parse(txt2image_parser(), ["a", option])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert " is a web address: " in error
    if said is None:
        assert error.endswith(" as a .safetensors file, and give its path\n")
    else:
        assert error.endswith(f"{said}\n")


@pytest.mark.parametrize("model", ["org/name", "org/name@v1", "./http", "hf.co", "a:b", ""])
def test_names_that_look_like_addresses(folder, model):
    (folder / "hf.co").mkdir()
    assert parse_in_folder(folder, "txt2image.py", ["a", f"--model={model}"]).model == model


def test_seeds(folder, capsys):
    for seed in (0, LAST_SEED):
        args = parse_in_folder(folder, "txt2image.py", ["a", "--n_images=1", f"--seed={seed}"])
        assert args.requests[0].seed == seed
    for wrong, said in {
        "-1": f"must be from 0 to {LAST_SEED}, got -1: leave it out for a random one",
        str(LAST_SEED + 1): f"must be from 0 to {LAST_SEED}, got {LAST_SEED + 1}",
        "x": "'x' is not an integer",
    }.items():
        assert parse_in_folder(folder, "txt2image.py", ["a", "--seed", wrong]) is None
        assert capsys.readouterr().err.endswith(f": {said}\n")
