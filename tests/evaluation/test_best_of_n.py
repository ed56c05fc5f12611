"""Best-of-n against every subset written out, in fractions; and the reward model that chooses against plain
transformers, text by text.
"""

import itertools
import math
import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from data.chat_template import PLAIN
from data.intervals import Bootstrap
from data.records import Prompt
from evaluation.best_of_n import BestOfN, Proxy, best_of_n_kl, choice_weights, sizes
from evaluation.compare import Answer
from evaluation.config import EvaluateConfig
from modeling.generation import Generation
from modeling.tiny import make_tiny_model
from reports.verdict import against_best_of_n
from tests.ppo.conftest import ALONE, PROMPTS, Chain, build_chain, chain_of, save_reward

ROUNDING = 1e-13
"""Sums of a dozen weights, each of which is off by a few parts in 1e16."""
FLOAT32 = 5e-5
LOUD = (
    "{% for message in messages %}<<{{ message['role'] }}>> {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<<assistant>> {% endif %}"
)


def mean_of_the_best(scores: Sequence[int], values: Sequence[Fraction | int], n: int) -> Fraction:
    """The oracle: every subset, its best answers, and the mean of their values where several are best."""
    found = []
    for subset in itertools.combinations(range(len(scores)), n):
        top = max(scores[index] for index in subset)
        best = [Fraction(values[index]) for index in subset if scores[index] == top]
        found.append(sum(best, Fraction(0)) / len(best))
    return sum(found, Fraction(0)) / len(found)


def estimate(scores: Sequence[float], values: Sequence[float], n: int) -> float:
    return float(choice_weights(scores, n) @ np.asarray(values, dtype=float))


@pytest.mark.parametrize("levels", [2, 4, 1000])
@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_the_estimate_is_the_mean_over_all_subsets_ties_chosen_equally_often(count: int, levels: int) -> None:
    chance = random.Random(10 * count + levels)
    for _ in range(4):
        scores, values = (
            [chance.randrange(levels) for _ in range(count)],
            [chance.randrange(-50, 50) for _ in range(count)],
        )
        for n in range(1, count + 1):
            assert estimate(scores, values, n) == pytest.approx(
                float(mean_of_the_best(scores, values, n)), abs=100 * ROUNDING
            )


def test_many_answers_do_not_overflow() -> None:
    weights = choice_weights(list(range(600)), 300)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    # The best is in half of all subsets of half the size, and the second best, where that one is missing, in half of
    # the rest, nearly.
    assert weights[-2:].tolist() == pytest.approx([300 / 600 * 300 / 599, 0.5], abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64])
def test_kl_of_best_of_n_is_that_of_a_distribution_cut_finely(n: int) -> None:
    def kl(atoms: int) -> float:
        """Of the best of n among atoms of equal probability, no two alike in score."""
        edges = (np.arange(atoms + 1) / atoms) ** n
        best = np.diff(edges)
        return float((best * np.log(np.maximum(best * atoms, 1e-300))).sum())

    # Each cut in five takes some of the ties away: the error falls with the width of an atom, from below.
    assert best_of_n_kl(n) == pytest.approx(kl(500_000), abs=n * 1e-5)
    assert kl(5) <= kl(25) + 1e-12 <= best_of_n_kl(n) + 2e-12, "with ties it is a bound"
    assert n == 1 or kl(5) < best_of_n_kl(n) - 1e-3


def test_sizes_double_up_to_the_largest() -> None:
    assert [sizes(largest) for largest in (1, 2, 3, 4, 16, 20)] == [
        [1],
        [1, 2],
        [1, 2, 3],
        [1, 2, 4],
        [1, 2, 4, 8, 16],
        [1, 2, 4, 8, 16, 20],
    ]


def rows_of(table: Sequence[Sequence[tuple[int, int, int]]]) -> list[list[Answer]]:
    """(proxy, rubric, chrF) of each answer to each prompt."""
    return [
        [Answer("", True, 1, {"proxy": float(p), "score": float(s), "chrf": float(c)}) for p, s, c in row]
        for row in table
    ]


def some_tables(seed: int) -> list[list[list[tuple[int, int, int]]]]:
    chance = random.Random(seed)
    return [
        [[(chance.randrange(6), chance.randrange(5), chance.randrange(30)) for _ in range(size)] for _ in range(4)]
        for size in (6, 2, 3)
    ]


def test_every_number_is_the_one_that_all_subsets_written_out_give() -> None:
    tables = some_tables(3)
    candidates, ppo, sft = map(rows_of, tables)
    found = BestOfN(candidates, ppo, sft, [0.8, 0.5, 0.9, 0.6], 0.0).results(Bootstrap(50))

    def better(a: int, b: int) -> Fraction:
        return Fraction(1 if a > b else 0) if a != b else Fraction(1, 2)

    def mean(values: Sequence[Fraction]) -> float:
        return float(sum(values, Fraction(0)) / len(values))

    def chosen(n: int, value: Callable[[int, tuple[int, int, int]], Fraction]) -> float:
        return mean(
            [
                mean_of_the_best([p for p, _, _ in row], [value(at, answer) for answer in row], n)
                for at, row in enumerate(tables[0])
            ]
        )

    def against(opponents: list[list[tuple[int, int, int]]]) -> Callable[[int, tuple[int, int, int]], Fraction]:
        return lambda at, answer: (
            sum((better(answer[1], other[1]) for other in opponents[at]), Fraction(0)) / len(opponents[at])
        )

    assert (found["prompts"], found["samples"], [row["n"] for row in found["rows"]]) == (4, 6, [1, 2, 4, 6])
    for row in found["rows"]:
        for index, name in enumerate(("proxy", "score", "chrf")):
            assert row[name]["mean"] == pytest.approx(
                chosen(row["n"], lambda at, answer, index=index: Fraction(answer[index])), abs=1e-12
            )  # type: ignore[misc]
            assert row[name]["low"] <= row[name]["mean"] <= row[name]["high"]
        assert row["win_rate"]["mean"] == pytest.approx(chosen(row["n"], against(tables[2])), abs=1e-12)
        assert row["kl"] == pytest.approx(math.log(row["n"]) - 1 + 1 / row["n"])
        assert row["proxy"]["n"] == 4, "the unit that is resampled is a prompt"
    assert len({row["win_rate"]["mean"] for row in found["rows"]}) > 2
    for index, name in enumerate(("proxy", "score", "chrf")):
        assert found["ppo"][name]["mean"] == pytest.approx(
            mean([Fraction(sum(answer[index] for answer in row), 2) for row in tables[1]])
        )
    pairs = [
        [better(a[1], b[1]) for a in row for b in others] for row, others in zip(tables[1], tables[2], strict=True)
    ]
    assert found["ppo"]["win_rate"]["mean"] == pytest.approx(mean([sum(row, Fraction(0)) / len(row) for row in pairs]))
    # KL 0.7: log 4 - 3/4 = 0.64 is nearer than log 5 - 4/5 = 0.81.
    assert found["ppo"]["kl"]["mean"] == pytest.approx(0.7)
    assert found["ppo_against"]["n"] == 4
    assert found["ppo_against"]["win_rate"]["mean"] == pytest.approx(1 - chosen(4, against(tables[1])), abs=1e-12)


@pytest.mark.parametrize(("kl", "n"), [(-0.1, 1), (0.0, 1), (0.45, 3), (0.95, 6), (40.0, 6)])
def test_ppo_meets_the_n_of_nearest_kl_and_the_report_says_when_none_is_near(kl: float, n: int) -> None:
    candidates, ppo, sft = map(rows_of, some_tables(4))
    found = BestOfN(candidates, ppo, sft, [kl] * 4, 0.0).results(Bootstrap(20))
    assert found["ppo_against"]["n"] == n
    said = against_best_of_n(found)
    assert ("PPO is " in said or "No difference" in said) == (n > 1), "SFT is not best-of-n"
    assert ("than to that of best of 2 (0.193 nats)" in said) == (n == 1)
    assert ("PPO's KL is above that of best of 6: raise" in said) == (kl == 40.0)


def test_one_answer_a_prompt_is_sft_and_no_more() -> None:
    _, ppo, sft = some_tables(5)
    found = BestOfN(rows_of([row[:1] for row in ppo]), rows_of(ppo), rows_of(sft), [1.0] * 4, 0.0).results(
        Bootstrap(20)
    )
    assert [row["n"] for row in found["rows"]] == [1]
    assert found["rows"][0]["proxy"]["mean"] == sum(row[0][0] for row in ppo) / 4
    assert against_best_of_n(found).startswith("With one answer per prompt there is nothing to choose from")


def endings(chain: Chain) -> list[list[Generation]]:
    """Three answers to each prompt: one that ends, one cut off, and one that is an EOS alone."""
    eos, chance = chain.tokenizer.eos_token_id, random.Random(1)

    def said(ids: list[int]) -> Generation:
        return Generation(ids, [-1.0] * len(ids), ids[-1] == eos)

    def words(count: int) -> list[int]:
        return [chance.randrange(260, 500) for _ in range(count)]

    return [[said([*words(5 + index), eos]), said(words(9)), said([eos])] for index in range(len(PROMPTS))]


def plain_reader(chain: Chain) -> Callable[[Prompt, list[int]], float]:
    """The oracle: plain transformers on the answer's text, one unpadded row."""
    model = AutoModelForSequenceClassification.from_pretrained(chain.reward / "model").eval()
    policy, reward = (
        AutoTokenizer.from_pretrained(chain.sft / "model"),
        AutoTokenizer.from_pretrained(chain.reward / "model"),
    )

    def read(prompt: Prompt, response: list[int]) -> float:
        ended = response[-1] == policy.eos_token_id
        before = reward.apply_chat_template(prompt.messages, add_generation_prompt=True, tokenize=False)
        after = policy.decode(response[:-1] if ended else response, skip_special_tokens=True).strip()
        ids = [token for text in (before, after) for token in reward(text, add_special_tokens=False)["input_ids"]]
        ids += [reward.eos_token_id] * ended
        with torch.no_grad():
            return (
                float(model.score(model.base_model(torch.tensor([ids])).last_hidden_state[0, -1]))
                - model.config.score_bias
            )

    return read


@pytest.mark.parametrize("kind", ["adapter on the SFT model", "all weights", "another family"])
def test_the_reward_model_reads_answers_as_ppo_does(kind: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    if kind == "another family":
        corpus = ["zebra quartz vexing jumps over lazy dogs; what a cat is, and why rivers are cold. " * 3]
        made = make_tiny_model(
            tmp_path / "made", "gpt2", vocab_size=330, hidden_size=48, layers=3, seed=4, corpus=corpus
        )
        chain = chain_of(tmp_path, tiny("llama"), save_reward(tmp_path / "reward", made, LOUD, eos="</s>"), "lora")
        # The policy's template, which is not forced on a reward model that has its own.
        (tmp_path / "template.jinja").write_text(PLAIN)
        chain.config.chat_template = str(tmp_path / "template.jinja")
    else:
        chain = build_chain(tmp_path, "lora" if kind.startswith("adapter") else "none")
    sets = [[row[:2] for row in endings(chain)], [row[2:] for row in endings(chain)]]
    proxy = Proxy.of(chain.sft / "model", chain.reward / "model", chain.config, False)
    proxy.check(PROMPTS)
    assert proxy.tokens.same_prompts == (kind != "another family")
    read = plain_reader(chain)
    expected = [
        [[read(prompt, answer.ids) for answer in row] for prompt, row in zip(PROMPTS, rows, strict=True)]
        for rows in sets
    ]
    for max_tokens in (1, 60, 10_000):  # each answer by itself, some together, all in one pass
        found = proxy.scores(PROMPTS, sets, max_tokens, ALONE)
        for rows, wanted in zip(found, expected, strict=True):
            for row, own in zip(rows, wanted, strict=True):
                assert row == pytest.approx(own, abs=FLOAT32)
    assert np.std([score for row in expected[0] for score in row]) > 0.01


def test_a_prompt_without_room_in_the_reward_model_is_refused_before_anything_is_sampled(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    chain = chain_of(tmp_path, tiny("llama"), save_reward(tmp_path / "reward", tiny("gpt2"), LOUD, context=12), "lora")
    with pytest.raises(ValueError, match="no room for an answer in its context of 12"):
        Proxy.of(chain.sft / "model", chain.reward / "model", chain.config, False).check(PROMPTS)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"best_of_n": -1}, "evaluate.best_of_n=-1 must be at least 0"),
        ({"best_of_n": 4, "temperature": 0.0}, "greedy answers to a prompt are identical"),
        ({"best_of_n": 4, "top_k": 1}, "greedy answers to a prompt are identical"),
        ({"best_of_n_prompts": 0}, "evaluate.best_of_n_prompts=0 must be at least 1"),
        ({"max_prompts": 0}, "evaluate.max_prompts=0 must be at least 1"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(changes: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EvaluateConfig(**changes).validate()  # type: ignore[arg-type]
