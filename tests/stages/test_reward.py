"""The reward stage as a user runs it: from the SFT model, from a base of its own, from a finished reward model; judged,
cut off, refused.

pytest tests/stages/test_reward.py
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig

from data.files import read_records, read_rows
from data.records import SPLITS, Ranking, Samples
from data.split import split_of
from evaluation.reward_scores import SavedRewardModel
from modeling.config import ModelConfig
from modeling.embeddings import embedding_count
from modeling.tiny import make_tiny_model
from ppo.actor_critic import refuse_fewer_rows
from ppo.config import PPOConfig
from reward.fit import RewardData
from stages import data, evaluate_reward, labels, pipeline, reward, samples, sft
from stages.config import RunConfig, parse_config
from stages.runner import RunFolder, run_stage

SETTINGS = (
    "--sft.max_train_examples", "8", "--samples.max_train_prompts", "14", "--samples.max_heldout_prompts", "14",
    "--reward.bias_demonstrations", "4",
    "--evaluate_reward.bootstrap_resamples", "50", "--data.personal_data", "off",
)  # fmt: skip
ASCII = [bytes(range(32, 127)).decode() + " one two three four five six seven eight nine ten"]


def config_of(root: Path, *arguments: str) -> RunConfig:
    return parse_config(
        "test", "", ["--config", "configs/smoke.yaml", "--runs_folder", str(root), *SETTINGS, *arguments]
    )[0]


def chain(config: RunConfig) -> None:
    """All stages up to the reward model, each only if something that it depends on changed."""
    for module in (data, sft, samples, labels, reward):
        run_stage(module.STAGE, config)


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder in which all is done that comes before the reward stage."""
    root = tmp_path_factory.mktemp("runs")
    for module in (data, sft, samples, labels):
        run_stage(module.STAGE, config_of(root))
    return root


@pytest.fixture
def runs(ranked: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it for one test."""
    shutil.copytree(ranked, tmp_path / "runs")
    yield tmp_path / "runs"
    shutil.rmtree(tmp_path / "runs")


@pytest.fixture(scope="module")
def rewarded(ranked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder in which the reward stage is done too, with its default settings."""
    root = shutil.copytree(ranked, tmp_path_factory.mktemp("rewarded") / "runs")
    run_stage(reward.STAGE, config_of(root))
    return root


@pytest.fixture
def rewarded_runs(rewarded: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it for one test."""
    shutil.copytree(rewarded, tmp_path / "runs")
    yield tmp_path / "runs"
    shutil.rmtree(tmp_path / "runs")


@pytest.fixture(scope="module")
def other_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2-shaped language model of another size, vocabulary and chat template than the policy, which is
    Llama-shaped.
    """
    folder = make_tiny_model(
        tmp_path_factory.mktemp("base") / "gpt2", "gpt2", vocab_size=300, hidden_size=48, layers=3, corpus=ASCII
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # A turn starts at a special token, which no text merges with.
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '[' + m['role'] + ']' + bos_token + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[assistant]' + bos_token }}{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def other_reward_model(other_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody else's reward model: no bias in its config, read where its chat template ends, behind EOS and a line
    break, and its pad is EOS.
    """
    folder = tmp_path_factory.mktemp("theirs") / "model"
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(other_base, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(other_base)
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "m['content'] + eos_token", "m['content'] + eos_token + '\n'"
    )
    tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def plain_scores(place: Path, rankings: list[Ranking], answer_suffix: str = "") -> list[list[float]]:
    """Each answer as text through nothing but transformers, less the bias in the config."""
    tokenizer = AutoTokenizer.from_pretrained(place)
    model = AutoModelForSequenceClassification.from_pretrained(place).eval()
    rows = [
        tokenizer.apply_chat_template(ranking.messages, add_generation_prompt=True, tokenize=False)
        + text
        + tokenizer.eos_token * ended
        + answer_suffix
        for ranking in rankings
        for text, ended in zip(ranking.completions, ranking.complete or [True] * len(ranking.completions), strict=True)
    ]
    batch = tokenizer(rows, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False)
    with torch.no_grad():
        flat = iter((model(**batch).logits[:, 0] - model.config.score_bias).tolist())
    return [[next(flat) for _ in ranking.completions] for ranking in rankings]


def strict(run: RunFolder, split: str) -> list[Ranking]:
    """The rankings that were judged: those whose answers do not all tie, none of them empty."""
    found = read_records(run.stage("labels") / f"rankings_{split}.jsonl", Ranking)
    return [ranking for ranking in found if len(set(ranking.ranks or [])) > 1 and all(ranking.completions)]


def demonstration_mean(run: RunFolder, answer_suffix: str = "") -> float:
    """What the saved model gives the demonstrations that its bias comes from, less that bias, on average."""
    everything = [row for _, row in read_rows(run.stage("data") / "sft_train.parquet")]
    rows = [everything[len(everything) * quarter // 4] for quarter in range(4)]
    rankings = [Ranking(prompt=row["prompt"], completions=[row["completion"]]) for row in rows]
    scores = plain_scores(run.stage("reward") / "model", rankings, answer_suffix)
    return sum(row[0] for row in scores) / len(scores)


def compare(run: RunFolder, fresh: Callable[[Path, list[Ranking]], list[list[float]]] = plain_scores) -> None:
    """What the stage wrote down, against another reader of the saved model."""
    rankings, found = (
        strict(run, "test"),
        json.loads((run.stage("reward") / "scores.json").read_text())["scores"]["test"],
    )
    assert len(rankings) == len(found) > 5
    for theirs, ours in zip(fresh(run.stage("reward") / "model", rankings), found, strict=True):
        assert ours == pytest.approx(theirs, abs=2e-4)
    assert torch.tensor([score for row in found for score in row]).std() > 0.01


def test_from_the_sft_model_and_read_by_plain_transformers(runs: Path) -> None:
    config = config_of(runs, "--reward.epochs", "2", "--reward.learning_curve", "[0.5]")
    headline = run_stage(reward.STAGE, config)
    run = RunFolder(runs / "smoke")
    compare(run)
    assert demonstration_mean(run) == pytest.approx(0, abs=1e-4)
    found = json.loads((run.stage("reward") / "accuracy.json").read_text())
    assert [row["epoch"] for row in found["epochs"]] == [1, 2]
    assert [part["prompts"] for part in found["learning_curve"]] == [
        round(headline["train_prompts"] / 2),
        headline["train_prompts"],
    ]
    assert set(found["test"]["baselines"]) == {
        "longest",
        "shortest",
        "random",
        "sft_likelihood",
        "sft_likelihood_per_token",
    }
    assert headline["reward_accuracy"] == found["test"]["accuracy"]["mean"]
    # The adapter on the SFT model, by peft and transformers alone, is the merged model.
    base = AutoModelForSequenceClassification.from_pretrained(run.stage("sft") / "model", num_labels=1)
    adapted = PeftModel.from_pretrained(base, str(run.stage("reward") / "adapter")).eval()
    folded = AutoModelForSequenceClassification.from_pretrained(run.stage("reward") / "model").eval()
    ids = torch.tensor([[40, 50, 60, 2], [41, 51, 61, 2]])
    with torch.no_grad():
        torch.testing.assert_close(adapted(input_ids=ids).logits, folded(input_ids=ids).logits, atol=1e-5, rtol=1e-5)
    page = (run.stage("reward") / "reward.md").read_text()
    assert f"{100 * headline['reward_accuracy']:.1f}%" in page

    judged = run_stage(evaluate_reward.STAGE, config)
    again = json.loads((run.stage("evaluate_reward") / "accuracy.json").read_text())
    assert again["test"]["accuracy"] == found["test"]["accuracy"]
    assert again["test"]["score_std"] == pytest.approx(found["test"]["score_std"], rel=1e-3)
    assert judged["best_baseline"] == headline["best_baseline"]
    assert judged["above_best_baseline"] == headline["above_best_baseline"]


@pytest.mark.parametrize("adapter", ["lora", pytest.param("none", marks=pytest.mark.slow)])
def test_from_a_base_of_another_family_size_and_tokenizer(runs: Path, other_base: Path, adapter: str) -> None:
    run = RunFolder(runs / "smoke")
    top = ["--reward.top_layers", "2"] if adapter == "lora" else []
    chain(config_of(runs, "--model.adapter", adapter, "--reward.base", str(other_base), *top))
    compare(run)
    model = AutoModelForSequenceClassification.from_pretrained(run.stage("reward") / "model")
    assert type(model).__name__ == "GPT2ForSequenceClassification"
    assert model.config.n_embd == 48
    # Its adapter would fit no other model of the run.
    assert not (run.stage("reward") / "adapter").exists()


def test_somebody_elses_reward_model_is_read_where_its_own_template_ends(runs: Path, other_reward_model: Path) -> None:
    run_stage(reward.STAGE, config_of(runs, "--reward.base", str(other_reward_model), "--reward.epochs", "0"))
    run = RunFolder(runs / "smoke")

    def theirs(place: Path, rankings: list[Ranking]) -> list[list[float]]:
        tokenizer, model = (
            AutoTokenizer.from_pretrained(other_reward_model),
            AutoModelForSequenceClassification.from_pretrained(other_reward_model),
        )
        bias = AutoModelForSequenceClassification.from_pretrained(place).config.score_bias
        scores = []
        for ranking in rankings:
            talks = [[*ranking.messages, {"role": "assistant", "content": text}] for text in ranking.completions]
            with torch.no_grad():
                rows = [tokenizer.apply_chat_template(talk, return_tensors="pt", return_dict=False) for talk in talks]
                scores.append([model.eval()(row).logits.item() - bias for row in rows])
        return scores

    compare(run, theirs)
    ours = AutoModelForSequenceClassification.from_pretrained(run.stage("reward") / "model").state_dict()
    before = AutoModelForSequenceClassification.from_pretrained(other_reward_model).state_dict()
    assert all(torch.equal(ours[name], weight) for name, weight in before.items())
    assert not (run.stage("reward") / "metrics.jsonl").exists()
    assert demonstration_mean(run, answer_suffix="\n") == pytest.approx(0, abs=1e-4)
    # The saved copy says for itself how it is read.
    judged = run_stage(evaluate_reward.STAGE, config_of(runs))
    assert Path(judged.pop("report")).is_file()
    direct = run_stage(evaluate_reward.STAGE, config_of(runs, "--evaluate_reward.model", str(other_reward_model)))
    assert Path(direct.pop("report")).is_file()
    assert judged == pytest.approx(direct, rel=1e-5)


def test_the_runs_own_reward_model_is_trusted_as_its_base(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted = []

    def of(place: object, config: ModelConfig, setting: str) -> None:
        trusted.append(config.trust_remote_code)
        raise StopIteration

    monkeypatch.setattr(SavedRewardModel, "of", of)
    config = config_of(runs, "--reward.base", "elsewhere", "--reward.trust_remote_code", "true")
    for config.evaluate_reward.model in (None, "another"):
        with pytest.raises(StopIteration):
            evaluate_reward.work(config, RunFolder(runs / "smoke"), tmp_path)
    assert trusted == [True, False]


def test_rankings_that_another_models_template_refuses_are_left_out_and_counted(
    runs: Path, other_reward_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "odd.jinja"
    odd = "{% if m.content | length % 2 %}{{ raise_exception('no odd numbers') }}{% endif %}"
    file.write_text(
        "{% for m in messages %}{% if m.role == 'user' %}" + odd + "{% endif %}{{ m.content + eos_token }}{% endfor %}"
    )
    options = ["--evaluate_reward.model", str(other_reward_model), "--evaluate_reward.chat_template", str(file)]
    run_stage(evaluate_reward.STAGE, config_of(runs, *options))
    run = RunFolder(runs / "smoke")
    found = json.loads((run.stage("evaluate_reward") / "accuracy.json").read_text())
    for split in ("valid", "test"):
        rows = strict(run, split)
        refused = sum(
            len(row.prompt) % 2 for row in read_records(run.stage("labels") / f"rankings_{split}.jsonl", Ranking)
        )
        assert found["left_out"][split]["refused_by_its_chat_template"] == refused > 0
        assert found[split]["prompts"] == sum(len(row.prompt) % 2 == 0 for row in rows) > 0
    # The run's own reward model is judged on all rankings, as in its stage.

    def refuse(*given: Any) -> None:
        raise ValueError("refused")

    run_stage(reward.STAGE, config_of(runs))
    monkeypatch.setattr("evaluation.reward_scores.check_prompt", refuse)
    run_stage(evaluate_reward.STAGE, config_of(runs))


def test_only_training_prompts_are_among_their_own_answers(runs: Path) -> None:
    """Otherwise the reward model's held-out accuracy would count easy pairs."""
    numbers = run_stage(samples.STAGE, config_of(runs, "--samples.echo", "true", "--samples.max_new_tokens", "2"))
    ended = []
    for split in SPLITS:
        rows = read_records(runs / "smoke" / "samples" / f"samples_{split}.jsonl", Samples)
        assert {row.completions[-1] == row.text.strip() for row in rows} == {split == "train"}
        ended += [end for row in rows for end in (row.complete[:-1] if split == "train" else row.complete)]
    assert (numbers["answers"], numbers["complete"]) == (len(ended), sum(ended) / len(ended)), "sampled answers only"


def test_a_chat_template_that_changes_after_sft_changes_no_later_stage(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "other.jinja").write_text("{% for m in messages %}{{ m.role + '>' + m.content }}{% endfor %}")
    changed = config_of(runs, "--model.chat_template", str(tmp_path / "other.jinja"))
    root, before = runs / "smoke", (runs / "smoke" / "samples" / "samples_train.jsonl").read_bytes()
    for module in (samples, labels, reward):
        run_stage(module.STAGE, changed)
    assert (root / "samples" / "samples_train.jsonl").read_bytes() == before
    templates = {(root / stage / "model" / "chat_template.jinja").read_text() for stage in ("sft", "reward")}
    assert len(templates) == 1
    assert "m.role + '>'" not in templates.pop()


def test_training_goes_on_from_a_reward_model_of_ours(rewarded_runs: Path, tmp_path: Path) -> None:
    runs, run = rewarded_runs, RunFolder(rewarded_runs / "smoke")
    shutil.copytree(run.stage("reward") / "model", tmp_path / "earlier")
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "earlier").config.score_bias != 0
    run_stage(reward.STAGE, config_of(runs, "--reward.base", str(tmp_path / "earlier")))
    compare(run)
    assert demonstration_mean(run) == pytest.approx(0, abs=1e-4)


def test_the_bias_comes_from_demonstrations_of_every_source(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    for file, count in ((first, 80), (second, 40)):
        rows = [
            {"prompt": f"{n} {file.stem}?", "completion": file.stem, "user_id": f"{file.stem}{n}"} for n in range(count)
        ]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [
        "--data.demonstrations",
        f"[{first}, {second}]",
        "--data.valid_fraction",
        "0.05",
        "--data.test_fraction",
        "0.05",
    ]
    run_stage(data.STAGE, config_of(tmp_path / "other", *sources))
    shutil.copy(tmp_path / "other" / "smoke" / "data" / "sft_train.parquet", runs / "smoke" / "data")
    taken: list[str] = []

    def fit(config: Any, start: Any, tokenizer: Any, given: RewardData, run: Any) -> None:
        taken.extend(tokenizer.decode(item.answers[0], skip_special_tokens=True) for item in given.demonstrations)
        raise ValueError("seen enough")

    monkeypatch.setattr("reward.fit.fit", fit)
    monkeypatch.setattr("stages.runner.outdated", lambda *_: [])  # the rankings belong to other demonstrations
    with pytest.raises(ValueError, match="seen enough"):
        run_stage(reward.STAGE, config_of(runs, "--reward.bias_demonstrations", "30"))
    assert len(taken) == 30
    assert taken.count("second") == pytest.approx(10, abs=2), "a third of the demonstrations"


def test_its_own_result_is_no_base(rewarded: Path) -> None:
    with pytest.raises(
        ValueError,
        match="is a result of this run, which would train it again and again: copy it elsewhere",
    ):
        run_stage(reward.STAGE, config_of(rewarded, "--reward.base", str(rewarded / "smoke" / "reward" / "model")))


def test_fewer_answers_a_prompt_are_another_judgment(rewarded_runs: Path) -> None:
    pairs = []
    for arguments in ((), ("--reward.max_answers_per_prompt", "2")):
        run_stage(evaluate_reward.STAGE, config_of(rewarded_runs, *arguments))
        pairs.append(
            json.loads((rewarded_runs / "smoke" / "evaluate_reward" / "accuracy.json").read_text())["test"]["pairs"]
        )
    assert pairs[1] < pairs[0]


def test_a_run_cut_off_while_it_is_judged_does_not_train_again(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*arguments: Any) -> None:
        raise KeyboardInterrupt

    def never(*arguments: Any) -> None:
        raise AssertionError("trained again")

    with monkeypatch.context() as patched:
        patched.setattr("evaluation.reward_evaluation.sft_baselines", cut)
        with pytest.raises(KeyboardInterrupt):
            run_stage(reward.STAGE, config_of(runs))
    weights = (runs / "smoke" / "reward.partial" / "model" / "model.safetensors").read_bytes()
    monkeypatch.setattr("reward.trainer.RewardTrainer.train", never)
    run_stage(reward.STAGE, config_of(runs))
    assert (runs / "smoke" / "reward" / "model" / "model.safetensors").read_bytes() == weights
    compare(RunFolder(runs / "smoke"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--reward.base", "{base}", "--reward.epochs", "0"],
            r"takes reward\.base=.* as it is, but it is not a reward model: its architecture is GPT2LMHeadModel",
        ),
        (
            ["--reward.base", "{base}/nothing"],
            r"reward\.base=.*nothing: no such folder; give a folder, or a model on the Hub as owner/name",
        ),
        (
            ["--reward.base", "{short}"],
            r"no train ranking is left: of \d+, \d+ tie all .*, \d+ compare identical .* and \d+ are longer "
            r"than .* of 8 tokens",
        ),
        (
            ["--reward.learning_rate", "1e30", "--reward.epochs", "4"],
            r"reward, step \d+: (loss|grad_norm|\w+_loss) is (nan|inf): lower reward\.learning_rate, or with float16 "
            r"try another model\.precision; nothing ",
        ),
        (["--model.lora.top_layers", "9"], r"top_layers=9, but the model has 2 layers"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_no_result(
    runs: Path, other_base: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    short = tmp_path / "short"
    shutil.copytree(other_base, short)
    settings = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(settings | {"n_positions": 8}))
    with pytest.raises(ValueError, match=said):
        chain(config_of(runs, *(argument.format(base=other_base, short=short) for argument in arguments)))
    assert not (runs / "smoke" / "reward").exists()


@pytest.mark.parametrize("tied", ["train", "test"])
def test_rankings_of_which_a_split_decides_nothing_stop_the_run_before_sft(tmp_path: Path, tied: str) -> None:
    rows = []
    for number in range(60):
        user = f"u{number}"
        same = split_of(user, 0.2, 0.2) == tied
        row = {"prompt": f"{number}?", "completions": ["yes", "no", "no idea"], "user_id": user}
        rows.append(row | {"ranks": [1, 1, None] if same else [2, 1, 3]})
    (tmp_path / "judged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [
        "--data.rankings",
        f"[{tmp_path}/judged.jsonl]",
        "--data.valid_fraction",
        "0.2",
        "--data.test_fraction",
        "0.2",
    ]
    config = config_of(tmp_path / "runs", *sources, "--labels.labeler", "none")
    run_stage(data.STAGE, config)
    said = rf"labels\.labeler is none, and none of the \d+ {tied} rankings in .* puts one answer above a different one"
    with pytest.raises(ValueError, match=said):
        run_stage(sft.STAGE, config)


def test_a_language_model_is_not_judged_as_a_reward_model(runs: Path, other_base: Path) -> None:
    with pytest.raises(ValueError, match="is not a reward model: its architecture is GPT2LMHeadModel"):
        run_stage(evaluate_reward.STAGE, config_of(runs, "--evaluate_reward.model", str(other_base)))


def test_the_pipeline_says_before_it_starts_that_the_value_model_will_have_no_start(
    other_base: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError, match=r"cannot start from a reward model with another tokenizer: set ppo\.value_init=sft"
    ):
        pipeline.work(config_of(tmp_path, "--reward.base", str(other_base)), force=False)
    assert not (tmp_path / "smoke").exists()


def test_the_pipeline_says_before_it_starts_that_the_value_model_would_lack_embeddings(tmp_path: Path) -> None:
    """As Qwen2.5-7B, which has more than a reward model from Qwen2.5-0.5B with the same tokenizer."""
    base, small = make_tiny_model(tmp_path / "base"), make_tiny_model(tmp_path / "small")
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(model.config.vocab_size + 8)
    model.save_pretrained(base)
    arguments = ["--model.base", str(base), "--reward.base", str(small)]
    with pytest.raises(ValueError, match=r"the policy has .* embeddings, and the reward model .*ppo.value_init=sft"):
        pipeline.work(config_of(tmp_path / "runs", *arguments), force=False)
    assert not (tmp_path / "runs" / "smoke").exists()


@pytest.mark.parametrize(("rows", "reward_rows", "refused"), [(513, 512, False), (512, 520, False), (514, 512, True)])
def test_embeddings_are_counted_with_those_that_new_tokens_get(rows: int, reward_rows: int, refused: bool) -> None:
    """Both tokenizers have 513 tokens, the last of which is a new pad."""
    tokenizer = range(513)
    counts = [embedding_count(LlamaConfig(vocab_size=count), tokenizer) for count in (rows, reward_rows)]
    with pytest.raises(ValueError, match="the policy could sample ids that") if refused else contextlib.nullcontext():
        refuse_fewer_rows(PPOConfig(), *counts)


def test_the_pipeline_says_before_it_starts_that_a_reward_function_is_missing(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("")
    terms = f"[{{kind: model}}, {{kind: python, function: {tmp_path}/mine.py:polite}}]"
    with pytest.raises(ValueError, match="has no function 'polite'"):
        pipeline.work(config_of(tmp_path, "--ppo.rewards", terms), force=False)
    assert not (tmp_path / "smoke").exists()
