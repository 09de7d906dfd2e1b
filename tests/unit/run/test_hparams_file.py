"""Recipe files: inheritance, overrides, and errors before anything is built."""

import re
from collections import Counter, OrderedDict
from functools import partial
from pathlib import Path

import pytest
import ruamel.yaml

from summarymixing.errors import UserError
from summarymixing.run import hparams_file
from summarymixing.run.hparams_file import HparamsFile, load_hparams

ENCODER = """
width: 8   # of a layer
hidden: !ref <width> * 4
mixer: {}   # filled by the including file
layer: !new:collections.Counter
    hidden: !ref <hidden>
"""
SHARED = """
seed: 1   # of everything
manifests: !PLACEHOLDER   # folder of manifests
precision: fp32
rate: 5.0e-4
sizes: [1, 2]
mixer: !name:collections.Counter   # one for each layer
    heads: 8
encoder: !include:parts/encoder.yaml
    width: !ref <seed> * 10
    mixer: !ref <mixer>
second: !include:parts/encoder.yaml
first_layer: !ref <encoder[layer]>
"""
RECIPE = """
base: shared.yaml
seed: 2
second:
    width: 3
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "encoder.yaml").write_text(ENCODER)
    (tmp_path / "shared.yaml").write_text(SHARED)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path / "recipe.yaml"


def load(recipe: Path, **overrides):
    return load_hparams(recipe, {"manifests": "/m", **overrides})


def error_of(recipe: Path, overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_hparams(recipe, f"manifests: /m\n{overrides}")
    return str(caught.value)


def test_child_overrides_base_and_command_line_overrides_both(recipe):
    assert load(recipe)["seed"] == 2
    assert load(recipe)["encoder"]["width"] == 20
    assert load(recipe, seed=3)["encoder"]["width"] == 30


def test_references_of_an_included_file_stay_inside_it(recipe):
    hparams = load(recipe)
    assert hparams["encoder"]["layer"] == Counter(hidden=80)
    assert hparams["second"]["layer"] == Counter(hidden=12)
    assert hparams["first_layer"] is hparams["encoder"]["layer"]


def test_mapping_reaches_into_an_included_file(recipe):
    hparams = load_hparams(recipe, "manifests: /m\nsecond: {width: 5}")
    assert hparams["second"]["hidden"] == 20


def test_tagged_value_replaces_tag_and_arguments(recipe):
    value = "!name:collections.OrderedDict {modes: 1}"
    hparams = load_hparams(recipe, f"manifests: /m\nmixer: {value}")
    assert isinstance(hparams["mixer"], partial)
    assert hparams["mixer"].func is OrderedDict
    assert hparams["mixer"].keywords == {"modes": 1}
    assert hparams["encoder"]["mixer"] == hparams["mixer"]


def test_tags_in_the_child_file_work(recipe):
    recipe.write_text(f"{RECIPE}mixer: !name:collections.OrderedDict\n")
    assert load(recipe)["encoder"]["mixer"] is OrderedDict


def test_base_may_have_a_base_in_another_folder(recipe):
    leaf = recipe.parent / "deep" / "leaf.yaml"
    leaf.parent.mkdir()
    leaf.write_text("base: ../recipe.yaml\nprecision: bf16\n")
    hparams = load(leaf)
    assert (hparams["precision"], hparams["seed"]) == ("bf16", 2)
    assert "base" not in hparams


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-1e-3", -1e-3),
        ("True", True),
        ("[3, 4]", [3, 4]),
        ("", None),
        ("a=b=c", "a=b=c"),
        ("a: b # c", "a: b # c"),
        ("@x", "@x"),
        ("'7'", "7"),
        ("(3, 4)", (3, 4)),
    ],
)
def test_typed_values_mean_what_users_expect(recipe, text, value):
    typed = hparams_file.read_value(text, "--precision")
    result = load(recipe, precision=typed)["precision"]
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"rate": "fast"}, "'rate' is a number, such as 0.0005"),
        ({"sizes": "12"}, "'sizes' is a list, such as [1, 2]"),
    ],
)
def test_a_text_is_no_number_and_no_list(recipe, overrides, message):
    with pytest.raises(UserError, match=re.escape(message)):
        load(recipe, **overrides)
    assert load(recipe, rate="all")["rate"] == "all"
    assert load(recipe, rate=None)["rate"] is None


def test_malformed_list_is_not_taken_for_text():
    with pytest.raises(UserError, match="--sizes"):
        hparams_file.read_value("[3", "--sizes")


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        ("sed: 3", ("'sed'", "'seed'")),
        ("second: {wide: 3}", ("'second.wide'", "'width'")),
        ("encoder: {layer: {hiddn: 3}}", ("'encoder.layer.hiddn'", "'hidden'")),
    ],
)
def test_misspelt_override_names_the_nearest_key(recipe, overrides, names):
    message = error_of(recipe, overrides)
    for name in (str(recipe), *names):
        assert name in message


def test_misspelt_key_of_a_child_names_file_and_line(recipe):
    recipe.write_text("base: shared.yaml\nseed: 2\nprecison: bf16\n")
    message = error_of(recipe, "")
    assert f"{recipe}, line 3" in message
    assert "'precision'" in message


def test_misspelt_key_beside_an_include_names_file_and_line(recipe):
    shared = recipe.with_name("shared.yaml")
    shared.write_text(SHARED.replace("    width: !ref", "    wide: !ref"))
    message = error_of(recipe, "")
    assert f"{shared}, line 10" in message
    assert "'width'" in message


@pytest.mark.parametrize("overrides", ["encoder: 3", "seed: {a: 1}"])
def test_mapping_and_value_cannot_replace_each_other(recipe, overrides):
    assert "cannot replace" in error_of(recipe, overrides)


def test_missing_value_is_named_with_its_comment(recipe):
    with pytest.raises(UserError, match=r"--manifests=\.\.\. \(folder of man"):
        load_hparams(recipe)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("!new:datetime.date {year: 0, month: 1, day: 1}", "out of range"),
        ("!new:datetime.date {years: 2000}", "datetime.date"),
        ("!new:nowhere.Missing", "nowhere.Missing"),
        ("!ref <nothing>", "nothing"),
        ("!ref <rate>", "back to themselves"),
    ],
)
def test_what_cannot_be_built_names_file_and_reason(recipe, value, reason):
    message = error_of(recipe, f"rate: {value}")
    assert str(recipe) in message
    assert reason in message
    assert "key 'rate'" in message or "!ref" in value


def test_failing_constructor_leaves_no_trace_in_the_yaml_library(recipe):
    construct = ruamel.yaml.constructor.BaseConstructor.construct_object
    error_of(recipe, "rate: !new:nowhere.Missing")
    assert construct.__defaults__ == (False,)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("shared.yaml", "base: recipe.yaml\n"),
        ("parts/encoder.yaml", "inner: !include:../recipe.yaml\n"),
    ],
)
def test_files_in_a_circle_are_refused(recipe, file, text):
    (recipe.parent / file).write_text(text)
    assert "include each other" in error_of(recipe, "")


@pytest.mark.parametrize(
    "text", ["base: missing.yaml\n", "encoder: !include:missing.yaml\n"]
)
def test_missing_base_or_include_is_named_with_its_reader(recipe, text):
    recipe.write_text(text)
    message = error_of(recipe, "")
    assert str(recipe) in message
    assert "missing.yaml" in message


@pytest.mark.parametrize("text", ["seed: 1\nseed: 2\n", "seed: [1\n", "- 1\n"])
def test_malformed_file_is_named(recipe, text):
    recipe.write_text(text)
    assert str(recipe) in error_of(recipe, "")


def test_missing_recipe_lists_those_beside_it(recipe):
    with pytest.raises(UserError, match=r"shared\.yaml"):
        load_hparams(recipe.with_name("recipes.yaml"))


def test_recipe_is_found_in_the_folder_of_recipes(recipe, monkeypatch):
    monkeypatch.setattr(hparams_file, "HPARAMS_FOLDER", recipe.parent)
    assert load(Path("recipe.yaml"))["seed"] == 2


def test_text_repeats_the_recipe_and_still_follows_overrides(recipe):
    joined = HparamsFile.read(recipe)
    joined.override({"manifests": "/m", "rate": 2})
    copy = recipe.parent.parent / "hyperparams.yaml"
    copy.write_text(joined.as_text())
    assert str(load_hparams(copy)) == str(load(recipe, rate=2))
    assert load_hparams(copy, {"seed": 7})["encoder"]["hidden"] == 280


def test_description_shows_values_and_comments(recipe):
    shown = HparamsFile.read(recipe).describe()
    assert "--seed=2 " in shown
    assert "of everything" in shown
    assert "--manifests=(required)" in shown
    assert "--mixer=!name:collections.Counter" in shown
