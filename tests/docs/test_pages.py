"""The pages are right: links resolve, commands parse, code runs, quoted messages exist."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from command_lines import PARSERS, collect_texts, write_named_files
from ours import ROOT
from pages import (
    PAGES,
    find_anchors,
    find_commands,
    find_definitions,
    find_links,
    find_quotes,
    name_page,
    read_blocks,
    read_prose,
)

from stable_diffusion.cli.arguments import control_pictures
from stable_diffusion.cli.arguments.parse import parse
from stable_diffusion.cli.convert import convert_parser
from stable_diffusion.config.known_models import FEW_STEP_MODELS, MODELS

PRINTING = {
    "--list-models",
    "--list-controls",
    "--version",
    "--help",
}  # options that print something and end
OUTPUTS = ("--output", "--grid", "--out", "--work")
TROUBLESHOOTING = ROOT / "docs/troubleshooting.md"
# The pages whose options are those of this program, with a few exceptions.
OWN_OPTIONS = [page for page in PAGES if page.name != "compared.md"]
# The pages with code; test_library.py runs that of docs/library.md.
CODE = [page for page in PAGES if read_blocks(page, "python") and page.name != "library.md"]
OTHER_OPTIONS = {  # the exceptions
    *("--hosts", "--python", "--over", "--output-hostfile", "--hostfile"),  # mlx.launch
    *(
        "--quick",
        "--only",
        "--peers",
        "--rounds",
        "--out",
        "--work",
        "--minutes",
        "--fresh",
    ),  # benchmarks and tools
    *("--sanitizer",),  # tests
}

DEVELOPER_PROGRAM = re.compile(  # module or file, and arguments
    r"python (?:-m (tools\.\w+)|((?:benchmarks|tests|tools)/[\w/]+\.py))([^\n`|#]*)"
)

every_page = pytest.mark.parametrize("page", PAGES, ids=name_page)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty folder the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_pages():
    assert len(PAGES) >= 18
    assert len((ROOT / "README.md").read_text().splitlines()) <= 220


@every_page
def test_links_resolve(page):
    broken = []
    for _, link in find_links(page):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or not target.is_relative_to(ROOT):
            broken.append(f"{link}: there is no such file")
        elif anchor and anchor not in find_anchors(target):
            broken.append(f"{link}: {name_page(target)} has no such heading")
    assert not broken, "\n".join(broken)


def test_every_page_is_linked_from_the_readme():
    links = {link.partition("#")[0] for _, link in find_links(ROOT / "README.md")}
    assert {name_page(page) for page in PAGES} - {"README.md"} <= links


@every_page
def test_functions_that_links_name_exist(page):
    """A link like [`name`](file.py) names something that the file defines."""
    missing = []
    for text, link in find_links(page):
        if link.endswith(".py") and (named := re.fullmatch(r"`([\w.]+)`", text)):
            name = named[1]
            file = page.parent / link
            if not name.endswith(".py") and name not in find_definitions(file):
                missing.append(f"{link} does not define {name}")
    assert not missing, "\n".join(missing)


@every_page
def test_commands_parse(page, folder, monkeypatch):
    """Every command can be parsed if the files that it names exist; nothing is run."""
    monkeypatch.setattr(control_pictures, "require_edges", lambda: None)  # optional
    wrong = []
    for program, arguments in find_commands(page):
        write_named_files(folder, arguments)
        try:
            if program == "convert":
                convert_parser().parse_args(arguments)
            else:
                parse(PARSERS[program](), arguments)
        except SystemExit as end:
            if end.code != 0 or not PRINTING & {*arguments}:
                wrong.append(f"{program} {' '.join(arguments)}")
    assert not wrong, "\n".join(wrong)


@every_page
def test_programs_for_developers_exist(page):
    """Commands for benchmarks, tools and tests name files and options that there are."""
    wrong = []
    for module, script, arguments in DEVELOPER_PROGRAM.findall(page.read_text()):
        name = script or module.replace(".", "/") + ".py"
        text = (ROOT / name).read_text() if (ROOT / name).exists() else ""
        options = re.findall(r"--[a-z][\w-]*", arguments)
        if not text or not all(f'"{option}"' in text for option in options):
            wrong.append(f"{name}{arguments}")
    assert not wrong, "\n".join(wrong)


def test_there_are_commands_on_the_pages():
    n_commands = {name_page(page): len([*find_commands(page)]) for page in PAGES}
    assert n_commands["README.md"] >= 3
    assert sum(n_commands.values()) >= 40


@every_page
def test_nothing_writes_over_files_of_the_repository(page):
    """No command and no code on a page writes to a file or folder that the repository has."""
    outputs = [word for block in read_blocks(page, "shell") for word in find_outputs(block)]
    for block in read_blocks(page, "python"):
        outputs += re.findall(r"save\w*\(\s*\"([^\"]+)\"", block)
    ours = {path.name for path in ROOT.iterdir() if path.suffix in (".py", ".md", ".toml", ".in")}
    ours |= {"LICENSE", "requirements.txt", ".ci", "benchmarks", "docs", "images"}
    ours |= {"stable_diffusion", "tests", "tools"}
    assert not [output for output in outputs if Path(output).parts[0] in ours]


def find_outputs(block: str) -> list[str]:
    """Return the files and folders that the commands of a shell block write."""
    outputs = []
    for option in OUTPUTS:
        outputs += re.findall(rf"{option}[ =]\"?([^\s\"]+)", block)
    outputs += re.findall(r">\s*([\w./-]+)", block)
    outputs += re.findall(r"stable_diffusion\.convert \S+ (\S+)", block)
    return outputs


@pytest.mark.parametrize("page", CODE, ids=name_page)
def test_code_runs(page, folder, monkeypatch):
    """Code that needs no download runs, in a few steps; other code compiles."""
    monkeypatch.setitem(MODELS, "tiny", replace(MODELS["tiny"], steps=3))
    for code in read_blocks(page, "python"):
        program = compile(code, name_page(page), "exec")
        if 'StableDiffusion("tiny")' in code:
            exec(program, {})
            assert [*folder.glob("*.png")]


@pytest.mark.parametrize("quote", find_quotes(TROUBLESHOOTING))
def test_quotes_are_our_messages(quote):
    """Every part between the dots of a quoted message is in the source."""
    known = collect_texts()
    parts = [part.strip() for part in quote.split("…")]
    assert max(map(len, parts)) >= 15, "too little of this quote is fixed text"
    missing = [part for part in parts if part not in known]
    assert not missing, f"not in the source: {missing}, from the quote: {quote}"


def test_there_are_quotes():
    assert len(find_quotes(TROUBLESHOOTING)) >= 30


@pytest.mark.parametrize("page", OWN_OPTIONS, ids=name_page)
def test_options_that_pages_name_exist(page):
    parsers = [*(make() for make in PARSERS.values()), convert_parser()]
    known = {name for parser in parsers for name in parser._option_string_actions}
    spans = re.findall(r"`([^`]+)`", read_prose(page))
    named = {word for span in spans for word in re.findall(r"(?<![\w-])--[a-z][\w-]*", span)}
    assert named <= known | OTHER_OPTIONS, named - known - OTHER_OPTIONS


def test_the_readme_lists_the_models():
    text = (ROOT / "README.md").read_text()
    for name, spec in MODELS.items():
        (row,) = re.findall(rf"^\| `{name}`.*$", text, re.MULTILINE)
        guidance = "none" if spec.guidance <= 1 else str(spec.guidance)
        cells = [str(spec.size), str(spec.steps), guidance]
        assert [cell.strip() for cell in row.split("|")][3:6] == cells
        assert spec.licence in row and (spec.repo or "none") in row


def test_the_readme_lists_the_few_step_models():
    text = (ROOT / "README.md").read_text()
    for name, model in FEW_STEP_MODELS.items():
        (row,) = re.findall(rf"^\| `{name}`.*$", text, re.MULTILINE)
        cells = [cell.strip() for cell in row.split("|")][3:6]
        assert cells == [model.join_steps(), str(model.settings), model.licence]
        assert f"`{model.base}` with a LoRA of `{model.repo}`" in row


def test_the_tree_on_the_page_is_the_tree():
    """The page on the architecture lists every file and folder at the top of the package."""
    page, package = ROOT / "docs/architecture.md", ROOT / "stable_diffusion"
    block = next(block for block in read_blocks(page, "") if "\nstable_diffusion/\n" in block)
    start = block.index("stable_diffusion/\n")
    names: set[str] = set()
    for line in block[start:].splitlines()[1:]:
        if line.startswith(" "):
            names.update(re.findall(r"\w+(?:\.py|/)", re.split(r" {3,}", line.strip())[0]))
    folders = [path for path in (*package.iterdir(), *(package / "cli").iterdir()) if path.is_dir()]
    found = {f"{path.name}/" for path in folders if path.name != "__pycache__"}
    found |= {path.name for path in package.glob("*.py") if path.name != "__init__.py"}
    assert names == found
