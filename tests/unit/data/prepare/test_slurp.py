"""SLURP: every recording of every prompt, in both forms of the tables."""

import json

import pytest

from summarymixing.data.manifest import Manifest
from summarymixing.data.prepare.slurp import CORPUS
from summarymixing.errors import UserError
from summarymixing.miniature import build_slurp

LABELS = ("speaker", "scenario", "action", "intent", "transcript")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build_slurp(tmp_path_factory.mktemp("slurp") / "c", hours=0.01)


@pytest.fixture
def prepare(corpus, tmp_path):
    return lambda source="": CORPUS.plan(corpus / source, tmp_path / "m").run()


def read_rows(tmp_path, split="train"):
    return list(Manifest.read(tmp_path / "m" / f"{split}.csv", LABELS))


def read_prompts(corpus, split="train"):
    lines = (corpus / f"{split}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def read_speakers(corpus):
    entries = json.loads((corpus / "metadata.json").read_text()).values()
    return {
        name: about["usrid"]
        for entry in entries
        for name, about in entry["recordings"].items()
    }


def write_prompts(corpus, prompts, split="train"):
    lines = [json.dumps(prompt) + "\n" for prompt in prompts]
    (corpus / f"{split}.jsonl").write_text("".join(lines))


def test_each_recording_has_the_labels_of_its_prompt(corpus, prepare, tmp_path):
    account = prepare()
    assert not account.problems
    speakers = read_speakers(corpus)
    for split in ("train", "devel", "test"):
        rows = {row.id: row for row in read_rows(tmp_path, split)}
        prompts = read_prompts(corpus, split)
        assert len(rows) == 2 * len(prompts)  # headset and distant
        for prompt in prompts:
            for name in (about["file"] for about in prompt["recordings"]):
                row = rows[name.removesuffix(".flac")]
                assert row.path == str(corpus / "slurp_real" / name)
                assert row.labels == {
                    "speaker": speakers[name],
                    "scenario": prompt["scenario"],
                    "action": prompt["action"],
                    "intent": f"{prompt['scenario']}_{prompt['action']}",
                    "transcript": prompt["sentence"],
                }


@pytest.mark.parametrize("with_metadata", [False, True])
def test_the_public_repository_gives_the_same_rows(
    corpus, prepare, tmp_path, with_metadata
):
    prepare()
    before = {row.id: row.labels for row in read_rows(tmp_path)}
    (corpus / "dataset" / "slurp").mkdir(parents=True)
    (corpus / "audio").mkdir()
    (corpus / "slurp_real").rename(corpus / "audio" / "slurp_real")
    for table in corpus.glob("*.json*"):
        table.rename(corpus / "dataset" / "slurp" / table.name)
    if not with_metadata:
        (corpus / "dataset" / "slurp" / "metadata.json").unlink()
    assert not prepare().problems
    after = {row.id: row.labels for row in read_rows(tmp_path)}
    if not with_metadata:
        assert {labels["speaker"] for labels in after.values()} == {"unknown"}
        before = {k: {**v, "speaker": "unknown"} for k, v in before.items()}
    assert after == before


def test_quotes_in_a_sentence_are_text(corpus, prepare, tmp_path):
    prompts = read_prompts(corpus)
    prompts[0]["sentence"] = """what's "scenario": 'qa', {then}  """
    write_prompts(corpus, prompts)
    prepare()
    labels = read_rows(tmp_path)[0].labels
    assert labels["transcript"] == """what's "scenario": 'qa', {then}"""
    assert labels["scenario"] == prompts[0]["scenario"]


def test_damaged_recordings_are_listed(corpus, prepare, tmp_path, damage):
    prompts = read_prompts(corpus)
    name = prompts[0]["recordings"][0]["file"]
    reason = damage(corpus / "slurp_real" / name)
    assert prepare().problems == {reason: [f"slurp_real/{name}"]}
    assert len(read_rows(tmp_path)) == 2 * len(prompts) - 1


PROMPT = {
    "scenario": "qa",
    "action": "define",
    "sentence": "what is it",
    "recordings": {"audio-9.flac": {}},
}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "malformed line"),
        ("[]", "malformed line"),
        ("\udcff", "line is not UTF-8 text"),
        (PROMPT | {"recordings": None}, "malformed line"),
        (PROMPT | {"recordings": [{"name": "a.flac"}]}, "malformed line"),
        (PROMPT | {"recordings": {"a.flac": 1}}, "malformed line"),
        (PROMPT | {"recordings": []}, "prompt without recordings"),
        (PROMPT | {"scenario": ""}, "no scenario"),
        (PROMPT | {"action": None}, "no action"),
        (PROMPT | {"sentence": " "}, "no transcript"),
    ],
)
def test_bad_lines_are_listed(corpus, prepare, tmp_path, line, reason):
    num_prompts = len(read_prompts(corpus))
    text = line if isinstance(line, str) else json.dumps(line)
    with open(corpus / "train.jsonl", "ab") as file:
        file.write(text.encode("utf-8", "surrogateescape") + b"\n")
    assert prepare().problems == {reason: [f"train.jsonl:{num_prompts + 1}"]}
    assert len(read_rows(tmp_path)) == 2 * num_prompts


def test_a_recording_counts_once(corpus, prepare, tmp_path):
    prompts = read_prompts(corpus)
    name = prompts[0]["recordings"][0]["file"]
    twice = prompts[0] | {"recordings": [{"file": name}, {"file": name}]}
    write_prompts(corpus, [twice, *prompts[1:], prompts[3]])
    place = f"train.jsonl:{len(prompts) + 1}"
    assert prepare().problems == {
        "listed twice (the first counts)": ["train.jsonl:1", place, place]
    }
    assert len(read_rows(tmp_path)) == 2 * len(prompts) - 1


@pytest.mark.parametrize("text", ["{", "[]", '{"1": {}}', '{"1": null}'])
def test_bad_metadata_costs_the_speakers_only(corpus, prepare, tmp_path, text):
    (corpus / "metadata.json").write_text(text)
    account = prepare()
    assert account.problems == {
        "unreadable: speakers are unknown": ["metadata.json"]
    }
    assert len(read_rows(tmp_path)) == 2 * len(read_prompts(corpus))


def test_an_empty_split_leaves_no_manifest(corpus, prepare, tmp_path):
    (corpus / "devel.jsonl").write_text("\n")
    with pytest.raises(UserError, match="Nothing usable in devel"):
        prepare()
    assert not list((tmp_path / "m").glob("*.csv"))


def test_the_wrong_folder_is_explained(prepare):
    with pytest.raises(UserError, match="Give the folder that holds slurp_re"):
        prepare("slurp_real")


def test_the_corpus_is_found_below_source(corpus, prepare):
    assert prepare("..").source == str(corpus)


def test_a_corpus_without_audio_is_explained(corpus, prepare):
    (corpus / "slurp_real").rename(corpus / "elsewhere")
    with pytest.raises(UserError, match="has no slurp_real"):
        prepare()
