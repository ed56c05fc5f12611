"""The compared models and baselines: what they are asked, and what counts as their answer."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.records import Demonstration
from data.tokenize import encode_completion, encode_prompt
from evaluation.baselines import answers_to_others, best, echo, longest, spread
from evaluation.compare import Answer
from evaluation.config import EvaluateConfig
from evaluation.few_shot import FewShotModel
from evaluation.models import ComparedModel, compared_models
from modeling.config import ModelConfig
from modeling.generation import Generation
from modeling.load import load_scalar, save
from modeling.tiny import make_tiny_model

TRAINING = [Demonstration(prompt=f"Question {number}?", completion=f"Answer {number}.") for number in range(6)]
PROMPTS = [
    Demonstration(prompt="question 3", completion="It is three."),
    replace(TRAINING[4], completion="Four."),
    Demonstration(
        prompt=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}], completion="So."
    ),
]
PLACES = {name: f"/runs/{name}" for name in ("ppo", "sft", "base", "ppo_last", "ppo_ema", "sft_baseline")}


def few_shot(place: Path, examples: int = 5, new: int = 8, seed: int = 0) -> FewShotModel:
    return FewShotModel("base_few_shot", str(place), ModelConfig(device="cpu"), 1, examples, TRAINING, new, seed)


def test_a_few_shot_prompt_has_the_examples_and_never_its_own_prompt(tiny_llama: Path) -> None:
    model = few_shot(tiny_llama)
    tokenizer, asked = model.tokenizer(), model.asked(PROMPTS)
    texts = [tokenizer.decode(encode_prompt(tokenizer, prompt)) for prompt in asked]
    for text, own in zip(texts, ("Question 3?", "Question 4?", "?!"), strict=True):
        assert own not in text.partition("Be brief.")[0].rpartition("User:")[0], (
            "its own prompt would give the answer away"
        )
    for number in (0, 1, 2, 4, 5):
        assert f"User:\nQuestion {number}?\n\nAssistant:\nAnswer {number}.\n\n" in texts[0]
    assert texts[0].endswith("User:\nquestion 3\n\nAssistant:\n")
    assert texts[2].endswith("System:\nBe brief.\n\nUser:\nWhy?\n\nAssistant:\n")
    assert [prompt.prompt_id for prompt in asked] == [prompt.prompt_id for prompt in PROMPTS]
    assert model.asked(PROMPTS) == asked
    orders = {few_shot(tiny_llama, seed=seed).asked(PROMPTS)[2].text for seed in range(5)}
    assert len(orders) > 1, "drawn with the seed"


def test_too_few_demonstrations_that_fit_are_refused_before_sampling(tiny_llama: Path) -> None:
    with pytest.raises(ValueError, match="few_shot_examples=6, but only 5 training demonstrations are short enough"):
        few_shot(tiny_llama, examples=6).check(PROMPTS, 8)
    with pytest.raises(ValueError, match="few_shot_examples=4, but only 0 training demonstrations"):
        few_shot(tiny_llama, examples=4, new=460).check(PROMPTS, 460)


def test_an_answer_ends_where_the_model_writes_the_next_turn(tiny_llama: Path, tiny_tokenizer: Any) -> None:
    model = few_shot(tiny_llama)
    tokenizer = model.tokenizer()

    def generated(text: str) -> Generation:
        return Generation(encode_completion(tokenizer, text, ends=False), None, False)

    given = [
        [generated("Four.\n\nUser:\nAnd five?\n\nAssistant:\nFive."), generated("The User: me"), generated("User:\nHi")]
    ]
    [[cut, whole, empty]] = model.answers(given, tokenizer, tiny_tokenizer)
    assert (cut.text, cut.complete, cut.tokens) == ("Four.", True, len(encode_completion(tiny_tokenizer, "Four.")))
    assert (whole.text, whole.complete, whole.tokens) == ("The User: me", False, len(given[0][1].ids))
    assert (empty.text, empty.complete) == ("", True)


def test_lengths_of_a_model_with_other_tokens_are_in_sfts(
    tmp_path: Path, tiny_llama: Path, tiny_tokenizer: Any
) -> None:
    place = make_tiny_model(tmp_path / "other", "gpt2", vocab_size=300, corpus=["zebra quartz vexing " * 20])
    model = ComparedModel(str(place), str(place), ModelConfig(device="cpu"), 1)
    tokenizer = model.tokenizer()
    assert not model.reads_as(tiny_tokenizer)
    assert ComparedModel("x", str(tiny_llama), ModelConfig(device="cpu"), 1).reads_as(tiny_tokenizer)
    ids = encode_completion(tokenizer, "a language model reads")
    [[answer]] = model.answers([[Generation(ids, None, True)]], tokenizer, tiny_tokenizer)
    assert answer.tokens == len(encode_completion(tiny_tokenizer, "a language model reads")) != len(ids)


def test_a_folder_that_cannot_answer_is_refused_before_sampling(
    tmp_path: Path, tiny_llama: Path, model_config: ModelConfig, tiny_tokenizer: Any
) -> None:
    def check(place: Path, new: int = 8) -> None:
        ComparedModel(str(place), str(place), ModelConfig(device="cpu"), 1).check(PROMPTS, new)

    check(tiny_llama)
    with pytest.raises(ValueError, match=r"too few for its longest prompt of .* and evaluate\.max_new_tokens=600"):
        check(tiny_llama, 600)
    save(load_scalar(tiny_llama, model_config, tiny_tokenizer), tiny_tokenizer, tmp_path / "scalar")
    with pytest.raises(ValueError, match="is a reward model or another classifier"):
        check(tmp_path / "scalar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty"):
        check(tmp_path / "empty")
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in tiny_llama.iterdir():
        if file.suffix != ".safetensors":
            (bare / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="no weights in safetensors format"):
        check(bare)


def test_sft_comes_after_the_models_whose_answers_it_scores_and_streams_differ() -> None:
    settings = EvaluateConfig(models=["ppo_last", "org/model", "other/model", "sft_baseline"], answers_per_prompt=3)
    found = compared_models(settings, ModelConfig(base="b", chat_template="t", trust_remote_code=True), PLACES)
    assert [model.name for model in found] == [
        "ppo",
        "ppo_last",
        "sft_baseline",
        "org/model",
        "other/model",
        "sft",
        "base",
    ]
    assert [model.answers_per_prompt for model in found] == [3, 3, 3, 3, 3, 3, 1]
    assert len({model.stream.replace("/", "-") for model in found}) == 7, "each has a file of its own"
    assert [model.stream for model in found if model.name in ("ppo", "sft")] == ["evaluate ppo", "evaluate sft"]
    trusted = {model.name: model.config.trust_remote_code for model in found}
    assert trusted["ppo"]
    assert not trusted["org/model"], "another author's code"
    assert [model.config.chat_template for model in found] == [None] * 6 + ["t"]


def answers(*rows: str) -> list[list[Answer]]:
    return [[Answer(letter * (1 + place), True, 1 + place) for place, letter in enumerate(row)] for row in rows]


def test_random_gives_every_prompt_the_answers_to_another_one() -> None:
    rows = answers(*"abcdefgh")
    orders = set()
    for seed in range(20):
        found = answers_to_others(rows, seed)
        assert found is not None
        assert all(mine != other for mine, other in zip(rows, found, strict=True))
        assert sorted(row[0].text for row in found) == list("abcdefgh"), "each is used once"
        assert answers_to_others(rows, seed) == found
        orders.add("".join(row[0].text for row in found))
    assert len(orders) > 10
    assert answers_to_others(rows[:1], 0) is None


def test_longest_echo_and_best_of_n() -> None:
    found = longest(answers("abc", "d", ""))
    assert [[answer.text for answer in row] for row in found or []] == [["ccc"], ["d"], []]
    assert longest(answers("a", "b")) is None, "one answer each: nothing to choose from"
    chosen = best(answers("abc", "de"), [[0.5, 2.0, 2.0], [1.0, -1.0]])
    assert [[answer.text for answer in row] for row in chosen] == [["bb"], ["d"]]
    assert spread(chosen, [2, 0], 3) == [chosen[1], [], chosen[0]]


def test_echo_is_the_prompt_itself_at_its_length_in_tokens(tiny_tokenizer: Any) -> None:
    found = echo(PROMPTS, tiny_tokenizer)
    assert [(row[0].text, row[0].complete) for row in found] == [
        ("question 3", True), ("Question 4?", True), ("Be brief.\nWhy?", True)
    ]  # fmt: skip
    assert found[0][0].tokens == len(encode_completion(tiny_tokenizer, "question 3"))
