"""Commands, what is done, and what belongs to another command."""

import json
from pathlib import Path

import pytest

from summarymixing.errors import UserError
from summarymixing.run.hparams_file import HparamsFile
from summarymixing.suite.command_runner import as_typed
from summarymixing.suite.corpora import CorpusEntry
from summarymixing.suite.encoders import EncoderSource, digest_of
from summarymixing.suite.plan import Override, Settings, make_plan
from summarymixing.suite.tasks import benchmark_tasks

ROOT = Path(__file__).resolve().parents[3]
TASKS = benchmark_tasks()
LIBRISPEECH = TASKS["librispeech_lstm"]
ENCODER = EncoderSource("base", "org/base", digest="1")


@pytest.fixture
def plan(tmp_path):
    def plan(
        *texts,
        encoders=(ENCODER,),
        tasks=(LIBRISPEECH,),
        source="ls",
        options=(),
        **settings,
    ):
        corpora = {
            task.corpus: CorpusEntry(
                task.corpus, tmp_path / "m", tmp_path / source, options
            )
            for task in tasks
        }
        return make_plan(
            Settings(
                repository=ROOT,
                output_folder=tmp_path / "out",
                overrides=tuple(map(Override.parse, texts)),
                **settings,
            ),
            encoders,
            tasks,
            corpora,
        )

    return plan


def finish(run):
    """Leave behind what a run that is done does."""
    run.write_record(state="done")
    (run.folder / "metrics.json").write_text(json.dumps({"splits": {}}))


def test_commands_are_what_a_user_would_type(plan, tmp_path):
    made = plan("device=cpu", "librispeech_lstm:batch_size=2", processes=2)
    (run,) = made.runs
    out = tmp_path / "out" / "base" / "librispeech_lstm" / "seed_1986"
    assert as_typed(run.words) == [
        "torchrun",
        "--standalone",
        "--nproc_per_node=2",
        "recipes/mp3s/asr.py",
        "hparams/mp3s/librispeech_lstm.yaml",
        "--encoder=org/base",
        f"--manifests={tmp_path / 'm'}",
        f"--output_folder={out}",
        "--seed=1986",
        f"--cache_folder={tmp_path / 'out' / 'states'}",
        "--device=cpu",
        "--batch_size=2",
        "--noprogressbar",
    ]
    (prepare,) = made.preparations
    assert as_typed(prepare.words) == [
        "python",
        "recipes/prepare.py",
        "librispeech",
        str(tmp_path / "ls"),
        str(tmp_path / "m"),
    ]


def test_paths_in_the_repository_are_relative(plan):
    encoder = EncoderSource("tests", str(ROOT / "tests"))
    (run,) = plan(encoders=[encoder]).runs
    assert "--encoder=tests" in run.words


def test_every_encoder_gets_every_task_and_the_seeds_come_last(plan):
    twin = EncoderSource("base_random", "org/base", random=True)
    tasks = [LIBRISPEECH, TASKS["librispeech_contextnet"]]
    runs = plan(encoders=[ENCODER, twin], tasks=tasks, num_seeds=2).runs
    assert [(r.seed, r.task.name, r.encoder.name) for r in runs[:5]] == [
        (1986, "librispeech_lstm", "base"),
        (1986, "librispeech_lstm", "base_random"),
        (1986, "librispeech_contextnet", "base"),
        (1986, "librispeech_contextnet", "base_random"),
        (1987, "librispeech_lstm", "base"),
    ]
    assert len(runs) == len({run.folder for run in runs}) == 8
    assert ["--random_encoder=True" in r.words for r in runs[:2]] == [
        False,
        True,
    ]


def test_one_folder_of_states_serves_all_runs_unless_told(plan):
    (run,) = plan("librispeech_lstm:cache_folder=/scratch").runs
    given = [w for w in run.words if w.startswith("--cache_folder=")]
    assert given == ["--cache_folder=/scratch"]


@pytest.mark.parametrize("change", ["cache_features=off", "cache_folder=/x"])
def test_stored_states_change_no_result(plan, change):
    finish(plan().runs[0])
    assert plan(change).to_do == []


def test_iemocap_runs_all_folds_unless_told(plan):
    (run,) = plan(tasks=[TASKS["iemocap_ecapa"]]).runs
    assert "--fold=all" in run.words
    (run,) = plan(tasks=[TASKS["iemocap_ecapa"]], fold="3").runs
    assert "--fold=3" in run.words


def test_what_is_done_needs_no_run_and_no_preparation(plan):
    finish(plan().runs[0])
    again = plan(num_seeds=2)
    assert [run.seed for run in again.to_do] == [1987]
    assert again.preparations
    done = plan()
    assert done.to_do == [] and done.preparations == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": ["batch_size=2"]}, "then without, now --batch_size=2"),
        ({"processes": 2}, "nproc_per_node"),
        (
            {"encoders": [EncoderSource("base", "org/other")]},
            "then --encoder=org/b",
        ),
        (
            {"encoders": [EncoderSource("base", "org/base", digest="2")]},
            "the files in org/base were different then",
        ),
        ({"source": "larger"}, "the corpus was different then"),
        ({"options": ("--splits", "a")}, "the corpus was different then"),
    ],
)
def test_a_changed_command_is_not_taken_for_done(plan, change, message):
    (run,) = plan().runs
    finish(run)
    with pytest.raises(UserError) as error:
        plan(*change.pop("texts", ()), **change)
    assert message in str(error.value)
    assert "or remove these folders" in str(error.value)
    (run.folder / "metrics.json").unlink()
    plan()
    (run.folder / "checkpoints" / "1").mkdir(parents=True)
    with pytest.raises(UserError, match="other commands"):
        plan("batch_size=2")


def test_a_changed_recipe_file_is_not_taken_for_done(plan, monkeypatch):
    finish(plan().runs[0])
    monkeypatch.setattr(HparamsFile, "as_text", lambda recipe: "edited")
    with pytest.raises(UserError, match="the YAML file was different"):
        plan()


def test_an_encoder_that_changes_meanwhile_is_not_probed(plan, tmp_path):
    (tmp_path / "encoder.json").write_text("{}")
    before = EncoderSource("x", str(tmp_path), digest=digest_of(str(tmp_path)))
    (run,) = plan(encoders=[before]).runs
    assert run.reason_not_to_run() is None
    (tmp_path / "encoder.json").write_text("{ }")
    assert "have changed" in run.reason_not_to_run()


def test_a_command_that_failed_at_once_may_be_mended(plan):
    plan("batch_size=x").runs[0].write_record(state="failed")
    assert len(plan("batch_size=2").to_do) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch_sise=2", "did you mean 'batch_size'"),
        ("learning_rate", r"not \[TASK:\]key=value"),
        ("slurp:batch_size=2", "'slurp' is not among the chosen tasks"),
        ("seed=3", "use --seeds"),
    ],
)
def test_mistakes_in_overrides_are_found_before_anything_runs(
    plan, text, message
):
    with pytest.raises(UserError, match=message):
        plan(text)


def test_an_override_for_a_task_that_is_not_run(plan):
    with pytest.raises(UserError, match="not among the chosen"):
        plan("slurp_lstm:batch_size=2")


def test_a_half_written_result_is_no_result(plan):
    (run,) = plan().runs
    finish(run)
    (run.folder / "metrics.json").write_text('{"splits"')
    assert len(plan().to_do) == 1
