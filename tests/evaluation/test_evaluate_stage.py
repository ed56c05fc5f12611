"""The evaluate stage on a hand-made run folder: evaluation.json of a PPO model that equals the SFT model."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.config import SourceConfig
from data.files import write_records
from data.records import Demonstration, Ranking
from data.sets import DOCUMENT_SCHEMA, set_file
from evaluation.config import EvaluateConfig, GoldConfig, HumanConfig
from evaluation.metadata import FIELDS
from labeling.config import LabelsConfig
from labeling.llm_config import LLMConfig
from modeling.config import ModelConfig
from modeling.load import load_causal, load_scalar, save
from modeling.run import Run
from modeling.tiny import make_tiny_model
from stages.config import RunConfig
from stages.evaluate import STAGE, external, judging, teachers, work
from stages.manifest import Manifest
from stages.runner import RunFolder
from tests.conftest import enliven
from tests.evaluation.fake_llm import FakeLLM, serving
from tests.evaluation.test_metadata import GOOD
from tests.fakes import FakeAccelerator
from tests.families import CLASSIFIERS, classifier_folder
from tests.ppo.conftest import save_reward
from tests.sets import write_set

ASKED = [Demonstration(prompt=text, completion="So it is.") for text in ("Why?", "Name two rivers", "Write a poem.")]


JUDGED = {
    "accuracy": {"mean": 0.5},
    "best_baseline": "shortest",
    "baselines": {
        "longest": {"accuracy": {"mean": 0.4}},
        "shortest": {
            "accuracy": {"mean": 0.6, "low": 0.5, "high": 0.7},
            "difference": {"mean": -0.1, "low": -0.2, "high": 0.05},
        },
    },
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: Any, tiny: Any, model_config: ModelConfig, tiny_tokenizer: Any) -> RunFolder:
    """PPO's weights are the SFT model's."""
    root = tmp_path_factory.mktemp("run")
    model = enliven(load_causal(tiny("llama"), model_config, tiny_tokenizer))
    save(model, tiny_tokenizer, root / "sft" / "model")
    for name in ("model_ema", "model"):
        save(model, tiny_tokenizer, root / "ppo" / name)
    save(enliven(load_scalar(tiny("llama"), model_config, tiny_tokenizer)), tiny_tokenizer, root / "reward" / "model")
    (root / "reward" / "accuracy.json").write_text(json.dumps({"test": JUDGED}))
    for split in ("train", "test"):
        write_set(root / "data", "sft", split, ASKED)
    texts = [{"text": "The sky is blue and the sea is deep. " * 8, "dataset": "mine"}]
    pq.write_table(pa.Table.from_pylist(texts, schema=DOCUMENT_SCHEMA), set_file(root / "data", "texts", "heldout"))
    return RunFolder(root)


def test_under_bfloat16_the_kl_of_sft_to_itself_is_exactly_zero(
    run: RunFolder, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = RunConfig(
        model=ModelConfig(base=str(tiny_llama), device="cpu", precision="bfloat16"),
        labels=LabelsConfig(closeness="words"),
        evaluate=EvaluateConfig(
            answers_per_prompt=2, max_new_tokens=8, perplexity_examples=2, bootstrap_resamples=5, best_of_n=2
        ),
    )
    config.data.pretraining_tokens = 16
    headline = work(config, run, tmp_path)
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    assert headline["kl"] == evaluation["kl"]["low"] == evaluation["kl"]["high"] == 0.0
    assert evaluation["best_of_n"]["ppo_against"]["n"] == 1
    assert headline["win_rate_vs_best_of_n"] is None, "at a KL of 0 it would be plain samples"
    rows = [json.loads(line) for line in (tmp_path / "generations.jsonl").read_text().splitlines()]
    assert [row["kl"] for row in rows] == [0.0, 0.0, 0.0]
    assert "warning" not in capsys.readouterr().out


def test_greedy_answers_have_no_kl_since_an_estimate_takes_samples(
    run: RunFolder, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = RunConfig(
        model=ModelConfig(base=str(tiny_llama), device="cpu"),
        labels=LabelsConfig(closeness="words"),
        evaluate=EvaluateConfig(temperature=0.0, max_new_tokens=4, perplexity_examples=999, bootstrap_resamples=5),
    )
    config.data.pretraining_tokens = 16
    headline = work(config, run, tmp_path)
    assert headline["kl"] is json.loads((tmp_path / "evaluation.json").read_text())["kl"] is None
    assert headline["explained_variance"] is headline["win_rate_vs_best_of_n"] is None, "neither was measured"
    assert [headline[f"chrf_difference{end}"] for end in ("", "_low", "_high")] == [0.0, 0.0, 0.0], "the same model"
    rows = [json.loads(line) for line in (tmp_path / "generations.jsonl").read_text().splitlines()]
    assert [row["kl"] for row in rows] == [None, None, None]
    assert capsys.readouterr().out.count("fewer than evaluate.perplexity_examples=999") == 1, "not once for each model"


def test_text_longer_than_the_context_is_refused_before_anything_is_generated(
    run: RunFolder, tiny_llama: Path, tmp_path: Path
) -> None:
    config = RunConfig(model=ModelConfig(base=str(tiny_llama), device="cpu"))
    config.data.pretraining_tokens = 513
    with pytest.raises(ValueError, match=r"data\.pretraining_tokens=513 is more than the model's context of 512"):
        work(config, run, tmp_path)
    assert not list(tmp_path.iterdir())


def test_few_shot_prompts_that_do_not_fit_are_refused_before_the_run_has_models(
    run: RunFolder, tiny_llama: Path
) -> None:
    config = RunConfig(model=ModelConfig(base=str(tiny_llama), device="cpu"), labels=LabelsConfig(closeness="words"))
    config.evaluate = EvaluateConfig(models=["base_few_shot"], few_shot_examples=40, max_new_tokens=8)
    with pytest.raises(ValueError, match=r"models: base_few_shot: evaluate\.few_shot_examples=40, but only"):
        judging(config, run.stage("data"), Run(FakeAccelerator(), 0, None))


def test_the_teachers_of_the_reward_model_are_whoever_ranked_what_it_was_trained_on(tmp_path: Path) -> None:
    run, config = RunFolder(tmp_path), RunConfig()
    assert teachers(config, run) == set(), "the pipeline asks before anything is trained"
    for name in ("data", "labels", "reward"):
        run.stage(name).mkdir()
    ranked = {"prompt": "Why?", "completions": ["a", "b"], "ranks": [1, 2]}
    write_set(run.stage("data"), "rankings", "train", [Ranking(**ranked, labeler="llm", labeler_id="owner/judge")])

    def trained(epochs: int, base: Path | None = None) -> set[str]:
        config.reward.epochs, config.reward.base = epochs, base and str(base)
        Manifest("reward", "", asdict(config), {}, {}, {}, 0, 1, "cpu", "", "", 0.0).write(run.stage("reward"))
        return teachers(config, run)

    assert trained(1) == {"llm", "owner/judge"}
    write_records(run.stage("labels") / "rankings_train.jsonl", [Ranking(**ranked, labeler="simulated")])
    assert trained(1) == {"llm", "owner/judge", "simulated"}
    config.data.sources["uf"] = SourceConfig(labeler="gpt-4")
    assert trained(1) == {"llm", "owner/judge", "simulated"}, "it is a source of prompts"
    config.data.rankings = ["uf"]
    assert trained(1) == {"llm", "owner/judge", "simulated", "gpt-4"}
    config.data.sources.clear()
    config.data.rankings.clear()
    other = RunFolder(tmp_path / "other")
    for name in ("labels", "reward"):
        other.stage(name).mkdir(parents=True)
    write_records(other.stage("labels") / "rankings_train.jsonl", [Ranking(**ranked, labeler="human")])
    trained(1)
    shutil.copy(run.stage("reward") / "manifest.json", other.stage("reward"))
    assert trained(1, other.stage("reward") / "model") == {"human", "llm", "owner/judge", "simulated"}
    assert trained(0, other.stage("reward") / "model") == {"human"}
    assert trained(0) == set()


def test_any_models_and_judges_are_compared_and_the_first_judge_gives_the_headline(
    run: RunFolder, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    people, other = tmp_path / "people.jsonl", make_tiny_model(tmp_path / "other", "gpt2", vocab_size=300)
    gold = save_reward(tmp_path / "gold", make_tiny_model(tmp_path / "made", vocab_size=320)) / "model"
    write_records(people, [Ranking(prompt="Why?", completions=["x", "y"], ranks=[1, 2])])
    config = RunConfig(
        run_name=run.root.name,
        runs_folder=str(run.root.parent),
        model=ModelConfig(base=str(tiny_llama), device="cpu"),
        labels=LabelsConfig(closeness="words"),
        evaluate=EvaluateConfig(
            judges=["chrf", "gold", "human"], gold=GoldConfig(model=str(gold)), human=HumanConfig(path=str(people)),
            models=["base_few_shot", "ppo_last", str(other)], few_shot_examples=2, answers_per_prompt=2, best_of_n=3,
            best_of_n_prompts=2, max_new_tokens=8, perplexity_examples=2, bootstrap_resamples=5,
        ),
    )  # fmt: skip
    config.validate()
    config.data.pretraining_tokens = 16
    out = tmp_path / "out"
    monkeypatch.setattr("evaluation.best_of_n.best_of_n_kl", lambda n: 3.0 - n)  # the KL of 3 is nearest to PPO's
    headline = work(config, run, out)
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert evaluation["best_of_n"]["ppo_against"]["n"] == 3
    comparisons = evaluation["comparisons"]
    models = {"base", "ppo", "ppo_last", "base_few_shot", str(other), "best_of_n", "random", "longest", "echo"}
    assert set(comparisons) == models
    assert all(list(found) == ["chrf", "gold", "human"] for found in comparisons.values())
    assert evaluation["win_rate"]["sft"] == comparisons["ppo"]["chrf"]["win_rate"], "the first judge"
    assert headline["win_rate"] == evaluation["win_rate"]["sft"]["mean"]
    against = evaluation["best_of_n"]["ppo_against"]["win_rate"]
    found = [headline[f"win_rate_vs_best_of_n{end}"] for end in ("", "_low", "_high")]
    assert found == [against["mean"], against["low"], against["high"]]
    assert [headline[f"reward_accuracy_best_baseline{end}"] for end in ("", "_low", "_high")] == [0.6, 0.5, 0.7]
    assert [headline[f"reward_above_best_baseline{end}"] for end in ("", "_low", "_high")] == [-0.1, -0.2, 0.05]
    assert comparisons["ppo"]["human"] == {
        "win_rate": None, "length_controlled": None, "both_end": None, "no_verdict": 3 * 2 * 2
    }  # fmt: skip
    assert comparisons["best_of_n"]["gold"]["win_rate"]["n"] == comparisons["longest"]["gold"]["win_rate"]["n"] == 2
    assert comparisons["ppo_last"]["gold"]["win_rate"]["n"] == 3
    assert evaluation["generation"] == {
        "max_new_tokens": 8, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "batch_size": 64, "seed": 0
    }  # fmt: skip
    assert evaluation["judges"][0] == {"name": "chrf", "taught": False}
    # All are the SFT model. Neither other tokens nor other prompts have a KL to SFT, or a comparable perplexity.
    assert {name: found["high"] for name, found in evaluation["kl_by_model"].items()} == {"ppo": 0.0, "ppo_last": 0.0}
    assert set(evaluation["perplexity"]) == {"base", "sft", "ppo", "ppo_last"}
    assert evaluation["judge_agreement"]["between"][0]["judges"] == ["chrf", "gold"]
    assert "gold" in evaluation["models"]["random"]
    rows = [json.loads(line) for line in (out / "generations.jsonl").read_text().splitlines()]
    assert set(rows[0]["others"]) == {"base_few_shot", "ppo_last", str(other)}
    assert rows[0]["ppo_against_sft"] in (0.0, 0.5, 1.0)
    ended = {name: [answer["complete"] for row in rows for answer in row[name]] for name in ("ppo", "sft")}
    assert evaluation["complete_difference"]["mean"] == pytest.approx(fmean(ended["ppo"]) - fmean(ended["sft"]))
    # Ranking one pair as people do: it is read back from the answers that were written.
    best, worst = rows[1]["ppo"][0]["text"], rows[1]["sft"][0]["text"]
    write_records(people, [Ranking(prompt=ASKED[1].prompt, completions=[best, worst], ranks=[1, 2])])
    for done in ("labeling.sampling.derive_seed", "evaluation.best_of_n.Proxy.scores"):
        monkeypatch.setattr(done, lambda *given: pytest.fail("sampled or scored again"))
    again = work(config, run, out)
    found = json.loads((out / "evaluation.json").read_text())["comparisons"]["ppo"]["human"]
    assert (found["win_rate"]["mean"], found["win_rate"]["n"]) == (1.0, 1)
    assert again == headline, "sampled answers and the reward model's scores are kept in the scratch folder"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"judges": ["gold"], "gold": "copy"},
            "has the weights of the run's own reward model, on which PPO was trained",
        ),
        ({"judges": ["gold"], "gold": "sft"}, "is not a reward model: its architecture is LlamaForCausalLM"),
        *(({"judges": ["gold"], "gold": kind}, said) for kind, said in CLASSIFIERS.items()),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_generated(
    run: RunFolder, tiny_llama: Path, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    places = {"copy": tmp_path / "copy", "sft": run.stage("sft") / "model"}
    shutil.copytree(run.stage("reward") / "model", places["copy"])
    places |= {kind: classifier_folder(tmp_path / kind, places["sft"], kind) for kind in CLASSIFIERS}
    gold = GoldConfig(model=str(places[changes["gold"]])) if "gold" in changes else GoldConfig()
    config = RunConfig(
        model=ModelConfig(base=str(tiny_llama), device="cpu"), evaluate=EvaluateConfig(**changes | {"gold": gold})
    )
    config.data.pretraining_tokens = 16
    with pytest.raises(ValueError, match=sentence):
        work(config, run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_language_model_judges_in_the_headline_and_rates_all_models_through_faults_and_asks_nothing_twice(
    run: RunFolder, tiny_llama: Path, tmp_path: Path
) -> None:
    """It always prefers the answer shown first, so that every model wins half of its comparisons."""
    fake = FakeLLM(
        lambda question: json.dumps(GOOD if '"quality"' in question else {"verdict": "A"}),
        faults=["ok", "ok", "500", "429:0.05", "close", "html"],
    )
    with serving(fake) as url:
        config = RunConfig(
            model=ModelConfig(base=str(tiny_llama), device="cpu"),
            labels=LabelsConfig(closeness="words"),
            evaluate=EvaluateConfig(
                judges=["llm", "chrf"], metadata=True, max_new_tokens=8, perplexity_examples=2, bootstrap_resamples=20,
                llm=LLMConfig(endpoint=url, model="m", cache=str(tmp_path / "cache"), timeout=5.0),
            ),
        )  # fmt: skip
        config.evaluate.validate()
        config.data.pretraining_tokens = 16
        headline = work(config, run, tmp_path / "out")
        asked = len(fake.requests)
        reported = json.loads((tmp_path / "out" / "evaluation.json").read_text())
        assert reported["llm"]["requests"] == reported["llm_judge"]["requests"] == asked, "the metadata's too"
        work(config, run, tmp_path / "again")
        assert len(fake.requests) == asked + 2, "the two checks"
    assert headline["win_rate"] == 0.5
    assert set(fake.answered.values()) == {1, 2}, "the checks of both runs, and every other question once"
    evaluation = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert evaluation["llm_judge"]["position_bias"]["share"]["mean"] == 1.0
    assert evaluation["llm_judge"]["retries"] == 4
    assert evaluation["comparisons"]["echo"]["llm"]["win_rate"]["mean"] == 0.5
    rated = [json.loads(line) for line in (tmp_path / "out" / "ratings.jsonl").read_text().splitlines()]
    assert {item["model"] for item in rated} == {"base", "sft", "ppo"}
    assert len(rated) == 3 * len(ASKED)
    assert set(evaluation["metadata"]["ppo"]["all"]) == set(FIELDS)


def test_an_endpoint_that_nothing_uses_or_a_judge_without_one_is_refused() -> None:
    for settings in (
        EvaluateConfig(judges=["llm"]),
        EvaluateConfig(metadata=True),
        EvaluateConfig(llm=LLMConfig(endpoint="http://localhost:1/v1", model="m")),
    ):
        with pytest.raises(ValueError, match=r"judge llm and evaluate\.metadata need evaluate\.llm\.endpoint"):
            settings.validate()


def test_settings_of_a_gold_model_that_is_not_given_and_models_without_a_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"evaluate\.gold\.revision needs evaluate\.gold\.model"):
        EvaluateConfig(gold=GoldConfig(revision="main")).validate()
    with pytest.raises(ValueError, match=r"evaluate\.models contains an empty name"):
        EvaluateConfig(models=[""]).validate()


def test_an_edited_question_to_the_language_model_makes_the_evaluation_again(tmp_path: Path) -> None:
    """The speed of the requests does not."""
    config = RunConfig(runs_folder=str(tmp_path))
    config.evaluate.llm.prompt_file = str(tmp_path / "own.j2")
    found = []
    for text in ("Which is better?", "Which is worse?"):
        (tmp_path / "own.j2").write_text(text)
        found.append(external(config))
    assert found[0] != found[1]
    assert "evaluate.llm.concurrency" in STAGE.hash_exclude
