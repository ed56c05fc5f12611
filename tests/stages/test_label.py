"""`make label`: tasks from a run, invitations and export, and people's rankings in the labels stage."""

import json
import shutil
import socket
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest

from data.files import read_records, write_records
from data.records import Demonstration, Prompt, Ranking, Samples
from labeling.config import SamplesConfig
from labeling.web.conversations import Answer, Conversations
from labeling.web.playground import Settings
from labeling.web.store import Label, Store
from modeling.config import ModelConfig
from stages import labels
from stages.config import RunConfig
from stages.label import EXPORTED, OTHER_PLACE, PLACE, answers_of, chat_of, comparisons, fill, main, parser
from stages.manifest import Manifest, stage_digest
from stages.runner import RunFolder, adopt, run_stage
from tests.sets import write_set


def samples(split: str, count: int = 4) -> list[Samples]:
    return [
        Samples(prompt=f"{split} {n}?", completions=["a", "b", "c"], complete=[True, False, True]) for n in range(count)
    ]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with answers to rank."""
    folder = tmp_path / "runs" / "mine"
    (folder / "samples").mkdir(parents=True)
    for split in ("train", "valid", "test"):
        write_records(folder / "samples" / f"samples_{split}.jsonl", samples(split))
    return folder


def filled(run: Path, *arguments: str) -> Store:
    """The store as the command that starts the app leaves it."""
    given = parser().parse_args([str(run), *arguments])
    store = Store(run / (PLACE if given.of == "samples" else OTHER_PLACE))
    fill(store, answers_of(run) if given.of == "samples" else comparisons(run), given)
    return store


def label_all(store: Store, name: str) -> None:
    while (task := store.claim(name)) is not None:
        store.save(task.id, name, Label([2, 1, None][: len(task.shown)]), 0)


def test_people_are_invited_and_their_rankings_exported(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run), "--invite", "ann"]) == 0
    token = capsys.readouterr().out.strip()
    store = filled(run, "--labelers", "2", "--overlap", "0")
    assert store.sign_in(token) is not None
    assert store.progress()["tasks"] == 12
    label_all(store, "ann")
    task = store.last("ann")
    assert task is not None
    assert store.save(task.id, "ann", Label([1, 2, 3], demonstration="Because.", seconds=7.5), 1)
    out = tmp_path / "exported"
    assert main([str(run), "--export", str(out)]) == 0
    assert len(read_records(out / "rankings.jsonl", Ranking)) == 12
    (written,) = read_records(out / "demonstrations.jsonl", Demonstration)  # the source is who wrote the prompt
    assert (written.prompt, written.completion, written.source) == (task.samples.prompt, "Because.", "api")
    rows = [json.loads(line) for line in (out / "labels.jsonl").read_text().splitlines()]
    assert (len(rows), rows[-1]["seconds"], rows[-1]["labeler_id"], rows[-1]["skipped"]) == (13, 7.5, "ann", "")
    assert rows[-2]["task"] == rows[-1]["task"], "a label that was corrected is kept"
    assert capsys.readouterr().out.startswith("12 rankings in ")
    assert store.progress()["tasks"] == 12, "no task was added twice"
    first = [found.prompt.split()[0] for _, found, _, _ in store.labels() if isinstance(found.prompt, str)][:6]
    assert Counter(first) == {"train": 4, "valid": 1, "test": 1}, "training prompts come first, a few of every split"


def test_people_chat_with_the_finished_models_of_the_run(run: Path) -> None:
    assert chat_of(run).choices == {}
    config = RunConfig(
        model=ModelConfig("tiny", "main", chat_template="its own", precision="bfloat16"),
        samples=SamplesConfig(2000, 0.5, 4, 0.9),
    )
    for name, weights in (("sft", "ema"), ("ppo", "ema"), ("ppo", "last")):
        (run / name).mkdir(exist_ok=True)
        config.evaluate.weights = weights
        Manifest(name, "", asdict(config), {}, {}, {}, 0, 1, "cpu", "", "", 0.0).write(run / name)
        chat = chat_of(run)
        place, saved = chat.models[name].load.args  # type: ignore[attr-defined]
        assert place == run / name / ("model_ema" if (name, weights) == ("ppo", "ema") else "model")
        assert saved == ModelConfig(precision="bfloat16"), "the saved model has its own chat template"
        assert chat.models[name].digest == stage_digest(run / name), "as in the manifests of later stages"
    assert list(chat.choices) == ["ppo", "sft", "ppo sft", "ppo ppo", "sft sft"]
    assert chat.settings == Settings(1000, 0.5, 4, 0.9)


def test_a_share_of_the_tasks_goes_to_several_labelers_and_gold_tasks_to_everybody(run: Path, tmp_path: Path) -> None:
    gold = tmp_path / "gold.jsonl"
    write_records(gold, [Ranking(prompt="2 + 2?", completions=["4", "5"], ranks=[1, 2])])
    more = ["--labelers", "2", "--overlap", "0.5", "--gold", str(gold)]
    store = filled(run, *more)
    for name in ("ann", "ben", "cleo"):
        store.invite(name)
        label_all(store, name)
    assert 12 < store.progress()["slots"] < 24
    before = store.progress()
    assert main([str(run), "--invite", "dora"]) == 0
    assert store.progress() == before, "an invitation changes no task of a running app"
    assert store.progress()["done"] == store.progress()["slots"]
    assert {name: len(found) for name, found in store.golds().items()} == {"ann": 1, "ben": 1, "cleo": 1}


def test_an_answered_task_of_the_run_itself_can_screen_labelers(run: Path, tmp_path: Path) -> None:
    gold = tmp_path / "gold.jsonl"
    one = samples("train")[2]
    known = vars(Prompt.of(one)) | {"completions": one.completions, "complete": one.complete}
    write_records(gold, [Ranking(**known, ranks=[3, 2, 1])])
    store = filled(run, "--gold", str(gold))
    store.invite("ann")
    first = store.claim("ann")
    assert first is not None
    assert first.samples.prompt == "train 2?", "a gold task comes first"
    label_all(store, "ann")
    assert (len(store.golds()["ann"]), store.progress()["done"]) == (1, 11)
    assert all(found.prompt != "train 2?" for _, found, _, _ in store.labels())
    assert filled(run).progress()["done"] == 12, "without --gold it is a task as the others"


def test_another_tool_gets_the_tasks_of_the_latest_samples(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def exported(form: str) -> set[str]:
        assert main([str(run), "--export", str(tmp_path / form), "--as", form]) == 0
        (name,) = (tmp_path / form).rglob("*records.json" if form == "argilla" else "label_studio.json")
        return {prompt for prompt in ("train 0?", "later 0?") if prompt in name.read_text()}

    assert main([str(run), "--invite", "ann"]) == 0
    assert exported("label-studio") == {"train 0?"}, "the store had no tasks yet"
    store = filled(run, "--labelers", "3", "--overlap", "1")
    assert exported("argilla") == {"train 0?"}
    assert store.progress()["slots"] == 36, "an export changes no task of a running app"
    write_records(run / "samples" / "samples_train.jsonl", samples("later"))
    assert exported("label-studio") == exported("argilla") == {"later 0?"}
    shutil.rmtree(run / "samples")
    assert exported("argilla") == {"later 0?"}, "a store without its run"
    assert "12 tasks with 0 labels" in capsys.readouterr().out


def test_an_export_removes_emptied_files_and_overwrites_no_others(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = filled(run)
    store.invite("ann")
    conversations = Conversations(store)
    turn = conversations.ask("ann", "my phone is 555-1234", [Answer("ppo", {})], "form", None)
    out = tmp_path / "exported"
    out.mkdir()
    (out / "rankings.jsonl").write_text("mine")
    for rows in (1, 0):
        assert main([str(run), "--export", str(out)]) == 0
        found = [path.name for path in out.glob("*.jsonl") if "555-1234" in path.read_text()]
        assert sorted(found) == ["conversations.jsonl", "prompts.jsonl"] * rows
        assert (out / "rankings.jsonl").read_text() == "mine", "of no earlier export"
        if rows:
            conversations.delete("ann", turn.conversation)
    label_all(store, "ann")
    capsys.readouterr()
    assert main([str(run), "--export", str(out)]) == 2
    assert f"{out}/rankings.jsonl is not from an earlier export" in capsys.readouterr().err
    assert (out / "rankings.jsonl").read_text() == "mine"
    (out / EXPORTED).unlink()
    (out / "rankings.jsonl").unlink()
    (out / "conversations.jsonl").write_text("mine")
    assert main([str(run), "--export", str(out)]) == 0
    assert (out / "conversations.jsonl").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "nobody can sign in yet: invite people with `python -m stages.label"),
        (["--overlap", "2"], "--overlap from 0 to 1"),
        (["--of", "evaluate"], "run `make evaluate` first"),
        (["--gold", "absent.jsonl"], "absent.jsonl"),
        (["--port", "99999"], "--port from 0 to 65535"),
        (["--invite", " "], "the name of a person must have 1 to 100 printable characters"),
    ],
)
def test_mistakes_are_one_sentence(
    run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert main([str(run), *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_a_file_that_is_no_store_is_one_sentence(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / PLACE).parent.mkdir()
    (run / PLACE).write_text("something else, longer than a hundred characters " * 10)
    assert main([str(run), "--invite", "ann"]) == 2
    assert "labels.sqlite: file is not a database" in capsys.readouterr().err


def test_a_port_that_is_taken_is_one_sentence(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(run), "--invite", "ann"])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main([str(run), "--port", str(taken.getsockname()[1])]) == 2
    said = capsys.readouterr().err
    assert "ddress already in use" in said
    assert "give another --port" in said
    assert "traceback" not in said


def test_a_run_without_answers_is_refused_and_gets_no_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "absent"), "--invite", "ann"]) == 2
    assert "run `make samples` first" in capsys.readouterr().err
    assert not (tmp_path / "absent").exists()


def test_two_models_are_compared_blindly_and_apart_from_the_training_data(run: Path) -> None:
    asked = [
        Demonstration(prompt=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"{n}?"}],
                      completion="So.", prompt_id=f"p{n}")
        for n in range(3)
    ]  # fmt: skip
    write_set(run / "data", "sft", "test", asked)
    (run / "evaluate").mkdir()
    texts = [("x", "y"), ("x", "y"), ("same", "same")]
    lines = [
        {"prompt_id": f"p{n}", "ppo": [{"text": ppo, "complete": True}], "sft": [{"text": sft, "complete": False}]}
        for n, (ppo, sft) in enumerate(texts)
    ]
    (run / "evaluate" / "generations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main([str(run), "--of", "evaluate", "--invite", "ann"]) == 0
    store = filled(run, "--of", "evaluate")
    assert store.progress()["tasks"] == 2, "equal answers need no judgment"
    task = store.claim("ann")
    assert task is not None
    assert task.samples.messages in [one.messages for one in asked]
    assert sorted(zip(task.samples.completions, task.samples.complete, strict=True)) == [("x", True), ("y", False)]
    assert not (run / PLACE).exists()


def test_the_chain_goes_on_with_what_people_ranked(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = RunConfig(run_name="mine", runs_folder=str(tmp_path / "runs"))
    config.labels.labeler = "human"
    with pytest.raises(ValueError, match=r"there is no .*labels\.sqlite: rank answers with `make label RUN=.*` first"):
        labels.external(config)
    store = filled(run, "--labelers", "2", "--overlap", "1")
    store.invite("ann")
    store.invite("ben")
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="people have ranked none of the 4 prompts of a split"):
        labels.work(config, RunFolder(run), tmp_path / "out")
    label_all(store, "ann")
    before = labels.external(config)
    label_all(store, "ben")
    assert labels.external(config) != before, "more rankings make the stage run again"
    numbers = labels.work(config, RunFolder(run), tmp_path / "out")
    assert numbers["rankings"] == 24
    write_records(run / "samples" / "samples_train.jsonl", samples("train", 3))
    assert labels.work(config, RunFolder(run), tmp_path / "out")["rankings"] == 22
    assert "2 rankings are left out: the samples stage no longer has their prompts" in capsys.readouterr().out
    found = read_records(tmp_path / "out" / "rankings_valid.jsonl", Ranking)
    assert {ranking.prompt for ranking in found} == {f"valid {n}?" for n in range(4)}
    assert [ranking.labeler_id for ranking in found].count("ben") == 4
    assert all(ranking.ranks == [2, 1, None] and ranking.complete == [True, False, True] for ranking in found)


def test_a_run_takes_the_labels_of_another_with_the_rankings_that_they_were_made_from(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = {
        name: RunConfig(run_name=name, runs_folder=str(tmp_path / "runs")) for name in ("mine", "other", "own", "late")
    }
    for name, config in configs.items():
        config.labels.labeler = "human"
        for stage in ("data", "samples"):
            (folder := run.with_name(name) / stage).mkdir(parents=True, exist_ok=True)
            Manifest(stage, "", asdict(config), {}, {}, {}, 0, 1, "cpu", "", "", 0.0).write(folder)
            if stage == "samples" and name != "mine":
                shutil.copytree(run / stage, folder, dirs_exist_ok=True)
    store = filled(run, "--labelers", "1", "--overlap", "0")
    signed_in = store.sign_in(store.invite("ann")) or ""
    label_all(store, "ann")
    run_stage(labels.STAGE, configs["mine"])
    adopt(labels.STAGE, configs["other"], RunFolder(run))
    capsys.readouterr()
    run_stage(labels.STAGE, configs["other"])
    assert "labels: unchanged" in capsys.readouterr().out
    copied = run.with_name("other") / PLACE
    assert list(Store(copied).labels()) == list(store.labels())
    assert copied.stat().st_mode & 0o777 == 0o600
    assert Store(copied).session(signed_in) is None
    assert store.session(signed_in) is not None
    own = Store(run.with_name("own") / PLACE)
    adopt(labels.STAGE, configs["own"], RunFolder(run))
    assert not run.with_name("own").joinpath("labels").exists(), "it has rankings of its own"
    assert not list(own.labels())
    shutil.rmtree(run / PLACE.parent)
    with pytest.raises(ValueError, match=r"there is no .*late/people/labels\.sqlite: rank answers"):
        adopt(labels.STAGE, configs["late"], RunFolder(run))
