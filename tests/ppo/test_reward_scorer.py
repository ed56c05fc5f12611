"""A reward model with its own tokenizer, template or context scores the text of prompt and response, in the tokens and
the layout that it was trained on.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from data.chat_template import PLAIN
from data.records import Prompt
from modeling.generation import Generation
from modeling.load import knows_tokens, load_tokenizer, same_tokenizer
from modeling.tiny import CONTEXT_LENGTH, make_tiny_model
from ppo.actor_critic import ActorCritic
from ppo.experience import Rollout
from ppo.trainer import PPOData
from tests.ppo.conftest import ALONE, CHUNKS, PROMPTS, Chain, chain_of, save_reward, small

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


def scored(chain: Chain, models: ActorCritic, case: Case) -> tuple[list[float], list[bool]]:
    """(scores of the case, whether each response was truncated); in micro-batches of at most two episodes."""
    rollout = Rollout(case.prompts, prompt_ids(chain, case), case.responses, ALONE.device)
    rollout.make_micro_batches([[0, 1], [2, 3], [4, 5]], max_tokens=80)
    scores_B, truncated_B = models.rewards.scorers[0].scores(rollout.batches, rollout.episodes(), max_tokens=80)
    return scores_B.tolist(), truncated_B.tolist()


def prompt_ids(chain: Chain, case: Case) -> list[list[int]]:
    """The prompts in the policy's tokens."""
    render = chain.tokenizer.apply_chat_template
    return [list(render(prompt.messages, add_generation_prompt=True, return_dict=False)) for prompt in case.prompts]


def by_hand(
    chain: Chain, case: Case, context: int = CONTEXT_LENGTH, answer_suffix: list[int] | None = None
) -> list[float]:
    """The oracle, apart from the code under test: plain transformers, text by text, one unpadded row each."""
    policy = AutoTokenizer.from_pretrained(chain.sft / "model")
    reward = AutoTokenizer.from_pretrained(chain.reward / "model")
    model = AutoModelForSequenceClassification.from_pretrained(chain.reward / "model").eval()
    eos = policy.convert_tokens_to_ids(policy.eos_token)
    rows = []
    for prompt, response in zip(case.prompts, case.responses, strict=True):
        asked = reward.apply_chat_template(prompt.messages, add_generation_prompt=True, tokenize=False)
        before = reward(asked, add_special_tokens=False)["input_ids"]
        text = policy.decode([token for token in response.ids if token not in policy.all_special_ids]).strip()
        answer = reward(text, add_special_tokens=False)["input_ids"]
        if answer_suffix is None:
            answer += [reward.eos_token_id] * (response.ids[-1] == eos)
            rows.append((before + (answer or [reward.eos_token_id]))[:context])
        else:
            answer = answer or ([] if answer_suffix else [reward.eos_token_id])
            rows.append((before + answer)[: context - len(answer_suffix)] + answer_suffix)
    return [read(model, row) for row in rows]


@torch.no_grad()
def read(model: Any, ids: list[int]) -> float:
    """The score at the last token, by a plain call."""
    hidden_H: Tensor = model.base_model(torch.tensor([ids])).last_hidden_state[0, -1]
    return float(model.score(hidden_H)) - model.config.score_bias


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
def test_scores_are_those_of_the_text(foreign: Callable[..., Chain], policy: str, reward: str, adapter: str):
    chain = foreign(policy, reward, adapter)
    case = every_ending(chain.tokenizer)
    scores, truncated = scored(chain, chain.models(value_init="sft"), case)
    expected = by_hand(chain, case)
    assert scores == pytest.approx(expected, abs=FLOAT32)
    assert torch.tensor(expected).std() > 0.1
    assert truncated == [False] * 6


def test_the_reward_model_keeps_its_own_template(foreign: Callable[..., Chain], tmp_path: Path):
    chain = foreign("llama", "gpt2", "lora")
    (tmp_path / "template.jinja").write_text(PLAIN)
    chain.config.chat_template = str(tmp_path / "template.jinja")
    chain.tokenizer = load_tokenizer(chain.sft / "model", chain.config)
    case = every_ending(chain.tokenizer)
    scores, _ = scored(chain, chain.models(value_init="sft"), case)
    assert scores == pytest.approx(by_hand(chain, case), abs=FLOAT32)


@pytest.mark.parametrize("template", [LOUD, None], ids=["another template", "the policy's"])
def test_responses_are_tokenized_as_the_rankings_were_and_not_as_they_were_sampled(
    template: str | None, tiny: Callable[[str], Path], tmp_path: Path
):
    made = make_tiny_model(tmp_path / "made", "gpt2", hidden_size=48, layers=3, seed=4)
    reward = save_reward(tmp_path / "reward", made, template=template)
    chain = chain_of(tmp_path, tiny("llama"), reward, "lora")
    case = every_ending(chain.tokenizer)
    scores, _ = scored(chain, chain.models(), case)
    expected = by_hand(chain, case)
    assert scores == pytest.approx(expected, abs=FLOAT32)
    # The last response was sampled letter by letter, as no tokenizer splits it.
    model = AutoModelForSequenceClassification.from_pretrained(reward / "model").eval()
    assert abs(read(model, prompt_ids(chain, case)[5] + case.responses[5].ids) - expected[5]) > 0.01


def test_only_micro_batches_with_a_response_of_equal_tokens_are_read_in_the_policys_tokens(
    tiny: Callable[[str], Path], tmp_path: Path
):
    made = make_tiny_model(tmp_path / "made", "gpt2", hidden_size=48, layers=3, seed=4)
    chain = chain_of(tmp_path, tiny("llama"), save_reward(tmp_path / "reward", made), "lora")
    models, case = chain.models(), every_ending(chain.tokenizer)
    rollout = Rollout(case.prompts, prompt_ids(chain, case), case.responses, ALONE.device)
    rollout.make_micro_batches([[0], [1, 5], [2], [3, 4]], max_tokens=1000)
    given: list[Any] = []
    models.rewards.scorers[0].model.register_forward_pre_hook(lambda module, arguments: given.append(arguments[0]))
    models.rewards.scorers[0].scores(rollout.batches, rollout.episodes(), max_tokens=1000)
    mine = [rows for rows, batch in rollout.batches.items() if any(batch is other for other in given)]
    # Responses 1 (leading blank), 3, 4 and 5 change: they are stripped, or tokenized otherwise.
    assert mine == [(0,), (2,)]
    assert len(given) == 3
    assert len(given[-1]) == 4
    # A process without prompts that makes passes for the others (`layer` mode).
    scores_B, truncated_B = models.rewards.scorers[0].scores({(): rollout.batch(())}, [], max_tokens=1000)
    assert scores_B.shape == truncated_B.shape == (0,)
    assert truncated_B.dtype == torch.bool


def test_a_micro_batch_with_an_id_or_a_length_that_the_reward_model_lacks_is_read_as_text(
    tiny: Callable[[str], Path], tmp_path: Path
):
    """Each micro-batch has a response whose tokens stay the same, too; GPT-2 has an embedding for each position."""
    made = make_tiny_model(tmp_path / "made", "gpt2", hidden_size=48, layers=3, seed=4)
    chain = chain_of(tmp_path, tiny("llama"), save_reward(tmp_path / "reward", made), "lora")
    model = AutoModelForSequenceClassification.from_pretrained(chain.reward / "model")
    model.transformer.wpe = torch.nn.Embedding.from_pretrained(model.transformer.wpe.weight[:100].clone())
    model.config.n_positions = 100
    model.save_pretrained(chain.reward / "model")
    models, case = chain.models(value_init="sft"), every_ending(chain.tokenizer)
    long, lacking = (
        [60, 61] * 60,
        [model.config.vocab_size + 5, 60, 61],
    )  # policies may have more embeddings than tokens
    for number, ids in ((1, lacking), (3, long)):
        case.responses[number] = Generation(ids, [-1.0] * len(ids), ended=False)
    rollout = Rollout(case.prompts, prompt_ids(chain, case), case.responses, ALONE.device)
    rollout.make_micro_batches([[0, 1], [2, 3], [4, 5]], max_tokens=1000)
    scores_B, truncated_B = models.rewards.scorers[0].scores(rollout.batches, rollout.episodes(), max_tokens=1000)
    assert truncated_B.tolist() == [False, False, False, True, False, False]
    case.responses[1] = Generation([60, 61], [-1.0] * 2, ended=False)  # an id without a token has no text
    assert scores_B.tolist() == pytest.approx(by_hand(chain, case, context=100), abs=FLOAT32)


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


def test_a_response_too_long_for_the_reward_model_is_truncated_at_its_end_and_counted(
    foreign: Callable[..., Chain], tmp_path: Path
):
    short = foreign("llama", "llama", "none", context=150)
    models, case = short.models(value_init="sft"), every_ending(short.tokenizer)
    words = short.tokenizer("why 0123456789 " * 14, add_special_tokens=False)["input_ids"]
    case.responses[1] = Generation(words, [-1.0] * len(words), ended=False)
    case.responses[5] = Generation([*words, short.tokenizer.eos_token_id], [-1.0] * (len(words) + 1), ended=True)
    scores, truncated = scored(short, models, case)
    expected, whole = by_hand(short, case, 150), by_hand(short, case, 10_000)
    assert scores == pytest.approx(expected, abs=FLOAT32)
    assert [abs(a - b) > 1e-3 for a, b in zip(expected, whole, strict=True)] == truncated
    assert truncated == [False, True, False, False, False, True]

    short.trainer(tmp_path, small(), models).train()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["reward_truncated"] for row in rows] == [0.0, 0.0]


@pytest.mark.parametrize("answer_suffix", [[7, 9], []])
@pytest.mark.parametrize("tokens", ["its own", "the policy's"])
def test_a_downloaded_reward_models_closing_follows_every_answer_even_a_truncated_one(
    tokens: str, answer_suffix: list[int], tiny: Callable[[str], Path], tmp_path: Path
):
    context = 120
    own = {"vocab_size": 330, "corpus": OTHER_WORDS} if tokens == "its own" else {}
    made = make_tiny_model(tmp_path / "made", "gpt_neox", hidden_size=48, seed=4, **own)
    reward = save_reward(tmp_path / "reward", made, context=context, answer_suffix=answer_suffix)
    chain = chain_of(tmp_path, tiny("llama"), reward, "lora")
    models, case = chain.models(value_init="sft"), every_ending(chain.tokenizer)
    digits = chain.tokenizer("0123456789" * 12, add_special_tokens=False)["input_ids"]
    case.responses[1] = Generation([*digits, chain.tokenizer.eos_token_id], [-1.0] * (len(digits) + 1), ended=True)
    case.responses[3] = Generation([200, 180, 220], [-1.0] * 3, ended=False)
    scores, truncated = scored(chain, models, case)
    assert scores == pytest.approx(by_hand(chain, case, context, answer_suffix), abs=FLOAT32)
    assert truncated == [False, True, False, False, False, False]


def test_a_reward_model_with_the_policys_tokens_and_a_shorter_context_truncates(
    tiny: Callable[[str], Path], tmp_path: Path
):
    made = make_tiny_model(tmp_path / "made", "llama", hidden_size=48, seed=4)
    chain = chain_of(tmp_path, tiny("gpt2"), save_reward(tmp_path / "reward", made, context=120), "lora")
    case = every_ending(chain.tokenizer)
    case.responses[0] = Generation(list(range(50, 170)), [-1.0] * 120, ended=False)
    scores, truncated = scored(chain, chain.models(value_init="sft"), case)
    assert scores == pytest.approx(by_hand(chain, case, 120), abs=FLOAT32)
    assert truncated == [True] + [False] * 5


def test_a_prompt_without_room_is_refused_before_the_first_rollout(foreign: Callable[..., Chain], tmp_path: Path):
    chain = foreign("llama", "llama", "none", context=150)
    models = chain.models(value_init="sft")
    assert models.rewards.scorers[0].tokens is not None
    render = models.rewards.scorers[0].tokens.tokenizer.apply_chat_template

    def tokens(text: str) -> int:
        return len(render([{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False))

    # Digits are no word of its tokenizer: one more is one token more.
    longest = "7" * next(n for n in range(1, 200) if tokens("7" * n) == 149)
    models.check_prompts([Prompt(prompt=longest)], chain.tokenizer, 6)
    prompts = [*PROMPTS, Prompt(prompt=longest + "7", prompt_id="too-long")]
    with pytest.raises(ValueError, match=r"prompt 'too-long' has 150 tokens .* its context of 150"):
        chain.trainer(tmp_path, small(), models, PPOData(prompts, CHUNKS))
    assert not list(tmp_path.iterdir())
