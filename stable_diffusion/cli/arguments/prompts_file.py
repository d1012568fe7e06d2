"""Prompts files: a prompt on each line, or JSON lines or a JSON array with options for each."""

import argparse
import csv
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from io import StringIO
from itertools import islice
from pathlib import PurePath
from typing import Any, NamedTuple

from ...utils.strict_json import parse_json
from ...utils.wording import abbreviate, did_you_mean
from ..settings import Request
from .option import Option
from .value_types import MAX_COUNT

STANDARD_INPUT = "-"
SEED_BYTES = 4
MAX_BYTES = 100_000_000  # of a file; a device may never end
MAX_PICTURES = MAX_COUNT  # of a file
MAX_EXACT = 2**53  # a larger float may not be the integer that was meant

HOW_TO_WRITE = (
    'write one prompt per line, or JSON lines, {"prompt": "…", "steps": 20} (with pandas: '
    "to_json(file, orient='records', lines=True))"
)
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
TABLE_SUFFIXES = {".csv": "CSV", ".tsv": "a table with tabs", ".yaml": "YAML", ".yml": "YAML"}
DELIMITERS = {",": "CSV", ";": "CSV", "\t": "a table with tabs"}
COLUMN_NAME = re.compile(r"[\w-][\w -]{0,30}")
YAML_PROMPT = re.compile(r"""(?:- +)?["']?prompts?["']? *:(?: .*|)""")
YAML_LINE = re.compile(r"""(?:- +)?["']?[\w-]+["']? *:(?: .*|)|- .*""")
JSON_ARRAY = re.compile(r'\[\s*(?:\{|".*\]\s*\Z)', re.DOTALL)  # hardly a prompt
COMMENTS = re.compile(r"\A(?:\s*#[^\r\n]*)*\s*")  # before the first line that counts
OPTION = re.compile(r"--[a-z][a-z_-]*[ =]", re.IGNORECASE)

Options = Mapping[str, Option]  # those that a line may set, by key


class Entry(NamedTuple):
    """What a file says about one request.

    Attributes:
        place: where in the file it is, as error messages say it.
        read: returns the values of a JSON object, not checked yet. Raises ValueError if the text is
            not valid JSON.
    """

    place: str
    read: Callable[[], Any]


class Line(NamedTuple):
    """A line that is neither blank nor a comment."""

    number: int
    text: str


def read_requests(file: str, common: Request, options: Options) -> list[Request]:
    """Return a request for each entry of a prompts file.

    Blank lines and lines that start with `#` are skipped. If the first other line starts with `{`,
    all lines are JSON objects with a `prompt` and options. The file may also be one JSON array of
    such objects or of prompts. A value that is null counts as left out. `output` is a name inside
    the output folder and becomes `Request.file`.

    An entry without a seed gets one. If `common` has a seed, the pictures of the file count up from
    it. Otherwise the seed is computed from the prompt, so that it stays the same if other lines of
    the file change.

    Args:
        file: the file, or `-` for the standard input.
        common: what is used if an entry does not say it.
        options: the options that an entry may set.

    Raises:
        ValueError: if the file or an entry of it is wrong.
        OSError: if the file cannot be read.
    """
    requests: list[Request] = []
    n_pictures = 0
    n_repeats: Counter[str] = Counter()
    for entry in _read_entries(file):
        where = f"{file}{entry.place}: "
        try:
            values = _parse_object(entry.read(), options)
        except ValueError as error:
            raise ValueError(f"{where}{error}") from None
        if "output" in values:
            values["file"] = values.pop("output")
        if "seed" not in values:
            prompt = values["prompt"]
            if common.seed is None:
                values["seed"] = _compute_seed(f"{n_repeats[prompt]} {prompt}")
            else:
                values["seed"] = common.seed + n_pictures
            n_repeats[prompt] += 1
        request = replace(common, **values, where=where)
        n_pictures += request.n_images
        if n_pictures > MAX_PICTURES:
            raise ValueError(f"{where}more than {MAX_PICTURES} pictures are asked for: split it")
        requests.append(request)
    return requests


def _read_entries(file: str) -> list[Entry]:
    """Return the entries of a file.

    Raises:
        ValueError: if the file has no prompt, or is of a kind that is not read.
        OSError: if the file cannot be read.
    """
    text = _read_text(file)
    lines = _find_lines(text)
    if not lines:
        raise ValueError(f"{file}: there is no prompt in it")
    first = lines[0].text
    text = COMMENTS.sub("", text)
    entries = None
    if first.startswith("["):
        entries = _read_array(file, text)
    elif first.startswith("{") and len(lines) > 1:
        entries = _read_single_object(file, first, text)
    if entries is not None:
        return entries
    if first.startswith("{"):
        return [Entry(f", line {line.number}", partial(_parse_json, line.text)) for line in lines]
    _refuse_other_kinds(file, text, lines)
    return [_make_entry(f", line {line.number}", line.text) for line in lines]


def _make_entry(place: str, value: Any) -> Entry:
    """Return an entry for a value that is parsed already: a prompt, or what JSON says."""
    values = {"prompt": value} if isinstance(value, str) else value
    return Entry(place, lambda: values)


def _read_array(file: str, text: str) -> list[Entry] | None:
    """Return the entries of a JSON array; None if the text is prompts that begin with `[`.

    Raises:
        ValueError: if the array is empty or not valid JSON.
    """
    try:
        found = _parse_json(text)
    except ValueError as error:
        if JSON_ARRAY.match(text):
            raise ValueError(f"{file}: {error}") from None
        return None
    if not found:
        raise ValueError(f"{file}: there is no prompt in it")
    if not any(isinstance(entry, str | dict) for entry in found):
        return None  # such as [1]
    return [
        _make_entry(f", entry {i}", value) for i, value in enumerate(found[: MAX_PICTURES + 1], 1)
    ]


def _read_single_object(file: str, first_line: str, text: str) -> list[Entry] | None:
    """Return the entry of a file that is one JSON object; None if it is JSON lines.

    Raises:
        ValueError: if there are several objects of several lines each.
    """
    try:
        json.loads(first_line)
        return None
    except (ValueError, RecursionError):
        pass
    try:
        return [_make_entry("", _parse_json(text))]
    except ValueError:
        pass
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None  # the first line is not valid JSON
    if end <= len(first_line):
        return None  # something follows the object on the first line
    raise ValueError(
        f"{file}: JSON objects on several lines are not read: put each on one line, or all of "
        "them, with commas between, into an array, […]"
    )


def _refuse_other_kinds(file: str, text: str, lines: list[Line]) -> None:
    """Raise ValueError if a file is not a list of prompts but a table or something similar."""
    suffix = PurePath(file).suffix.lower()
    kind = TABLE_SUFFIXES.get(suffix) or _detect_table(text, lines)
    if kind is not None:
        rename = ""
        if suffix in TABLE_SUFFIXES:
            rename = f" (a file with one prompt per line must not be named {suffix})"
        raise ValueError(f"{file} is {kind}, which is not read: {HOW_TO_WRITE}{rename}")
    if suffix in JSON_SUFFIXES:
        raise ValueError(
            f"{file} is named like JSON, but is not a list of prompts in JSON: {HOW_TO_WRITE}"
        )
    if OPTION.match(lines[0].text):
        raise ValueError(
            f"{file}, line {lines[0].number}: options are not read here: {HOW_TO_WRITE}"
        )


def _detect_table(text: str, lines: list[Line]) -> str | None:
    """Return the kind of table of prompts that the lines look like; None if they are prompts."""
    first = lines[0].text
    for delimiter, kind in DELIMITERS.items():
        columns = [name.strip().strip("\"'").lower() for name in first.split(delimiter)]
        is_header = "prompt" in columns and all(map(COLUMN_NAME.fullmatch, columns))
        if is_header and len(columns) > 1 and _has_columns(text, delimiter, len(columns)):
            return kind
    if first == "---" or YAML_PROMPT.fullmatch(first):
        return "YAML"
    has_prompt = any(YAML_PROMPT.fullmatch(line.text) for line in lines)
    is_yaml = has_prompt and all(YAML_LINE.fullmatch(line.text) for line in lines)
    return "YAML" if is_yaml else None


def _has_columns(text: str, delimiter: str, n: int) -> bool:
    """Return whether a text is a table of at least two rows with n columns each."""
    try:
        rows = [row for row in csv.reader(StringIO(text.strip()), delimiter=delimiter) if row]
    except csv.Error:
        return False
    return len(rows) > 1 and all(len(row) == n for row in rows)


def _read_text(file: str) -> str:
    """Return the text of a file or of the standard input."""
    if file == STANDARD_INPUT:
        raw = sys.stdin.buffer.read(MAX_BYTES + 1)
    else:
        with open(file, "rb") as opened:
            raw = opened.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise ValueError(f"{file}: is longer than {MAX_BYTES // 10**6} MB")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: is not UTF-8 text (byte {error.start})") from None


def _find_lines(text: str) -> list[Line]:
    """Return the lines that are neither blank nor comments; at most one more than is allowed."""
    # `StringIO` splits at \r\n, \r and \n; `str.splitlines` would split at other characters, too.
    numbered = enumerate((line.strip() for line in StringIO(text, newline=None)), start=1)
    lines = (Line(n, line) for n, line in numbered if line and not line.startswith("#"))
    return list(islice(lines, MAX_PICTURES + 1))


def _parse_json(text: str) -> Any:
    """Return what a JSON text says, with NaN as null.

    Raises:
        ValueError: if the text is not valid JSON.
    """
    try:
        return parse_json(text, nan_is_null=True)
    except ValueError as error:
        raise ValueError(f"is not usable JSON ({error})") from None


def _compute_seed(text: str) -> int:
    """Return a seed that is always the same for the same text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:SEED_BYTES])


def _parse_object(found: Any, options: Options) -> dict[str, Any]:
    """Return the values of a JSON object by the keys of the options, without those that are null.

    Raises:
        ValueError: if it is not an object with a prompt and valid options.
    """
    if not isinstance(found, dict):
        raise ValueError("is not a JSON object, {…}")
    values = {name.replace("-", "_"): value for name, value in found.items()}
    if len(values) < len(found):
        raise ValueError("an option is given twice, in two spellings")
    for key in values:
        if key not in options:
            known = ", ".join(options)
            raise ValueError(f"{key!r} is not one of {known}{did_you_mean(key, options)}")
    values = {key: value for key, value in values.items() if value is not None}
    if "prompt" not in values:
        raise ValueError('there is no "prompt"')
    return {key: _parse_value(options[key], value) for key, value in values.items()}


def _parse_value(option: Option, value: Any) -> Any:
    """Return the value of an option after the checks that the command line makes.

    Raises:
        ValueError: if the value is wrong.
    """
    key = option.key
    if option.kind == "switch":
        if not isinstance(value, bool):
            raise ValueError(f"{key} must be true or false, got {_format_json(value)}")
        return value
    if option.kind == "numbers" and isinstance(value, list):
        value = ",".join(str(_restore_integer(each)) for each in value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{key} must be text or a number, got {_format_json(value)}")
    value = _restore_integer(value)
    try:
        parsed = option.text_parser(str(value))
        str(parsed).encode()
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"{key}: {error}") from None
    except UnicodeEncodeError:
        raise ValueError(f"{key} has half of a character in it") from None
    if option.kind != "numbers" and isinstance(value, str) is not isinstance(parsed, str):
        wanted = "text" if isinstance(parsed, str) else "a number"
        raise ValueError(f"{key} must be {wanted}, got {_format_json(value)}")
    return parsed


def _restore_integer(value: Any) -> Any:
    """Return 3 for 3.0, which tables write in a column that has gaps, and other values as is."""
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) <= MAX_EXACT
    return int(value) if is_whole else value


def _format_json(value: Any) -> str:
    """Return a value as it may stand in the file, abbreviated for a message."""
    return abbreviate(json.dumps(value))
