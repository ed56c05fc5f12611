"""A reward model with a tokenizer, a template or a context of its own reads what a person would hand it: the text, in
its own layout.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from data.chat_template import PLAIN
from data.records import Prompt
from modeling.generation import Generation
from modeling.load import knows_tokens, load_tokenizer, same_tokenizer
from modeling.tiny import CONTEXT_LENGTH, make_tiny_model
from ppo import train as training
from ppo.models import PPOModels
from ppo.rollout import Rollout, score
from ppo.train import train
from tests.ppo.conftest import CHUNKS, PROMPTS, TEAM, Chain, chain_of, save_reward, small

OTHER_WORDS = ["zebra quartz vexing jumps over lazy dogs; what a cat is, and why rivers are cold. " * 3]
LOUD = (
    "{% for message in messages %}<<{{ message['role'] }}>> {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<<assistant>> {% endif %}"
)
FLOAT32 = 5e-5
CROSSINGS = [("llama", "gpt2"), ("gpt2", "qwen2"), ("qwen2", "gpt_neox"), ("gpt_neox", "llama")]
BOTH = pytest.mark.parametrize("adapter", ["lora", "none"])


@dataclass
class Case:
    """Prompts and the responses that a policy gave to them, among them every way in which one may end."""

    prompts: list[Prompt]
    responses: list[Generation]


def every_ending(tokenizer: Any) -> Case:
    """Ended, cut off, an EOS alone, blanks alone, bytes that are no text, a piecing together of words that no tokenizer
    would choose.
    """
    eos = tokenizer.eos_token_id

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    letters = [token for letter in "The model is told" for token in ids(letter)]
    assert letters != ids("The model is told")
    rows = [
        ids("A cat. It purrs!") + [eos],
        ids(" The sea is blue"),
        [eos],
        ids("  "),
        [200, 180, 220, 201],
        [*letters, eos],
    ]
    responses = [Generation(row, [-1.0] * len(row), ended=row[-1] == eos) for row in rows]
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Ho"},
    ]
    prompts = [*PROMPTS[:4], Prompt(prompt=[*talk, {"role": "user", "content": "Why snow?"}]), PROMPTS[0]]
    return Case(prompts, responses)


def scored(chain: Chain, models: PPOModels, case: Case, **changes: Any) -> Rollout:
    """The case as the policy would have met it, scored in groups of two."""
    ids = [
        list(chain.tokenizer.apply_chat_template(p.messages, add_generation_prompt=True, return_dict=False))
        for p in case.prompts
    ]
    config = small(**{"max_tokens_per_micro_batch": 80} | changes)
    groups = [[0, 1], [2, 3], [4, 5]]
    return score(
        models,
        ids,
        case.responses,
        groups,
        config,
        chain.config,
        chain.tokenizer.pad_token_id,
        TEAM.device,
        case.prompts,
    )


def read_by_hand(
    chain: Chain, prompt: Prompt, response: list[int], context: int = CONTEXT_LENGTH, closing: list[int] | None = None
) -> float:
    """The oracle, apart from the code it judges: plain transformers, text by text, one unpadded row."""
    policy = AutoTokenizer.from_pretrained(chain.sft / "model")
    reward = AutoTokenizer.from_pretrained(chain.reward / "model")
    model = AutoModelForSequenceClassification.from_pretrained(chain.reward / "model").eval()
    ended = response[-1] == policy.convert_tokens_to_ids(policy.eos_token)
    text = policy.decode([token for token in response if token not in policy.all_special_ids]).strip()
    before = reward(
        reward.apply_chat_template(prompt.messages, add_generation_prompt=True, tokenize=False),
        add_special_tokens=False,
    )["input_ids"]
    after = reward(text, add_special_tokens=False)["input_ids"] + [reward.eos_token_id] * ended
    ids = (before + (after or [reward.eos_token_id]))[:context]
    if closing is not None:
        ids = (before + reward(text, add_special_tokens=False)["input_ids"])[: context - len(closing)] + closing
    with torch.no_grad():
        hidden = model.base_model(torch.tensor([ids])).last_hidden_state[0, -1]
        return float(model.score(hidden)) - model.config.score_bias


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[[str], Path]) -> Callable[..., Chain]:
    """`foreign("llama", "gpt2", "lora")`: a reward model of that family, of another size, with other tokens, another
    template, another EOS.
    """
    folder = tmp_path_factory.mktemp("foreign")
    rewards: dict[tuple[str, int], Path] = {}

    def get(policy: str, reward: str, adapter: str, context: int = CONTEXT_LENGTH) -> Chain:
        if (reward, context) not in rewards:
            place = folder / f"{reward}-{context}"
            made = make_tiny_model(
                place / "made", reward, vocab_size=330, hidden_size=48, layers=3, seed=4, corpus=OTHER_WORDS
            )
            rewards[reward, context] = save_reward(place, made, LOUD, eos="</s>", context=context)
        return chain_of(Path(tmp_path_factory.mktemp("chain")), tiny(policy), rewards[reward, context], adapter)

    return get


@BOTH
@pytest.mark.parametrize(("policy", "reward"), CROSSINGS)
def test_scores_are_what_the_reward_model_says_of_the_text(
    foreign: Callable[..., Chain], policy: str, reward: str, adapter: str
):
    chain = foreign(policy, reward, adapter)
    case = every_ending(chain.tokenizer)
    rollout = scored(chain, chain.models(value_init="sft"), case)
    expected = [
        read_by_hand(chain, prompt, response.ids) for prompt, response in zip(case.prompts, case.responses, strict=True)
    ]
    assert rollout.scores_B.tolist() == pytest.approx(expected, abs=FLOAT32)
    assert torch.tensor(expected).std() > 0.1
    assert rollout.reward_truncated_B is not None
    assert rollout.reward_truncated_B.tolist() == [False] * 6


def test_the_policys_template_is_not_forced_on_a_reward_model_that_has_its_own(
    foreign: Callable[..., Chain], tmp_path: Path
):
    chain = foreign("llama", "gpt2", "lora")
    (tmp_path / "template.jinja").write_text(PLAIN)
    chain.config.chat_template = str(tmp_path / "template.jinja")
    chain.tokenizer = load_tokenizer(chain.sft / "model", chain.config)
    case = every_ending(chain.tokenizer)
    rollout = scored(chain, chain.models(value_init="sft"), case)
    expected = [
        read_by_hand(chain, prompt, response.ids) for prompt, response in zip(case.prompts, case.responses, strict=True)
    ]
    assert rollout.scores_B.tolist() == pytest.approx(expected, abs=FLOAT32)


@pytest.mark.parametrize("template", [LOUD, None], ids=["another template", "the policy's"])
def test_responses_are_scored_in_the_form_of_the_rankings_whatever_tokens_they_were_sampled_in(
    template: str | None, tiny: Callable[[str], Path], tmp_path: Path
):
    made = make_tiny_model(tmp_path / "made", "gpt2", hidden_size=48, layers=3, seed=4)
    reward = save_reward(tmp_path / "reward", made, template=template)
    chain = chain_of(tmp_path, tiny("llama"), reward, "lora")
    models, case = chain.models(), every_ending(chain.tokenizer)
    rollout = scored(chain, models, case)
    anew = [
        read_by_hand(chain, prompt, response.ids) for prompt, response in zip(case.prompts, case.responses, strict=True)
    ]
    assert rollout.scores_B.tolist() == pytest.approx(anew, abs=FLOAT32)
    # Not the sampled tokens: the last row was pieced together from single letters, as no tokenizer does.
    model = AutoModelForSequenceClassification.from_pretrained(reward / "model").eval()
    with torch.no_grad():
        hidden = [
            model.base_model(torch.tensor([p + r])).last_hidden_state[0, -1]
            for p, r in zip(rollout.prompts, rollout.responses, strict=True)
        ]
        as_they_are = (model.score(torch.stack(hidden))[:, 0] - 0.5).tolist()
    assert abs(as_they_are[5] - anew[5]) > 0.01


def test_tokenizers_are_the_same_only_if_they_cut_text_alike(tiny: Callable[[str], Path], model_config: Any):
    place = tiny("llama")

    def fresh() -> Any:
        return load_tokenizer(place, model_config)

    assert same_tokenizer(fresh(), load_tokenizer(tiny("gpt2"), model_config))
    other_template, other_end, more_tokens = fresh(), fresh(), fresh()
    other_template.chat_template = PLAIN
    other_end.eos_token = "<|im_start|>"
    more_tokens.add_tokens(["<extra>"])

    def rebuilt(change: Callable[[dict[str, Any]], None]) -> Any:
        parts, tokenizer = json.loads(fresh().backend_tokenizer.to_str()), fresh()
        change(parts["model"])
        tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(parts))
        return tokenizer

    merged_otherwise = rebuilt(lambda model: model["merges"].reverse())
    swapped = rebuilt(lambda model: model["vocab"].update(A=model["vocab"]["B"], B=model["vocab"]["A"]))
    assert merged_otherwise.get_vocab() == fresh().get_vocab()
    assert swapped.get_vocab().keys() == fresh().get_vocab().keys()
    for other in (other_template, other_end, more_tokens, merged_otherwise, swapped):
        assert not same_tokenizer(fresh(), other)
        assert not same_tokenizer(other, fresh())
    assert knows_tokens(merged_otherwise, fresh())
    assert not knows_tokens(swapped, fresh())
    assert knows_tokens(more_tokens, fresh())
    assert not knows_tokens(fresh(), more_tokens)


def test_a_response_too_long_for_the_reward_model_is_cut_at_its_end_and_counted(
    foreign: Callable[..., Chain], tmp_path: Path
):
    short = foreign("llama", "llama", "none", context=150)
    models, case = short.models(value_init="sft"), every_ending(short.tokenizer)
    words = short.tokenizer("why 0123456789 " * 14, add_special_tokens=False)["input_ids"]
    case.responses[1] = Generation(words, [-1.0] * len(words), ended=False)
    case.responses[5] = Generation([*words, short.tokenizer.eos_token_id], [-1.0] * (len(words) + 1), ended=True)
    rollout = scored(short, models, case)
    expected = [
        read_by_hand(short, prompt, response.ids, 150)
        for prompt, response in zip(case.prompts, case.responses, strict=True)
    ]
    whole = [
        read_by_hand(short, prompt, response.ids, 10_000)
        for prompt, response in zip(case.prompts, case.responses, strict=True)
    ]
    assert rollout.scores_B.tolist() == pytest.approx(expected, abs=FLOAT32)
    assert [abs(a - b) > 1e-3 for a, b in zip(expected, whole, strict=True)] == [False, True, False, False, False, True]
    assert rollout.reward_truncated_B is not None
    assert rollout.reward_truncated_B.tolist() == [False, True, False, False, False, True]
    assert training.reading_numbers(rollout.reward_truncated_B) == {"reward_truncated": pytest.approx(2 / 6)}

    train(small(), short.config, models, short.tokenizer, PROMPTS, CHUNKS, 0, TEAM, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["reward_truncated"] for row in rows] == [0.0, 0.0]


@pytest.mark.parametrize("tokens", ["its own", "the policy's"])
def test_other_peoples_closing_stands_after_every_answer_even_a_cut_one(
    tokens: str, tiny: Callable[[str], Path], tmp_path: Path
):
    closing, context = [7, 9], 120
    own = {"vocab_size": 330, "corpus": OTHER_WORDS} if tokens == "its own" else {}
    made = make_tiny_model(tmp_path / "made", "gpt_neox", hidden_size=48, seed=4, **own)
    chain = chain_of(
        tmp_path, tiny("llama"), save_reward(tmp_path / "reward", made, context=context, closing=closing), "lora"
    )
    models, case = chain.models(value_init="sft"), every_ending(chain.tokenizer)
    digits = chain.tokenizer("0123456789" * 12, add_special_tokens=False)["input_ids"]
    case.responses[1] = Generation([*digits, chain.tokenizer.eos_token_id], [-1.0] * (len(digits) + 1), ended=True)
    case.responses[3] = Generation([200, 180, 220], [-1.0] * 3, ended=False)
    rollout = scored(chain, models, case)
    expected = [
        read_by_hand(chain, p, r.ids, context, closing) for p, r in zip(case.prompts, case.responses, strict=True)
    ]
    assert rollout.scores_B.tolist() == pytest.approx(expected, abs=FLOAT32)
    assert rollout.reward_truncated_B is not None
    assert rollout.reward_truncated_B.tolist() == [False, True, False, False, False, False]


def test_with_the_policys_tokens_but_a_shorter_context_tokens_are_cut(tiny: Callable[[str], Path], tmp_path: Path):
    reward = save_reward(
        tmp_path / "reward", make_tiny_model(tmp_path / "made", "llama", hidden_size=48, seed=4), context=120
    )
    chain = chain_of(tmp_path, tiny("gpt2"), reward, "lora")
    models, case = chain.models(value_init="sft"), every_ending(chain.tokenizer)
    case.responses[0] = Generation(list(range(50, 170)), [-1.0] * 120, ended=False)
    rollout = scored(chain, models, case)
    expected = [read_by_hand(chain, p, r.ids, 120) for p, r in zip(case.prompts, case.responses, strict=True)]
    assert rollout.scores_B.tolist() == pytest.approx(expected, abs=FLOAT32)
    assert rollout.reward_truncated_B is not None
    assert rollout.reward_truncated_B.tolist() == [True] + [False] * 5


def test_a_prompt_without_room_stops_the_run_before_the_first_rollout(
    foreign: Callable[..., Chain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    chain = foreign("llama", "llama", "none", context=150)
    models = chain.models(value_init="sft")

    def fill(text: str) -> int:
        assert models.reading is not None
        return len(
            models.reading.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
            )
        )

    # Digits are no word of its tokenizer: one more is one token more.
    longest = "7" * next(n for n in range(1, 200) if fill("7" * n) == 149)
    models.check_prompts([Prompt(prompt=longest)], chain.tokenizer, 6)
    monkeypatch.setattr(training, "roll_out", lambda *given, **named: pytest.fail("a roll-out was made"))
    prompts = [*PROMPTS, Prompt(prompt=longest + "7", prompt_id="too-long")]
    with pytest.raises(ValueError, match=r"prompt 'too-long' has 150 tokens .* its context of 150"):
        train(small(), chain.config, models, chain.tokenizer, prompts, CHUNKS, 0, TEAM, tmp_path)
    assert not list(tmp_path.iterdir())
