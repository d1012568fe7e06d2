"""Prompts files: which lines count, what a line may set, and seeds that stay the same."""

import io
import json
import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from stable_diffusion.cli.arguments import parse, prompts_file


def read_requests(tmp_path, content: str | bytes, *options: str, script: str = "txt2image"):
    """Return the requests of a file with this content; a wrong one ends the program."""
    file = tmp_path / "p.txt"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    parser = getattr(parse, f"{script}_parser")()
    return parse.parse(parser, ["--prompts-file", str(file), *options]).requests


def get_prompts(requests) -> list[str]:
    return [request.prompt for request in requests]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_prompt_a_line(tmp_path, end, mark):
    lines = ["a café", "", "# no", "  a\u2028house \x0c ", "   ", "#", "a # b", '{"no": "JSON"}']
    requests = read_requests(tmp_path, mark + end.join(lines).encode())
    assert get_prompts(requests) == ["a café", "a\u2028house", "a # b", '{"no": "JSON"}']
    assert [request.where.split()[-1] for request in requests] == ["1:", "4:", "7:", "8:"]
    assert {request.n_images for request in requests} == {1}


def test_the_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"a\nb")))
    args = parse.parse(parse.txt2image_parser(), ["--prompts-file=-"])
    assert get_prompts(args.requests) == ["a", "b"] and args.output == "out/"


def test_lines_override_the_command_line(tmp_path):
    said = {"negative-prompt": "x", "steps": 3, "cfg": 4, "width": 64, "height": 72, "seed": 5}
    said |= {"sampler": "dpm++2m", "schedule": "karras", "n_images": 2, "clip_skip": 1}
    said |= {"long_prompt": False, "prompt_weights": True, "guidance_rescale": 0.5}
    said |= {"output": "cat.png"}
    lines = [{"prompt": "a"} | said, {"prompt": "b"}]
    options = ["--steps=9", "--long-prompt", "--negative-prompt=y", "--cfg=1.5"]
    one, other = read_requests(tmp_path, "\n".join(map(json.dumps, lines)), *options)
    expected = {name.replace("-", "_"): value for name, value in said.items()}
    expected |= {"prompt": "a", "file": expected.pop("output")}
    assert vars(one).items() >= expected.items()
    assert (other.steps, other.long_prompt, other.negative_prompt, other.cfg) == (9, True, "y", 1.5)
    assert isinstance(one.cfg, float) and isinstance(one.steps, int)


@pytest.mark.parametrize("value", [[999, 499, 3], "999, 499,3", [999.0, 499, 3]])
def test_timesteps_and_eta(tmp_path, value):
    """A list or text stands for timesteps. Tables write whole numbers as 999.0."""
    line = json.dumps({"prompt": "a", "timesteps": value, "eta": 0})
    (request,) = read_requests(tmp_path, line)
    assert request.timesteps == (999, 499, 3) and request.eta == 0.0
    assert request.steps is None and request.schedule is None


@pytest.mark.parametrize("value", [[0.1, 0.75], "0.1-0.75", "0.1, 0.75"])
def test_guidance_in_a_range_and_reuse(tmp_path, value):
    line = json.dumps({"prompt": "a", "cfg_range": value, "reuse": 3.0})
    (request,) = read_requests(tmp_path, line)
    assert request.cfg_range == (0.1, 0.75) and request.reuse == 3


def test_seeds_follow_the_one_given(tmp_path):
    content = '{"prompt": "a", "n_images": 3}\n{"prompt": "a", "seed": 50}\n{"prompt": "c"}'
    assert [request.seed for request in read_requests(tmp_path, content, "--seed=7")] == [7, 50, 11]


def test_seeds_stay_if_other_lines_change(tmp_path):
    """A seed depends on the prompt and on how often it came before."""
    before = read_requests(tmp_path, "a\nb\na\n")
    after = read_requests(tmp_path, "new\nb\na\n\na\n")
    assert [r.seed for r in after[1:]] == [before[i].seed for i in (1, 0, 2)]
    assert len({request.seed for request in after}) == 4
    assert before[0].seed == 3480064611  # what a later version must make of it, too


def test_pictures_have_strength_and_no_size_of_their_own(tmp_path):
    picture = str(tmp_path / "i.png")
    Image.new("RGB", (64, 64)).save(picture)
    content = '{"prompt": "a", "strength": 0.25}\n{"prompt": "b"}'
    requests = read_requests(tmp_path, content, picture, script="image2image")
    assert [request.strength for request in requests] == [0.25, None]
    content = '{"prompt": "a", "width": 64, "height": 64}'
    with pytest.raises(SystemExit):
        read_requests(tmp_path, content, picture, script="image2image")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "p.txt: there is no prompt in it"),
        ("\n# a\n", "there is no prompt in it"),
        (b"a\xff", r"p.txt: is not UTF-8 text (byte 1)"),
        ('{"prompt": "a"}\n\n{"prompt": }', "line 3: is not usable JSON (Expecting value"),
        ('{"prompt": "a"}\na', "line 2: is not usable JSON"),
        ('{"prompt": "a"}\n["a"]', "line 2: is not a JSON object"),
        ('{"prompt": ' + "[" * 100_000, "line 1: is not usable JSON"),
        ('{"steps": 3}', 'line 1: there is no "prompt"'),
        ('{"prompt": 3}', "line 1: prompt must be text, got 3"),
        ('{"prompt": null}', 'there is no "prompt"'),
        ('{"prompt": "\\ud800"}', "prompt has half of a character"),
        ('{"prompt": "a", "colour": 1}', "'colour' is not one of prompt, "),
        ('{"prompt": "a", "model": "sd"}', "'model' is not one of"),
        ('{"prompt": "a", "where": "x"}', "'where' is not one of"),
        ('{"prompt": "a", "steps": 1, "steps": 2}', "gives 'steps' twice"),
        ('{"prompt": "a", "clip-skip": 1, "clip_skip": 1}', "is given twice, in two spellings"),
        ('{"prompt": "a", "steps": "3"}', 'steps must be a number, got "3"'),
        ('{"prompt": "a", "steps": 3.5}', "steps: '3.5' is not an integer"),
        ('{"prompt": "a", "steps": true}', "steps must be text or a number, got true"),
        ('{"prompt": "a", "steps": 0}', "steps: must be from 1 to 100000, got 0"),
        ('{"prompt": "a", "cfg": Infinity}', "Infinity is not a finite number"),
        ('{"prompt": "a", "seed": -1}', "seed: must be from 0 to"),
        ('{"prompt": "a", "long_prompt": 1}', "long_prompt must be true or false, got 1"),
        ('{"prompt": "a", "sampler": "restart"}', "sampler: invalid choice: 'restart'"),
        ('{"prompt": "a", "sampler": "ddim", "schedule": "karras"}', "line 1: sampler ddim has no"),
        ('{"prompt": "a", "steps": 1e30}', "steps: '1e+30' is not an integer"),
        ('{"prompt": "a", "colour": null}', "'colour' is not one of prompt, "),
        ('{"prompt": "a"} b\n{"prompt": "c"}', "line 1: is not usable JSON (Extra data"),
        ('["a", 3]', "entry 2: is not a JSON object"),
        ('[{"prompt": "a"}, {"steps": 3}]', 'p.txt, entry 2: there is no "prompt"'),
        ('[{"prompt": "a"}, ["b"]]', "entry 2: is not a JSON object"),
        ('[\n{"prompt": "a",}\n]', "p.txt: is not usable JSON"),
        ('["a", "b",\n]', "p.txt: is not usable JSON"),
        ('["a"]\n["b"]', "p.txt: is not usable JSON (Extra data"),
        ('[{"prompt": ' + "[" * 100_000, "p.txt: is not usable JSON"),
        ("[]", "there is no prompt in it"),
        ('{\n"prompt": "a"\n}\n{\n"prompt": "b"\n}', "JSON objects on several lines are not"),
        ("prompt,steps\na cat,3\n", "is CSV, which is not read: write one prompt per line, or"),
        ('id;"Prompt";seed\n1;"a; cat";3', "is CSV"),
        ("prompt\tcfg\na cat\t3", "is a table with tabs"),
        ("- prompt: a cat\n  steps: 3", "is YAML"),
        ("prompts:\n  - a cat", "is YAML"),
        ("---\na: b", "is YAML"),
        ("model: sd\nprompt: a cat", "is YAML"),
        ('--prompt "a cat" --steps 3', "line 1: options are not read here: write one prompt"),
        ('{"prompt": "a", "width": 64}', "line 1: --width and --height go together"),
    ],
)
def test_wrong_lines(tmp_path, capsys, content, message):
    """The status is 2, and the error names the line."""
    with pytest.raises(SystemExit) as stopped:
        read_requests(tmp_path, content)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "lines",
    [
        ["a cat, red, small", "a dog, big, black"],
        ["prompt, masterpiece, best quality", "a cat"],
        ["prompt", "a cat"],
        ["a prompt, with a comma", "a, b"],
        ["the prompt: a cat", "steps: 3"],
        ["portrait: a cat", "landscape: a hill"],
        ["- a cat", "- a dog"],
        ["--- a cat ---", "a"],
        ["[a cat] in the [grass]", "[b]"],
        ["[cat|dog]", "{a|b}"],
        ['["neon"] on a sign', "a"],
        ["[1]"],
        ["a; b", "c"],
        ["a cat", "prompt: a dog"],
        ["-- a cat"],
    ],
)
def test_prompts_that_look_like_tables(tmp_path, lines):
    assert get_prompts(read_requests(tmp_path, "\n".join(lines))) == lines


@pytest.mark.parametrize("indent", [None, 0, 4])
@pytest.mark.parametrize("start", ["", "\ufeff", "# [\n\n", "\n  "])
def test_an_array(tmp_path, indent, start):
    entries = [{"prompt": "a\nb", "steps": 3}, "c, [d]", {"prompt": "e", "output": "e.png"}]
    found = read_requests(
        tmp_path, start + json.dumps(entries, indent=indent), "--steps=9", "--seed=7"
    )
    assert get_prompts(found) == ["a\nb", "c, [d]", "e"]
    assert [request.steps for request in found] == [3, 9, 9]
    assert [request.seed for request in found] == [7, 8, 9] and found[2].file == "e.png"
    assert found[1].where.endswith("p.txt, entry 2: ")


def test_one_object_on_several_lines(tmp_path):
    (found,) = read_requests(tmp_path, json.dumps({"prompt": "a", "steps": 3}, indent=2))
    assert (found.prompt, found.steps) == ("a", 3)


@pytest.mark.parametrize("nothing", ["null", "NaN"])
def test_what_tables_write(tmp_path, nothing):
    """In a column with gaps, a gap is null or NaN, and an integer is a float."""
    line = '{"prompt": "a", "steps": 3.0, "cfg": 4.0, "seed": 5.0, "width": %s, "height": %s}'
    (found,) = read_requests(tmp_path, line % (nothing, nothing))
    assert (found.steps, found.cfg, found.seed) == (3, 4, 5)
    assert type(found.steps) is type(found.seed) is int and type(found.cfg) is float
    assert found.width is found.height is None


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.csv", "a cat\n", "is CSV, which is not read"),
        ("p.CSV", "a cat\n", "(a file with one prompt per line must not be named .csv)"),
        ("p.tsv", "a cat\n", "is a table with tabs"),
        ("p.yml", "- a cat\n", "is YAML"),
        ("p.json", "a cat\n", "is named like JSON, but is not a list of prompts"),
        ("p.json", "[1]", "is named like JSON, but is not a list of prompts"),
    ],
)
def test_the_suffix_tells_the_kind(tmp_path, capsys, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(SystemExit) as stopped:
        parse.parse(parse.txt2image_parser(), ["--prompts-file", str(tmp_path / name)])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_a_file_that_never_ends(capsys):
    with pytest.raises(SystemExit):
        parse.parse(parse.txt2image_parser(), ["--prompts-file", "/dev/zero"])
    assert "error: /dev/zero: is longer than 100 MB" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ('{"prompt": "a", "n_images": 60000}\n' * 9, "line 2"),
        ('{"prompt": "a", "n_images": 100000}\n' * 100_000, "line 2"),  # 10 billion
    ],
    ids=["pictures", "both"],
)
def test_too_many_pictures(tmp_path, capsys, content, where):
    """They are refused before a list of all of them is made."""
    with pytest.raises(SystemExit):
        read_requests(tmp_path, content)
    assert f"{where}: more than 100000 pictures are asked for" in capsys.readouterr().err


def test_too_many_lines(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(prompts_file, "MAX_PICTURES", 1000)
    assert len(read_requests(tmp_path, "a\n" * 1000)) == 1000
    with pytest.raises(SystemExit):
        read_requests(tmp_path, "a\n" * 1001)
    assert "line 1001: more than 1000 pictures are asked for" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a prompt is required, or --prompts-file, or --from-image"),
        (["a", "--prompts-file", "p.txt"], "the prompt 'a' and --prompts-file: leave one out"),
        (["--prompts-file", "nowhere.txt"], "error: nowhere.txt: No such file or directory"),
        (["--prompts-file", "."], "error: .: Is a directory"),
    ],
)
def test_wrong_usage(capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        parse.parse(parse.txt2image_parser(), arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
