"""The tokenizer gives the ids of transformers' `CLIPTokenizer`, which runs beside it."""

import json
import random
import shutil
import unicodedata
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from clip_vocabulary import BOS, EOS, Layout, vocabulary, write_tokenizer
from diffusers.loaders.textual_inversion import TextualInversionLoaderMixin
from transformers import CLIPTokenizer

from stable_diffusion.tokenizer.added_tokens import AddedToken
from stable_diffusion.tokenizer.files import (
    SMALL_FILES,
    SmallFiles,
    read_tokenizer,
    read_tokenizer_json,
)
from stable_diffusion.tokenizer.tokenizer import Tokenizer

RANDOM_STRINGS = 2_000
LAYOUTS = [(layout, pad) for layout in ("slow", "decoder", "json") for pad in (EOS, "!")]
WHOLE = [("slow", "!"), ("decoder", EOS), ("json", "!")]  # the others have a small vocabulary

NASTY = [
    *["", " ", "\n\t ", "a", "!", "!!", "a!b ! c!", "hello, world!", "Hello   World\u00a0\u3000x"],
    *["it's they're I've I'm we'll he'd don't", "'sun 'S 'LL ''s '''t", "CAN'T  can' t", "a'sb"],
    *[
        "café",
        "cafe\u0301",
        "CAFÉ",
        "naïve “quotes” — dashes…",
        "ß ẞ ﬁ Ǆ ŉ İstanbul ıI",
        "ΣΑΣ ΟΔΟΣ Σ",
    ],
    *["\u212b \u2126 \u1e9b\u0323", "e\u0301\u0323\u0301", "\u0301start", "a\u0301\u0301\u0301"],
    *[
        "日本語のテキスト",
        "한국어 각",
        "中文字符，标点。",
        "ไทย หมวก",
        "हिन्दी क्षि",
        "עִבְרִית",
        "العربية",
    ],
    *["😀", "👩‍👩‍👧‍👦", "🏳️‍🌈🇩🇪", "👍🏽 ok", "❤️", "a😀b😀", "\U0001f9d1\u200d\U0001f3a4!"],
    *["3.14159", "12 345", "x2y3", "Ⅷ ½ ² ٣ ५ 一二", "1,000,000%", "$5.00 (50% off)", "#hash @at"],
    *[
        "\x00",
        "a\x00b",
        "\x1c\x1d\x1e\x1f",
        "\x7f\x80\x85\x9f",
        "\u200b\u200c\u200d\ufeff",
        "\u180e",
    ],
    *["\ufffd\ufffe\uffff", "\ue000\U000f0000\U0010fffd", "\u2028\u2029\u202f\u205f", "\u1680x"],
    *[BOS, EOS, f"a {EOS} b", f"a{EOS}b", f"{EOS}{EOS}", f"{BOS}x{EOS}!", f"!{EOS}'s", f"<{EOS}>"],
    *[EOS.upper(), f"A{EOS.upper()}B", f".{EOS.upper()}'s", "<|EndOfText|>!<|STARTOFTEXT|>"],
    *[
        "<|endoftext|",
        "|endoftext|>",
        "<| endoftext |>",
        f"{EOS}\u0338",
        f"e{EOS}\u0301",
        "<|\u212aeep|>",
    ],
    *["</w>", "a</w> b", "Ġword", "ĠĊ", "\\n \\u0041", "<|>", "___", "a_b__c", "-" * 50, "/" * 33],
    *["(masterpiece:1.2), [x|y], {z}", "https://a.b/c?d=e&f#g", "C++ / C#", "~`^*+=<>;:\"'\\"],
    *["a" * 500, "ab" * 300, "é" * 200, "word " * 100, "! " * 100, "!" * 100, "😀" * 60, "9" * 100],
    *["antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis", "zzzzqqqqxxxx"],
]

# (share, first, last): ranges to draw characters from, the interesting ones more often
RANGES = [
    *[(30, 0x20, 0x7E), (3, 0x00, 0x1F), (8, 0x80, 0x24F), (5, 0x300, 0x36F), (6, 0x370, 0x52F)],
    *[(6, 0x590, 0x10FF), (4, 0x1E00, 0x1FFF), (8, 0x2000, 0x2BFF), (6, 0x3000, 0x30FF)],
    *[(5, 0x4E00, 0x9FFF), (4, 0xAC00, 0xD7A3), (4, 0x1100, 0x11FF), (4, 0xF900, 0xFFFD)],
    *[(8, 0x1F000, 0x1FAFF), (3, 0x10000, 0x1EFFF), (2, 0x20000, 0x3FFFF), (3, 0xE0000, 0x10FFFF)],
    *[(6, 0x0000, 0xFFFF), (2, 0x0000, 0x10FFFF)],
]
FRAGMENTS = [*" !'.,", BOS, EOS, EOS.upper(), "'s", "'ll", "\u0301", "\u200d", "  ", "cat", "Photo"]


def draw_character(rng: random.Random) -> str:
    """Return a random character that Unicode has assigned, and no surrogate."""
    (_, first, last), *_ = rng.choices(RANGES, weights=[share for share, *_ in RANGES])
    while True:
        character = chr(rng.randint(first, last))
        if unicodedata.category(character) not in ("Cn", "Cs"):
            return character


def draw_text(rng: random.Random) -> str:
    """Return a text of random characters and fragments."""
    length = rng.choice([3, 10, 30, 80])
    fragments = (
        rng.choice(FRAGMENTS) if rng.random() < 0.2 else draw_character(rng)
        for _ in range(rng.randint(1, length))
    )
    return "".join(fragments)


@cache
def draw_texts() -> list[str]:
    rng = random.Random(0)
    return [draw_text(rng) for _ in range(RANDOM_STRINGS)]


def load(folder: Path) -> Tokenizer:
    """Read our tokenizer of a folder, with all the files that it has."""
    files = (folder / name for name in SMALL_FILES)
    beside = SmallFiles(*(file if file.exists() else None for file in files))
    if (folder / "tokenizer.json").exists():
        return read_tokenizer_json(folder / "tokenizer.json", beside)
    return read_tokenizer(folder / "vocab.json", folder / "merges.txt", beside)


# Our tokenizer of a folder, and transformers'.
Pair = tuple[Tokenizer, CLIPTokenizer]


def load_both(folder: Path) -> Pair:
    """Read the tokenizer of a folder by this port and by transformers."""
    return load(folder), CLIPTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module", params=LAYOUTS, ids=lambda case: f"{case[0]}-{case[1]}")
def pair(request, tmp_path_factory, small_folder) -> Pair:
    """Return both tokenizers of each layout and pad token, half of them with all of CLIP's tokens.

    The vocabulary has nothing to do with the pad token, and to read it takes as long as a test.
    """
    layout, pad_token = request.param
    if (layout, pad_token) == WHOLE[0]:
        return request.getfixturevalue("slow_pair")
    if (layout, pad_token) not in WHOLE:
        return load_both(small_folder(layout, pad_token))
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, pad_token, layout)
    return load_both(folder)


@pytest.fixture(scope="module")
def slow_folder(tmp_path_factory) -> Path:
    """Return a folder with the whole vocabulary; not to be changed."""
    folder = tmp_path_factory.mktemp("slow")
    write_tokenizer(folder, "!", "slow")
    return folder


@pytest.fixture(scope="module")
def slow_pair(slow_folder) -> Pair:
    """Return both tokenizers of `slow_folder`."""
    return load_both(slow_folder)


@pytest.fixture
def slow(slow_folder, tmp_path) -> Path:
    """Return a copy of `slow_folder`, which may be changed."""
    return shutil.copytree(slow_folder, tmp_path, dirs_exist_ok=True)


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory) -> Callable[[Layout, str], Path]:
    """Return a function that gives a folder with a small vocabulary; not to be changed."""

    @cache
    def write(layout: Layout, pad_token: str) -> Path:
        folder = tmp_path_factory.mktemp("small")
        write_tokenizer(folder, pad_token, layout)
        shrink(folder)
        return folder

    return write


@pytest.fixture
def small(small_folder, tmp_path) -> Callable[..., Path]:
    """Return a function that gives such a folder, which may be changed."""

    def copy(layout: Layout = "slow", pad_token: str = EOS) -> Path:
        return shutil.copytree(small_folder(layout, pad_token), tmp_path, dirs_exist_ok=True)

    return copy


def assert_equal_ids(tokenizers: Path | Pair, texts: list[str]) -> None:
    """Check that our tokenizer, of a folder or a pair, gives the ids of transformers' one."""
    ours, theirs = load_both(tokenizers) if isinstance(tokenizers, Path) else tokenizers
    assert (ours.pad_id, ours.bos_id, ours.eos_id) == (
        *(theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id),
    )
    expected = theirs(texts, padding="max_length", max_length=77, truncation=True).input_ids
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrong = [t for t, ids in zip(texts, expected, strict=True) if ours.encode(t) != ids]
    assert not wrong, f"{len(wrong)} of {len(texts)} differ, such as {wrong[:5]!r}"


def test_random_strings(pair):
    assert_equal_ids(pair, draw_texts()[:200])


def test_many_random_strings(slow_pair):
    assert_equal_ids(slow_pair, draw_texts())


def test_nasty_strings(pair):
    assert_equal_ids(pair, NASTY)


def test_every_assigned_code_point_of_the_first_plane(slow_pair):
    characters = [
        c for c in map(chr, range(0x10000)) if unicodedata.category(c) not in ("Cn", "Cs")
    ]
    lines = ["".join(f"a{c}1" for c in characters[i : i + 8]) for i in range(0, len(characters), 8)]
    assert_equal_ids(slow_pair, lines)


def test_combining_marks_in_every_order(slow_pair):
    """Transformers' NFC does not change characters that are newer than its Unicode."""
    marks = [c for c in map(chr, range(0x110000)) if unicodedata.combining(c)]
    texts = [f"a\u0345{c}\u0316\u0301 e{c}\u0301\u0323" for c in marks]
    assert_equal_ids(slow_pair, [*texts, "\U00011935\U00011930", "\U00011938"])


@pytest.mark.parametrize("eos", [EOS, True, False])
@pytest.mark.parametrize("unk", [EOS, True, False])
@pytest.mark.parametrize("pad", [EOS, True, False])
def test_flags_of_a_token_with_several_entries(small, eos, unk, pad):
    """Last entries decide: for example, whether `<|ENDOFTEXT|>` is special."""
    folder = small()
    named = {"eos_token": eos, "unk_token": unk, "pad_token": pad}
    entries = {
        key: {"content": EOS, "normalized": n} if isinstance(n, bool) else n
        for key, n in named.items()
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(entries))
    assert_equal_ids(folder, [EOS.upper(), f"{EOS}\u0338"])


@pytest.mark.parametrize(
    "flags",
    [{}, *({flag: True} for flag in ("normalized", "lstrip", "rstrip", "single_word"))],
    ids=str,
)
def test_flags_of_added_tokens(small, flags):
    folder = small("decoder", "!")
    edit(folder / "tokenizer_config.json", added_tokens=[{"content": "<Cat>", **flags}])
    assert_equal_ids(
        folder,
        [
            "a <Cat> b",
            "a <cat> b",
            "a<Cat>b",
            " <Cat> !<Cat> ",
            "a_<Cat>",
            "<Cat>\u0338",
            "<Cat>é<Cat>",
        ],
    )


def test_the_longest_added_token_is_found(small):
    folder = small("decoder", "!")
    tokens = [{"content": content} for content in ("<a", "<a>", "<a>>", "a>b")]
    edit(folder / "tokenizer_config.json", added_tokens=tokens)
    assert_equal_ids(folder, ["<a", "<a>", "<a>>", "<a>b", "a>b", "<aa>b"])


def as_diffusers(tokenizer: CLIPTokenizer, texts: list[str]) -> list[list[int]]:
    """Return the ids that diffusers' pipelines get of texts."""
    convert = TextualInversionLoaderMixin().maybe_convert_prompt
    texts = convert(texts, tokenizer)
    return tokenizer(texts, padding="max_length", max_length=77, truncation=True).input_ids


@pytest.mark.parametrize("has_map", [True, False])
def test_added_tokens_json(small, has_map):
    """Older versions wrote it; the ids, not the order, say which token is which."""
    folder = small("slow", "!")
    if not has_map:
        (folder / "special_tokens_map.json").unlink()
    tokens = {"<Cat>": 515, "<dog>": 514, EOS: 513, "new": 516}
    (folder / "added_tokens.json").write_text(json.dumps(tokens))
    texts = ["a <cat> b", "<Cat>x<dog>", "a<dog>!", f"{EOS.upper()} renewal", "NEW Dog"]
    ours, theirs = load_both(folder)
    assert 515 in ours.encode(texts[0]) and 514 in ours.encode(texts[1])
    assert [ours.encode(text) for text in texts] == as_diffusers(theirs, texts)


def test_special_tokens_without_names(small):
    """Of the config and of the map, under both names that transformers gives them."""
    folder = small("slow", "!")
    edit(folder / "tokenizer_config.json", extra_special_tokens=["<a>"], sep_token="<sep>")
    special = {"extra_special_tokens": ["<a>", "<B>"], "additional_special_tokens": ["<c>"]}
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "!", **special}))
    assert_equal_ids(folder, ["<a> <B> <c> <sep>", "<b>"])
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<p>"}))
    edit(folder / "tokenizer_config.json", additional_special_tokens=["<c>"])
    assert_equal_ids(folder, ["<a> <B> <c> <sep> <p>"])


def test_a_single_word_hides_shorter_tokens_in_it(small):
    folder = small("decoder", "!")
    tokens = [{"content": "x!", "single_word": True}]
    edit(folder / "tokenizer_config.json", added_tokens=tokens)
    assert_equal_ids(folder, ["x!", "x!a", "ax! !", "x!!"])


@pytest.mark.parametrize("layout", ["slow", "decoder", "json"])
def test_words_of_several_vectors(small, layout):
    """One word stands for all its tokens, wherever diffusers replaces it."""
    folder = small(layout, "!")
    words = ["<tok>", "<tok>_1", "<tok>_2", "<Dog>", "<Dog>_1", "one", "<gap>", "<gap>_2"]
    if layout == "slow":
        ids = {word: 514 + i for i, word in enumerate(words)}
        (folder / "added_tokens.json").write_text(json.dumps(ids))
    elif layout == "decoder":
        edit(folder / "tokenizer_config.json", [{"content": w, "normalized": True} for w in words])
    else:
        content = json.loads((folder / "tokenizer.json").read_text())
        flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "special"), False)
        content["added_tokens"] += [
            {"id": 514 + i, "content": word, "normalized": True, **flags}
            for i, word in enumerate(words)
        ]
        (folder / "tokenizer.json").write_text(json.dumps(content))
    texts = ["a <tok> b", "<tok>", "<TOK> x", "<tok>_1", "<tok>_2 <tok>", "x<tok>y <tok>"]
    texts += ["<Dog><dog>", "<dog>", "a <tok> and <Dog>", "one <gap>", "a cat", "<tok>_12"]
    ours, theirs = load_both(folder)
    assert ours.tokenize("<tok>")[1:-1] == [514, 515, 516]
    assert [ours.encode(text) for text in texts] == as_diffusers(theirs, texts)


def test_tokens_without_a_vector(small):
    """They are an error where a prompt has them, not a vector of another token."""
    folder = small("slow", "!")
    (folder / "added_tokens.json").write_text(json.dumps({"<a>": 514, "<b>": 515}))
    tokenizer = load(folder)
    tokenizer.limit_ids(515)
    assert tokenizer.tokenize("<a>") == [512, 514, 513]
    with pytest.raises(ValueError, match=r"the word '<b>' is a token of the model, but its text"):
        tokenizer.tokenize("a <B> c")
    tokenizer.add("<new>", [515])  # its vector is where that of <b> would be
    assert tokenizer.tokenize("<new>") == [512, 515, 513]
    with pytest.raises(ValueError, match="'<b>'"):
        tokenizer.tokenize("<b>")


def test_ids_with_a_gap(small):
    """They are those of transformers 5, which closes the gap, and a warning says so."""
    folder = small("slow", "!")
    (folder / "added_tokens.json").write_text(json.dumps({"<a>": 514, "<b>": 520}))
    with pytest.warns(UserWarning, match="say 520 for the token '<b>', which gets 515"):
        load(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_equal_ids(folder, ["<a> <b>"])


def edit(config_file: Path, added_tokens: list[dict] = (), **changes) -> None:
    """Change keys of a config (None removes one) and append to its added tokens."""
    config = json.loads(config_file.read_text()) | changes
    vocab = json.loads((config_file.parent / "vocab.json").read_text()) if added_tokens else {}
    for i, token in enumerate(added_tokens, start=len(vocab)):
        flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized", "special"), False)
        config["added_tokens_decoder"][str(i)] = flags | token
    config = {key: value for key, value in config.items() if value is not None}
    config_file.write_text(json.dumps(config))


def shrink(folder: Path, n_merges: int = 0) -> None:
    """Leave only bytes and some merges, so that loading takes a hundredth of the time."""
    tokens = [*list(vocabulary())[: 512 + n_merges], BOS, EOS]
    vocab = {token: i for i, token in enumerate(tokens)}
    if (folder / "tokenizer.json").exists():
        content = json.loads((folder / "tokenizer.json").read_text())
        content["model"] |= {"vocab": vocab, "merges": content["model"]["merges"][:n_merges]}
        (folder / "tokenizer.json").write_text(json.dumps(content))
    else:
        assert n_merges == 0
        (folder / "vocab.json").write_text(json.dumps(vocab))
        (folder / "merges.txt").write_text("#version: 0.2\n")


PADS = [None, "!", EOS, {"content": "!", "normalized": True}, "<pad>"]


@pytest.mark.parametrize("layout", ["slow", "decoder", "json"])
@pytest.mark.parametrize("in_config", PADS, ids=str)
@pytest.mark.parametrize("in_map", [*PADS[:3], "no file"], ids=str)
def test_precedence_of_the_pad_token(small, layout, in_config, in_map):
    folder = small(layout)
    if isinstance(in_config, dict):
        in_config = in_config | {"__type": "AddedToken"}
    edit(folder / "tokenizer_config.json", pad_token=in_config)
    special = folder / "special_tokens_map.json"
    special.write_text(json.dumps({} if in_map is None else {"pad_token": in_map}))
    if in_map == "no file":
        special.unlink()
    assert_equal_ids(folder, ["a! b", "", "<pad>a"])


@pytest.mark.parametrize("layout", ["slow", "json"])
def test_without_the_small_files(small, layout):
    folder = small(layout, "!")
    (folder / "tokenizer_config.json").unlink()
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    assert_equal_ids(folder, ["a! b", f"a{EOS}", EOS.upper()])
    assert load(folder).max_length == 77


def test_merges_written_as_strings(tmp_path):
    """Transformers 4 wrote tokenizer.json so."""
    write_tokenizer(tmp_path, "!", "json")
    shrink(tmp_path, n_merges=1000)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert_equal_ids(tmp_path, NASTY[:30])


def test_vocabulary_without_some_bytes(tmp_path):
    tokens = ["l", "o", "w", "l</w>", "o</w>", "w</w>", "lo", "low</w>", "ow</w>", BOS, EOS]
    (tmp_path / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\r\nl o\r\nlo w</w>\r\no w</w>\r\n")
    assert_equal_ids(tmp_path, ["low", "lower", "LOW lol ow xow", "日本", "!low"])


@pytest.mark.parametrize(
    ("written", "length"),
    [(10**30, 77), (None, 77), (64, 64), (77, 77), (1e30, 77), (float("inf"), 77)],
)
def test_max_length(small, written, length):
    folder = small("slow", "!")
    edit(folder / "tokenizer_config.json", model_max_length=written)
    tokenizer = load(folder)
    assert tokenizer.max_length == length == len(tokenizer.encode("a cat"))


def test_tokenize_does_not_pad(slow_pair):
    tokenizer, _ = slow_pair
    assert tokenizer.tokenize("a cat!") == [49406, 320, 2368, 0, 49407]
    assert tokenizer.pad([49406, 320, 49407]) == [49406, 320, 49407, *[0] * 74]


def test_cutting_warns_and_quotes_what_is_dropped(slow_pair):
    tokenizer, _ = slow_pair
    fits = " ".join(["cat"] * 75)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(tokenizer.tokenize(fits)) == 77
    with pytest.warns(UserWarning, match=r"more than 77 tokens; dropped: 'purple dog !'") as caught:
        ids = tokenizer.tokenize(f"{fits} Purple DOG!")
    assert caught[0].filename == __file__
    assert len(ids) == 77 and ids[-1] == 49407
    with pytest.warns(UserWarning) as caught:
        tokenizer.tokenize("dog " * 10_000)
    assert len(str(caught[0].message)) < 300


def test_lone_surrogates_count_as_question_marks(slow_pair):
    tokenizer, _ = slow_pair
    assert tokenizer.encode("a\ud800b \udfff") == tokenizer.encode("a?b ?")


def test_very_long_prompts(slow_pair):
    """Linear time: seconds, where quadratic time would be hours."""
    tokenizer, _ = slow_pair
    for text in ("a" * 200_000, "!" * 1_000_000, "cat " * 300_000):
        with pytest.warns(UserWarning):
            assert len(tokenizer.encode(text)) == 77


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("vocab.json", "{", "Expecting property name"),
        ("vocab.json", "[1]", "expected a JSON object, got list"),
        ("vocab.json", "{}", "the token '<|startoftext|>' is not in the vocabulary"),
        (
            "vocab.json",
            json.dumps({BOS: 0, EOS: 1}),
            "a merge needs 'i', which the vocabulary lacks",
        ),
        ("merges.txt", "#version: 0.2\ni n\nt h e\n", "a merge needs two tokens, got 't h e'"),
        ("merges.txt", b"\xff\xfe", "can't decode"),
        ("merges.txt", "", "No merge makes 48894 of the tokens"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"0": {}}}', "lacks 'content'"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}', "invalid literal"),
        ("tokenizer_config.json", "", "Expecting value"),
        ("special_tokens_map.json", "nonsense", "Expecting value"),
        ("added_tokens.json", "[]", "expected a JSON object, got list"),
        ("added_tokens.json", '{"<a>": -1}', "the id of '<a>' is -1"),
        ("added_tokens.json", '{"<a>": "1"}', "the id of '<a>' is '1'"),
    ],
)
def test_errors_name_the_file(slow, name, content, reason):
    (slow / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError) as caught:
        load(slow)
    assert str(caught.value).startswith(f"{slow / name}: ") and reason in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [("{}", "lacks 'model'"), ('{"model": {"vocab": {}}}', "lacks 'merges'"), ("x", "Expecting")],
)
def test_errors_name_tokenizer_json(tmp_path, content, reason):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=rf"tokenizer\.json: .*{reason}"):
        load(tmp_path)


def test_a_length_with_no_room(small):
    folder = small()
    edit(folder / "tokenizer_config.json", model_max_length=1)
    with pytest.raises(ValueError, match="max_length must be at least 2, got 1"):
        load(folder)


def test_tokens_given_directly():
    merges = [("a", "b</w>")]
    vocab = {token: i for i, token in enumerate(["a", "b</w>", "ab</w>", BOS, EOS])}
    tokenizer = Tokenizer(vocab, merges, added_tokens=[AddedToken("<x>")], max_length=6)
    assert tokenizer.encode("AB<x>") == [3, 2, 5, 4, 4, 4]
