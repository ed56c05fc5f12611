"""Model cards: the Hub reads their metadata, and the policy that was evaluated has the results."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from reports.model_card import KINDS, sources, write_model_cards

RATE = {"mean": 0.6, "low": 0.55, "high": 0.65, "n": 100}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with the files that the cards read."""
    settings = {"epochs": 2, "learning_rate": 1e-5, "batch_size": 8}
    config = {
        "model": {"base": "owner/model", "revision": "1a2b", "adapter": "lora"},
        "data": {"demonstrations": ["seed"], "prompts": ["<b> | faq"], "rankings": ["oasst"], "pretraining": ["wiki"]},
        "sft": settings | {"pretraining_fraction": 0.0},
        "reward": settings | {"base": None},
        "ppo": {"kl_coef": 0.02, "ptx_coef": 27.8},
        "evaluate": {"weights": "ema"},
        "labels": {"labeler": "none"},
    }
    manifest = {"config": config, "seed": 0, "git_commit": None, "packages": {"torch": "2.13.0"}}
    for place in ("sft/model", "reward/model", "ppo/model", "ppo/model_ema"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place).with_name("manifest.json").write_text(json.dumps(manifest))
    test = {"accuracy": RATE | {"mean": 0.7}, "best_baseline": "shortest"}
    test["baselines"] = {"shortest": {"accuracy": RATE}}
    (tmp_path / "reward" / "accuracy.json").write_text(json.dumps({"test": test}))
    (tmp_path / "reward" / "score.py").write_text("score = 1.5\n")
    return tmp_path


def evaluated(run: Path, weights: str = "ema") -> None:
    (run / "evaluate").mkdir()
    found = {
        "weights": weights,
        "judges": [{"name": "chrf", "taught": False}],
        "win_rate": {"sft": RATE},
        "kl": {"mean": 0.8, "low": 0.7, "high": 0.9},
        "perplexity": {"ppo": 71.5},
    }
    (run / "evaluate" / "evaluation.json").write_text(json.dumps(found))


def measured(folder: Path) -> dict[str, float]:
    """The metrics as the Hub reads them."""
    card = ModelCard.load(folder / "README.md")
    return {item.metric_type: item.metric_value for item in card.data.eval_results or []}


def test_the_hub_reads_the_results_of_the_evaluated_policy_and_of_the_reward_model(run: Path) -> None:
    evaluated(run)
    write_model_cards(run, "mine")
    assert measured(run / "ppo" / "model_ema") == {"win_rate": 0.6, "kl": 0.8, "perplexity": 71.5}
    assert measured(run / "ppo" / "model") == {}
    assert measured(run / "reward" / "model") == {"accuracy": 0.7, "baseline_accuracy": 0.6}
    card = ModelCard.load(run / "ppo" / "model_ema" / "README.md")
    assert card.data.base_model == "owner/model"
    assert card.data.model_name == "mine-ppo-ema"
    assert "trained from `owner/model` (revision 1a2b) with the recipe" in card.text
    assert "rope_theta" not in card.text
    (run / "ppo" / "model_ema" / "config.json").write_text('{"rope_parameters": {"rope_theta": 1e6}}')
    write_model_cards(run, "mine")
    assert (
        "server that reads `rope_parameters` in config.json. transformers 4"
        in (run / "ppo" / "model_ema" / "README.md").read_text()
    )
    assert "| Win rate against SFT | 60.0% (55.0% to 65.0%) |" in card.text
    assert r"Data: seed, &lt;b> \| faq, oasst, wiki." in card.text
    assert "The win rates are judged by chrF." in card.text, (
        "the evaluation's judge, not that of the training's settings"
    )
    assert "| Pairwise accuracy on held-out rankings | 70.0% (" in (run / "reward" / "model" / "README.md").read_text()


def test_results_are_those_of_the_weights_that_were_evaluated_whatever_ppo_was_configured_with(run: Path) -> None:
    evaluated(run, "last")
    write_model_cards(run, "mine")
    assert measured(run / "ppo" / "model_ema") == {}
    assert measured(run / "ppo" / "model") == {"win_rate": 0.6, "kl": 0.8, "perplexity": 71.5}


def test_a_card_before_the_evaluation_says_so_and_a_local_base_is_not_taken_for_a_hub_name(run: Path) -> None:
    path = run / "sft" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["config"]["model"]["base"] = str(run / "sft")
    path.write_text(json.dumps(manifest))
    write_model_cards(run, "mine")
    card = ModelCard.load(run / "sft" / "model" / "README.md")
    assert card.data.base_model is None
    assert "Not evaluated." in card.text
    assert measured(run / "sft" / "model") == {}


@pytest.mark.parametrize(
    ("epochs", "sentences"),
    [
        (1, ["trained from `other/judge` with the recipe", "Adaptation: LoRA"]),
        (0, [": `other/judge` with a new bias, used in the recipe", "Adaptation: none.\n"]),
    ],
)
def test_the_card_of_a_reward_model_names_its_own_base(run: Path, epochs: int, sentences: list[str]) -> None:
    path = run / "reward" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["config"]["reward"] |= {"base": "other/judge", "epochs": epochs}
    path.write_text(json.dumps(manifest))
    evaluated(run)
    write_model_cards(run, "mine")
    card = ModelCard.load(run / "reward" / "model" / "README.md")
    assert card.data.base_model == "other/judge"
    for sentence in sentences:
        assert sentence in card.text
    assert "score = 1.5\n```" in card.text
    assert card.data.pipeline_tag == "text-classification"
    assert ModelCard.load(run / "ppo" / "model" / "README.md").data.base_model == "owner/model"
    policy = (run / "ppo" / "model_ema" / "README.md").read_text()
    assert ("was not trained on rankings in this run" in policy) is (epochs == 0)


def test_the_card_of_an_untrained_sft_model(run: Path) -> None:
    path = run / "sft" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["config"]["sft"] |= {"epochs": 0}
    path.write_text(json.dumps(manifest))
    write_model_cards(run, "mine")
    text = (run / "sft" / "model" / "README.md").read_text()
    assert "This is `owner/model` (revision 1a2b) without further training, used as the supervised model" in text
    assert "Adaptation: none.\n" in text
    assert "Data: none; the weights are those of the base model." in text
    assert "learning_rate" not in text
    policy = (run / "ppo" / "model" / "README.md").read_text()
    assert "Its SFT model is the base model without training (`sft.epochs: 0`)." in policy


def test_cards_name_the_text_that_was_mixed_in(run: Path) -> None:
    write_model_cards(run, "mine")
    data = {place: (run / place / "README.md").read_text().split("- Data: ")[1].split(". The")[0] for place in KINDS}
    everything = "seed, &lt;b> \\| faq, oasst"
    assert data["sft/model"] == "seed"
    assert data["reward/model"] == everything
    assert data["ppo/model"] == data["ppo/model_ema"] == f"{everything}, wiki"


@pytest.mark.parametrize(
    ("stage", "fraction", "reward", "expected"),
    [
        ("sft", 0.1, {"epochs": 1, "base": None}, "dt"),
        ("reward", 0.1, {"epochs": 1, "base": None}, "dprt"),
        ("reward", 0.1, {"epochs": 1, "base": "owner/judge"}, "dpr"),
        ("reward", 0.1, {"epochs": 0, "base": "owner/judge"}, "d"),
        ("ppo", 0.0, {"epochs": 0, "base": "owner/judge"}, "dp"),
    ],
)
def test_a_card_names_the_data_that_its_model_has_seen(
    stage: str, fraction: float, reward: dict[str, Any], expected: str
) -> None:
    data = {"demonstrations": ["d"], "prompts": ["p"], "rankings": ["r"], "pretraining": ["t"]}
    sft = {"epochs": 2, "pretraining_fraction": fraction}
    assert "".join(sources({"data": data, "sft": sft, "reward": reward, "ppo": {"ptx_coef": 0.0}}, stage)) == expected


def test_a_card_tells_perplexity_from_what_is_measured_on_prompts_and_who_ranked(run: Path) -> None:
    evaluated(run)
    place = run / "evaluate" / "evaluation.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"perplexity": {"sft": 70.5, "ppo": 71.5}}))
    later = run / "ppo" / "manifest.json"
    manifest = json.loads(later.read_text())
    manifest["config"]["labels"] = {"labeler": "simulated"}  # given to PPO alone; the rankings are from elsewhere
    later.write_text(json.dumps(manifest))
    (run / "labels").mkdir()
    manifest["config"]["labels"] = {"labeler": "none"}
    (run / "labels" / "manifest.json").write_text(json.dumps(manifest))
    write_model_cards(run, "mine")
    sft, policy = (ModelCard.load(run / place / "README.md") for place in ("sft/model", "ppo/model_ema"))
    assert "held-out users" not in sft.text
    datasets = {item.metric_type: item.dataset_name for item in [*sft.data.eval_results, *policy.data.eval_results]}
    assert datasets["perplexity"] == "held-out pretraining text of mine"
    assert datasets["win_rate"] == "held-out users of mine"
    assert "The reward model was trained on the rankings in data.rankings." in policy.text


def test_the_card_names_what_ppo_maximised(run: Path) -> None:
    path = run / "ppo" / "manifest.json"
    manifest = json.loads(path.read_text())
    rewards = [{"kind": "length", "weight": 2.0}]
    manifest["config"]["ppo"] = {"rewards": rewards, "kl_target": 6.0, "gae_lambda": 1.0}
    path.write_text(json.dumps(manifest))
    write_model_cards(run, "mine")
    for model in ("model", "model_ema"):
        text = (run / "ppo" / model / "README.md").read_text()
        for line in (f"| `ppo.rewards` | {rewards} |", "| `ppo.kl_target` | 6.0 |", "| `ppo.gae_lambda` | 1.0 |"):
            assert line in text


def test_the_card_says_where_the_template_asks_otherwise_than_training_did(run: Path) -> None:
    (run / "data").mkdir()
    (run / "data" / "facts.json").write_text(json.dumps({"untrained_prompt": ["A\n<think>\n", "A\n"]}))
    write_model_cards(run, "mine")
    text = (run / "sft" / "model" / "README.md").read_text()
    assert r'renders a question as `"A\n<think>\n"`, but in training it was `"A\n"`' in text


def test_a_stage_without_a_result_gets_no_card(run: Path) -> None:
    (run / "ppo" / "manifest.json").unlink()
    write_model_cards(run, "mine")
    assert not (run / "ppo" / "model" / "README.md").exists()
    assert (run / "reward" / "model" / "README.md").exists()


@pytest.mark.parametrize(
    ("code", "tag", "sentence"),
    [
        ("class RewardModel:\n    pass\n", None, "class RewardModel:"),
        ("", "text-classification", "so it must be used through rlhf-ptx."),
    ],
)
def test_how_a_reward_model_is_used_depends_on_the_model(run: Path, code: str, tag: str | None, sentence: str) -> None:
    (run / "reward" / "score.py").write_text(code)
    write_model_cards(run, "mine")
    card = ModelCard.load(run / "reward" / "model" / "README.md")
    assert card.data.pipeline_tag == tag
    assert sentence in card.text
    (run / "reward" / "score.py").unlink()  # as in a run of an earlier version
    write_model_cards(run, "mine")
    assert "through rlhf-ptx" not in ModelCard.load(run / "reward" / "model" / "README.md").text
