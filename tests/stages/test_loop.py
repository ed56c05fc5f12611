"""The loop: what a round takes from the rounds before it, and what its report says."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.files import read_records, read_rows, write_records
from data.records import SPLITS, Demonstration, Prompt, Ranking, Samples
from labeling.llm_config import LLMConfig
from labeling.web.conversations import Answer, Conversations
from labeling.web.store import Label, Saved, Store
from reports.loop import facts, gains
from reports.run import Results
from stages import labels, loop, manifest, samples
from stages.config import RunConfig
from stages.label import PLACE, answers_of
from stages.runner import RunFolder, Stage, adopt, run_stage
from tests.evaluation.fake_llm import FakeLLM, serving
from tests.sets import write_set

ANSWERS = ["aa", "b", "ccc"]


def samples_of(count: int) -> list[Samples]:
    return [Samples(prompt=f"{n}?", completions=ANSWERS, complete=[True] * 3) for n in range(count)]


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    found = RunConfig(run_name="mine", runs_folder=str(tmp_path / "runs"))
    found.model.base = "tiny"
    return found


@pytest.fixture
def first(config: RunConfig) -> Path:
    """A finished first round with the files that the second one reads."""
    current = loop.begin(config, [])
    root = Path(current.runs_folder) / current.run_name
    for folder in ("ppo/model_ema", "samples", "labels"):
        (root / folder).mkdir(parents=True)
    write_records(root / "samples" / "samples_train.jsonl", samples_of(2))
    for split in SPLITS:
        ranking = Ranking(prompt=split, completions=["a", "b"], ranks=[1, 2])
        write_records(root / "labels" / f"rankings_{split}.jsonl", [ranking])
        write_set(root / "data", "rm", split, [Demonstration(prompt=f"{split}?", completion="So.")])
    return root


def test_a_round_samples_from_the_last_policy_and_keeps_the_rankings_of_all_rounds(
    config: RunConfig, first: Path
) -> None:
    store = Store(first / PLACE)
    store.invite("ann")
    held_out = Samples(prompt="test?", completions=ANSWERS, complete=[True] * 3)
    store.add([held_out, *samples_of(1)], [1, 1], [None, None])
    for text in ("For a held-out prompt.", "Better."):
        task = store.claim("ann")
        assert task is not None
        store.save(task.id, "ann", Label([1, 2, None], demonstration=text), 0)
    conversations = Conversations(store)
    for number, (texts, ranks) in enumerate(((("So.", "No."), [2, 1]), (("So.", "No."), [1, 1]), (("", ""), []))):
        answers = [Answer("sft", {}, "complete" if text else "waiting", text) for text in texts]
        asked = conversations.ask("ann", f"Why {number}?", answers, str(number), None)
        with conversations.changed("ann", asked.id) as turn:
            turn.ranks = ranks
    second = loop.begin(config, [first])
    second.validate()
    root = first.parent / "round-2"
    # Neither the prompt without an answer nor the ranking that only ties, which the data stage would refuse.
    assert [one.prompt for one in read_records(root / "collected" / "prompts.jsonl", Prompt)] == [
        [{"role": "user", "content": f"Why {number}?"}] for number in range(2)
    ]
    (ranking,) = read_records(root / "collected" / "rankings.jsonl", Ranking)
    assert (ranking.completions, ranking.ranks, ranking.user_id) == (["So.", "No."], [2, 1], "ann")
    assert second.data.prompts == [str(root / "collected" / "prompts.jsonl"), *config.data.prompts]
    assert second.data.rankings == [str(root / "collected" / "rankings.jsonl"), *config.data.rankings]
    assert (second.runs_folder, second.run_name) == (str(first.parent), "round-2")
    assert second.samples.policy == str(first / "ppo" / "model_ema")
    assert second.samples.leave_out == [str(first / "samples")]
    assert second.labels.earlier == [str(first / "labels")]
    assert second.evaluate.models == [str(first / "ppo" / "model_ema")]
    # First, because the data stage keeps the first of two answers to a prompt.
    assert second.data.demonstrations == [str(root / "collected" / "demonstrations.jsonl"), *config.data.demonstrations]
    assert [row["completion"] for _, row in read_rows(root / "collected" / "demonstrations.jsonl")] == ["Better."]
    assert json.loads((root / "round.json").read_text()) == {
        "round": 2, "parent": "round-1", "policy": str(first / "ppo" / "model_ema"),
    }  # fmt: skip
    assert config.samples.policy is None, "the configuration of the loop stays as it is"
    # What people add later does not change a round that has begun.
    store.save(task.id, "ann", Label([1, 2, None], demonstration="Later."), 1)
    assert loop.begin(config, [first]) == second
    assert [row["completion"] for _, row in read_rows(root / "collected" / "demonstrations.jsonl")] == ["Better."]
    config.evaluate.weights = "last"
    (first / "ppo" / "model").mkdir()
    assert loop.begin(config, [first]).samples.policy == str(first / "ppo" / "model")


def test_prompts_of_earlier_rounds_are_sampled_again_only_without_others(first: Path) -> None:
    earlier, new = samples_of(2), samples_of(3)[2]
    assert samples.not_sampled([*earlier, new], [str(first / "samples")]) == [new]
    assert samples.not_sampled([*earlier], [str(first / "samples")]) == earlier


@pytest.fixture
def second(config: RunConfig, first: Path) -> tuple[RunConfig, RunFolder]:
    """The second round with its answers sampled."""
    found = loop.begin(config, [first])
    run = RunFolder(Path(found.runs_folder) / found.run_name)
    prompts = {split: [Demonstration(prompt=f"{split} {n}", completion="aa") for n in range(2)] for split in SPLITS}
    (run.root / "samples").mkdir()
    for split, asked in prompts.items():
        write_set(run.root / "data", "rm", split, asked)
        rows = [Samples(prompt=one.prompt, completions=ANSWERS, complete=[True] * 3, reference="aa") for one in asked]
        write_records(run.root / "samples" / f"samples_{split}.jsonl", rows)
    return found, run


def test_earlier_rankings_are_added_and_a_user_of_another_split_is_refused(
    second: tuple[RunConfig, RunFolder], first: Path, tmp_path: Path
) -> None:
    config, run = second
    config.labels.closeness, config.labels.disagreement = "words", 0.0
    numbers = labels.work(config, run, tmp_path)
    assert (numbers["rankings"], numbers["earlier_rankings"]) == (9, 3)
    found = read_records(tmp_path / "rankings_valid.jsonl", Ranking)
    assert [one.prompt for one in found] == ["valid 0", "valid 1", "valid"]
    config.labels.earlier *= 2
    assert labels.work(config, run, tmp_path)["earlier_rankings"] == 3, "the same rankings count once"
    moved = Ranking(prompt="train 0", completions=["a", "b"], ranks=[1, 2])
    write_records(first / "labels" / "rankings_test.jsonl", [moved])
    with pytest.raises(ValueError, match=r"user .* is in the train split of this run: use the same data\.split_salt"):
        labels.work(config, run, tmp_path)
    write_records(first / "labels" / "rankings_test.jsonl", [replace(moved, user_id="ann")])
    with pytest.raises(ValueError, match="the prompt 'train 0' is in the train split of this run"):
        labels.work(config, run, tmp_path)


def test_a_language_model_ranks_by_comparing_every_two_answers_in_both_orders(
    second: tuple[RunConfig, RunFolder], tmp_path: Path
) -> None:
    config, run = second

    def longer(question: str) -> str:
        if "valid 1" in question or "<answer A" not in question:  # neither at first nor when it is asked again
            return "I cannot tell."
        first, second = (question.split(f"<answer {name} ")[1].split("\n")[1] for name in "AB")
        verdict = "tie" if {first, second} == {"aa", "b"} else "A" if len(first) > len(second) else "B"
        return json.dumps({"verdict": verdict})

    fake = FakeLLM(longer)
    config.labels.labeler, config.labels.earlier = "llm", []
    with serving(fake) as endpoint:
        config.labels.llm = LLMConfig(endpoint=endpoint, model="judge", cache=str(tmp_path / "llm"))
        numbers = labels.work(config, run, tmp_path)
    found = read_records(tmp_path / "rankings_test.jsonl", Ranking)
    assert [(one.preferences, one.ties, one.labeler, one.labeler_id) for one in found] == [
        ([[2, 0], [2, 1]], [[0, 1]], "llm", "judge")
    ] * 2
    assert 0 < numbers.pop("replies") < len(fake.requests), "identical questions are asked once"
    assert min(numbers.pop("input_tokens"), numbers.pop("output_tokens")) > 0
    assert numbers == {
        "rankings": 5, "all_tied": 0, "tied_pairs": pytest.approx(1 / 3), "no_verdict": 3, "refused": 0, "malformed": 6,
        "truncated": 0,
    }  # fmt: skip


def test_a_round_waits_until_people_have_labelled_its_answers(second: tuple[RunConfig, RunFolder]) -> None:
    _, run = second
    with pytest.raises(ValueError, match=r"labelled 0 of the 6 tasks of .*round-2: continue with `make label RUN="):
        loop.refuse_unlabelled(run)
    store = Store(run.root / PLACE)
    store.invite("ann")
    for tasks in (samples_of(1), answers_of(run.root)):  # answers of an earlier sampling do not count
        store.add(tasks, [1] * len(tasks), [None] * len(tasks))
        while (task := store.claim("ann")) is not None:
            done = sum(bool(labels) for task, labels in store.tasks()) - 1
            with pytest.raises(ValueError, match=f"people have labelled {max(0, done)} of the 6 tasks"):
                loop.refuse_unlabelled(run)
            store.save(task.id, "ann", Label(skipped="unclear"), 0)
    loop.refuse_unlabelled(run)


def test_a_round_that_people_label_is_sampled_before_it_waits(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def work(current: RunConfig, force: bool, last: str = "report") -> None:
        calls.append((last, force))
        (folder := Path(current.runs_folder) / current.run_name / "samples").mkdir(exist_ok=True)
        for split in SPLITS:
            write_records(folder / f"samples_{split}.jsonl", samples_of(2))

    monkeypatch.setattr(loop.pipeline, "work", work)
    monkeypatch.setattr("reports.loop.write_loop", lambda rounds, out: None)
    config.labels.labeler = "human"
    with pytest.raises(ValueError, match="people have labelled 0 of the 6 tasks"):
        loop.work(config, force=True, rounds=1)
    assert calls == [("samples", True)]
    loop.work(config, force=False, rounds=1, unlabelled=True)
    assert calls[1:] == [("samples", False), ("report", False)]


def test_what_people_rank_once_a_later_round_has_begun_does_not_change_the_round(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def prepared(config: RunConfig, done: list[Path], force: bool) -> RunConfig:
        root = loop.round_folder(config, len(done) + 1)
        root.mkdir(parents=True, exist_ok=True)
        own = replace(config, runs_folder=str(root.parent), run_name=root.name)
        return replace(own, labels=replace(config.labels, labeler="none")) if done else own

    config.labels.labeler = "human"
    run = RunFolder(loop.round_folder(config, 1))
    (run.root / "samples").mkdir(parents=True)
    (run.root / "samples" / "manifest.json").write_text("{}")
    tasks = [Samples(prompt=f"{n}?", completions=["a", "b"], complete=[True, True]) for n in range(3)]
    for split, one in zip(SPLITS, tasks, strict=True):
        write_records(run.root / "samples" / f"samples_{split}.jsonl", [one])
    store = Store(run.root / PLACE)
    for name in ("ann", "ben"):
        store.invite(name)
    (run.root / labels.CLOSED).touch()
    labels.close(run.root)
    assert not (run.root / labels.CLOSED).exists(), "nobody has ranked anything"
    store.add(tasks, [2] * 3, [None] * 3)
    for _ in tasks:
        task = store.claim("ann")
        assert task is not None
        store.save(task.id, "ann", Label([1, 2]), 0)
    stage = replace(labels.STAGE, after=())
    monkeypatch.setattr(loop, "prepared", prepared)
    monkeypatch.setattr(loop.pipeline, "work", lambda config, force, last="": last or run_stage(stage, config, force))
    monkeypatch.setattr("reports.loop.write_loop", lambda rounds, out: None)
    loop.work(config, force=False, rounds=1, unlabelled=True)
    store.merge([Saved("dora", tasks[2], Label([2, 1]), time.time())])
    resuming = run.partial("ppo") / "checkpoints" / "checkpoint-1"
    resuming.mkdir(parents=True)
    loop.work(config, force=False, rounds=1, unlabelled=True)
    assert len((run.root / labels.CLOSED).read_text().splitlines()) == 3, "PPO is to resume"
    shutil.rmtree(run.partial("ppo"))
    loop.work(config, force=False, rounds=2, unlabelled=True)
    assert len((run.root / labels.CLOSED).read_text().splitlines()) == 4, "no other round had begun"
    correction, late = store.last("ann"), store.claim("ben")
    assert correction is not None
    assert late is not None
    store.save(correction.id, "ann", Label([2, 1]), 1)
    store.save(late.id, "ben", Label([1, 2]), 0)
    store.merge([Saved("cleo", tasks[0], Label([2, 1]), time.time() - 3600)])  # imported, with the time of saving
    made = manifest.read(run.stage("labels"))
    capsys.readouterr()
    loop.work(config, force=False, rounds=2)
    assert manifest.read(run.stage("labels")) == made, "unchanged"
    assert f"ignored 3 ranking(s), saved in {run.root} after its labels stage" in capsys.readouterr().out
    config.labels.disagreement = 0.2  # the stage runs again, for another reason
    run_stage(stage, prepared(config, [], False))
    assert len(read_records(run.stage("labels") / "rankings_train.jsonl", Ranking)) == 1
    other = replace(config, run_name="other")
    folder = Path(other.runs_folder) / "other"
    shutil.copytree(run.root / "samples", folder / "samples")
    adopt(replace(stage, after=()), other, run)
    run_stage(stage, other)
    assert len(read_records(folder / "labels" / "rankings_train.jsonl", Ranking)) == 3, "it is no round"
    loop.work(config, force=True, rounds=1)
    assert len(read_records(run.stage("labels") / "rankings_train.jsonl", Ranking)) == 3


def test_a_stage_with_the_same_settings_and_inputs_is_taken_from_the_round_before(config: RunConfig) -> None:
    runs: list[str] = []

    def work(config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
        runs.append(run.root.name)
        (out / "model").mkdir()
        (out / "model" / "model.safetensors").write_bytes(b"weights")
        (out / "numbers.json").write_text(str(config.seed))
        return {"seed": config.seed}

    stage, later = Stage("sft", sections=("sft",), after=(), work=work), Stage("ppo", ("ppo",), ("sft",), work)
    one, two = loop.begin(config, []), loop.begin(config, [])
    two.run_name = "round-2"
    roots = [RunFolder(Path(current.runs_folder) / current.run_name) for current in (one, two)]
    run_stage(stage, one)
    two.sft.epochs = 7
    adopt(stage, two, roots[0])
    assert not roots[1].stage("sft").exists(), "other settings make another result"
    adopt(later, two, roots[0])  # whose input is still to be made
    two.sft.epochs = one.sft.epochs
    adopt(stage, two, roots[0])
    assert run_stage(stage, two) == {"seed": 0}
    assert runs == ["round-1"], "the second round did not train"
    files = [root.stage("sft") / "model" / "model.safetensors" for root in roots]
    assert files[0].stat().st_ino == files[1].stat().st_ino, "weights are not stored twice"
    assert manifest.stage_digest(roots[0].stage("sft")) == manifest.stage_digest(roots[1].stage("sft"))
    two.sft.epochs = 7  # a result of its own is kept
    run_stage(stage, two)
    adopt(stage, two, roots[0])
    assert runs == ["round-1", "round-2"]


def test_the_report_finds_the_policies_of_the_loop_among_all_compared_models(config: RunConfig, first: Path) -> None:
    loop.begin(config, [first])
    root = first.parent / "round-2"
    (root / "evaluate").mkdir()
    own, other = str(first / "ppo" / "model_ema"), "other/loop/round-1/ppo/model"
    rates = {
        name: {"mean": mean, "low": 0.1, "high": 0.9, "n": 9} for name, mean in ((own, 0.55), (other, 0.1), ("x", 0.2))
    }
    evaluation = {
        "judges": [{"name": "rubric"}],
        "kl": None,
        "win_rate": rates,
        "comparisons": {name: {"rubric": {"win_rate": rate}} for name, rate in {**rates, "ppo": rates[own]}.items()},
    }
    (root / "evaluate" / "evaluation.json").write_text(json.dumps(evaluation))
    results = Results(root)
    results.config = {"evaluate": {"models": [own, other, "x"]}}
    found = facts(root, results, [first, root])
    assert (found["parent"], found["places"], found["against"]) == (
        "round-1",
        {"round-1": own},
        {"round-1": rates[own]},
    )
    assert {name: one["rubric"]["mean"] for name, one in gains(found, evaluation).items()} == {
        "round-1": 0.55, "round-2": 0.55,
    }  # fmt: skip


def test_bad_use_is_refused_before_anything_runs(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--rounds must be at least 1"):
        loop.work(config, force=False, rounds=0)
    config.labels.labeler = "none"
    with pytest.raises(ValueError, match="a loop needs a labeler"):
        loop.work(config, force=False)
    config.labels.labeler, config.model.trust_remote_code = "simulated", True
    with pytest.raises(ValueError, match=r"set evaluate\.trust_remote_code too"):
        loop.work(config, force=False)
    config.model.trust_remote_code = False
    for section, name, file in (
        ("labels", "earlier", "rankings_train.jsonl"),
        ("samples", "leave_out", "samples_train.jsonl"),
    ):
        setattr(getattr(config, section), name, [str(tmp_path)])
        with pytest.raises(ValueError, match=rf"{section}\.{name}: there is no .*{file}"):
            config.validate()
        setattr(getattr(config, section), name, [])
    config.labels.labeler = "llm"
    with pytest.raises(ValueError, match=r"labels\.labeler=llm needs labels\.llm\.endpoint"):
        config.validate()
