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

SHARED = """
seed: 1   # of everything
manifests: !PLACEHOLDER   # folder of manifests
precision: fp32
rate: 5.0e-4
sizes: [1, 2]
mixer: !name:collections.Counter   # one for each layer
    heads: 8
encoder:
    width: !ref <seed> * 10
    hidden: !ref <encoder[width]> * 4
    mixer: !ref <mixer>
    layer: !new:collections.Counter
        hidden: !ref <encoder[hidden]>
second:
    width: 8   # of a layer
"""
RECIPE = """
base: shared.yaml
seed: 2
second:
    width: 3
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
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


def test_mapping_reaches_into_a_mapping(recipe):
    hparams = load_hparams(recipe, "manifests: /m\nencoder: {width: 5}")
    assert hparams["encoder"]["layer"] == Counter(hidden=20)


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
        ({"rate": "fast"}, "'rate' must be a number (it is 0.0005)"),
        ({"sizes": "12"}, "'sizes' must be a list (it is [1, 2])"),
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


def test_files_in_a_circle_are_refused(recipe):
    recipe.with_name("shared.yaml").write_text("base: recipe.yaml\n")
    assert "each other's base" in error_of(recipe, "")


def test_include_is_refused_with_the_way_out(recipe):
    recipe.write_text("encoder: !include:shared.yaml\n")
    assert "Begin the file with 'base: " in error_of(recipe, "")


def test_missing_base_is_named_with_its_reader(recipe):
    recipe.write_text("base: missing.yaml\n")
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


def test_description_says_which_file_gives_a_value(recipe):
    shared, own = HparamsFile.read(recipe).describe().split(f"{recipe}:\n")
    assert shared.startswith(f"{recipe.with_name('shared.yaml')}:\n")
    assert "--manifests=(required)" in shared
    assert "--mixer=!name:collections.Counter" in shared
    assert "--seed=" not in shared
    assert "--seed=2 " in own
    assert "of everything" in own


def test_objects_and_internal_keys_are_no_options(recipe):
    recipe.write_text("seed: 1\n__set_seed: !apply:print\nmodel: !new:set\n")
    assert HparamsFile.read(recipe).describe().splitlines()[1:] == [
        "  --seed=1",
        "  objects: model",
    ]


def test_changes_are_told_by_name_with_both_values(recipe):
    now = HparamsFile.read(recipe)
    earlier = now.as_text()
    assert now.changes_since(earlier) == []
    now.override("rate: 2.0\nsecond: {width: 4}\nmixer: !name:set")
    assert now.changes_since(f"{earlier}gone: 1\n") == [
        "rate: 0.0005 -> 2.0",
        "mixer: !name:collections.Counter -> !name:set",
        "mixer.heads: 8 -> absent",
        "second.width: 3 -> 4",
        "gone: 1 -> absent",
    ]
