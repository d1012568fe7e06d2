"""`options/`: the table fits the settings and recipes, and docs/options.md is made from it."""

import re
from dataclasses import fields

import pytest
from command_lines import PARSERS, collect_texts, list_options

from stable_diffusion.cli.arguments.option import BOTH
from stable_diffusion.cli.arguments.options import all_options
from stable_diffusion.cli.convert import convert_parser
from stable_diffusion.cli.job import Job
from stable_diffusion.cli.recipe.recipe import Recipe
from stable_diffusion.cli.settings import Request, Settings
from tools.options_page import PAGE, make_page

WITH_VALUES = [option for option in all_options() if option.has_value]


def field_names(kind: type) -> set[str]:
    """Return the names of the fields of a dataclass."""
    return {field.name for field in fields(kind)}


def test_the_page_is_up_to_date():
    """`python -m tools.options_page` writes it."""
    assert PAGE.read_text(encoding="utf-8") == make_page()


def test_names_are_unique():
    names = [name for option in all_options() for name in option.spellings]
    names += [
        name for o in all_options() if o.opposite is not None for name in o.opposite_spellings
    ]
    assert len(names) == len(set(names)) > 60
    assert len({option.key for option in all_options()}) == len([*all_options()])


def test_every_value_has_a_field():
    """The field is in the settings or in a request, unless the value gets another name there."""
    renamed = {"no_metadata"} | {  # `metadata`, `start` and `controls`
        *("image", "fit", "mask", "invert_mask", "mask_blur", "mask_crop", "outpaint"),
        *("control", "control_range", "control_canny"),
    }
    keys = {option.key for option in WITH_VALUES}
    assert keys - renamed <= field_names(Settings) | field_names(Request)
    others = {"requests", "start", "controls", "metadata", "file", "where", "model_name"}
    assert field_names(Settings) | field_names(Request) <= keys | others


def test_a_line_may_set_what_a_request_has():
    lines = {option.key for option in all_options() if option.line_scripts}
    assert lines - {"output"} == field_names(Request) - {"file", "where"}
    assert all(set(option.line_scripts) <= set(option.scripts) for option in all_options())


def test_a_job_has_what_a_request_has():
    assert field_names(Job) == field_names(Request) - {"n_images"} | {"index"}


def test_recipes_have_the_options_that_the_table_says():
    in_recipe = {option.key for option in all_options() if option.in_recipe}
    assert in_recipe == field_names(Recipe) - Recipe.NOT_OPTIONS


@pytest.mark.parametrize("option", WITH_VALUES, ids=lambda option: option.name)
def test_defaults_are_values_of_the_option(option):
    """The settings and requests have the same defaults."""
    is_text = option.kind == "value" and option.names_value is None
    if isinstance(option.default, str | float | int) and is_text:
        assert option.text_parser(str(option.default)) == option.default
    assert option.kind != "switch" or option.default in (False, None)
    assert option.kind != "list" or option.default == ()
    for kind in (Settings, Request):
        defaults = {field.name: field.default for field in fields(kind)}
        if option.scripts == BOTH and option.default is not None and option.key in defaults:
            assert defaults[option.key] == option.default


def test_messages_spell_options_as_the_help_does():
    known = set()
    for parser in (*(make() for make in PARSERS.values()), convert_parser()):
        known |= {
            next(name for name in action.option_strings if name.startswith("--"))
            for _, action in list_options(parser)
            if action.option_strings
        }
    sentences = "\n".join(line for line in collect_texts().splitlines() if " " in line)
    spelt = set(re.findall(r"(?<![\w-])--[a-z][\w-]*[a-z0-9](?![\w-])", sentences))
    assert spelt >= {"--from-image", "--n_rows", "--unet-bits"}
    others = {"--name", "--force-reinstall"}  # in a docstring; an option of pip
    assert spelt - known == others
