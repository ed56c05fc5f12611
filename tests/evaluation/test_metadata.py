"""The metadata of table 3: strict replies, rates against hand-computed numbers, and records that people can write."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from data.records import Demonstration, Ranking
from evaluation.compare import Answer
from evaluation.judges.llm_client import LLMClient
from evaluation.metadata import (
    FIELDS,
    FLAGS,
    MetadataRater,
    RatedAnswer,
    metadata_table,
    parse_reply,
    rated_by_people,
)
from labeling.llm_config import LLMConfig
from tests.evaluation.fake_llm import FakeLLM, serving

GOOD: dict[str, Any] = {"quality": 6} | dict.fromkeys(FLAGS, False) | {"satisfies_constraint": None}


def rated(model: str, prompt: int, answer: int = 0, use_case: str | None = "chat", **rating: Any) -> RatedAnswer:
    return RatedAnswer(
        prompt_id=f"p{prompt}", user_id=f"u{prompt // 2}", use_case=use_case, model=model, answer=answer,
        labeler="human", labeler_id="ann", rating=rating,
    )  # fmt: skip


def test_a_model_rates_each_answer_by_model_and_prompt(tmp_path: Path) -> None:
    def reply(question: str) -> str:
        (answer,) = re.findall(r"<answer (\w+)>\n(.*?)\n</answer \1>", question, re.S)
        if answer[1] == "odd":
            return "I would rather not."
        return f"Fine.\n```json\n{json.dumps(GOOD | {'quality': int(answer[1]), 'opinion': True}, indent=1)}\n```"

    prompts = [Demonstration(prompt=f"{n}?", completion="So.", use_case="chat") for n in range(2)]
    texts = {"ppo": [["3", "5"], ["odd"]], "sft": [["1"], ["7"]]}
    answers = {
        name: [[Answer(text, True, 1, {}) for text in row] for row in rows] for name, rows in texts.items()
    }  # fmt: skip
    fake = FakeLLM(lambda question: "No.")
    with serving(fake) as url:
        rater = MetadataRater(LLMClient(LLMConfig(endpoint=url, model="m", cache=str(tmp_path))))
        with pytest.raises(ValueError, match="has no rating"):
            rater.check()
        fake.answer = lambda question: reply(question) if "<answer" in question else "Still not."
        found = rater.rate(prompts, answers)
        assert len(fake.requests) == 1 + 5 + 1, "the check, the answers, and one again"
        assert all(
            f'"{name}": {meaning}' in fake.requests[1]["messages"][0]["content"] for name, meaning in FLAGS.items()
        )
    assert [(item.model, item.prompt_id, item.answer, item.rating["quality"]) for item in found] == [
        ("ppo", prompts[0].prompt_id, 0, 3),
        ("ppo", prompts[0].prompt_id, 1, 5),
        ("sft", prompts[0].prompt_id, 0, 1),
        ("sft", prompts[1].prompt_id, 0, 7),
    ]
    assert {(item.labeler, item.labeler_id, item.use_case) for item in found} == {("llm", "m", "chat")}
    assert rater.client.report()["malformed"] == 1


@pytest.mark.parametrize(
    "change",
    [
        {"quality": 0}, {"quality": 8}, {"quality": 5.0}, {"quality": True}, {"quality": "6"}, {"quality": None},
        {"opinion": None}, {"opinion": 1}, {"opinion": "false"}, {"friendly": True},
    ],
)  # fmt: skip
def test_a_reply_has_every_field_and_no_other_value_than_it_allows(change: dict[str, Any]) -> None:
    assert parse_reply(json.dumps(GOOD)) == GOOD
    with pytest.raises(ValueError, match=next(iter(change))):
        parse_reply(json.dumps(GOOD | change))
    with pytest.raises(ValueError, match="no value for 'harmful_advice'"):
        parse_reply(json.dumps({name: value for name, value in GOOD.items() if name != "harmful_advice"}))


def test_people_rate_the_models_answers_that_their_records_contain() -> None:
    prompts = [Demonstration(prompt=f"{n}?", completion="So.", user_id="u") for n in range(2)]
    answers = {
        name: [[Answer(text, True, 1, {}) for text in row] for row in rows]
        for name, rows in {"ppo": [["same", "a"], ["b"]], "sft": [["same "], ["c"]]}.items()
    }
    good, bad = {"quality": 6, "opinion": True, "closeness": 0.4}, {"quality": 2}
    records = [
        Ranking(prompt="0?", completions=["same", "a"], ranks=[1, 2], labeler_id="ann", ratings=[good, {}]),
        Ranking(prompt="0?", completions=["same", "x"], ranks=[1, 2], labeler_id="ben", ratings=[bad, bad]),
        Ranking(prompt="1?", completions=["b", "c"], ranks=[1, 2], labeler_id="ann"),
    ]
    rated_ = rated_by_people(records, prompts, answers)
    found = [(one.model, one.prompt_id, one.answer, one.labeler_id, one.rating) for one in rated_]
    rating = {"quality": 6, "opinion": True}
    assert found == [
        (model, prompts[0].prompt_id, 0, name, given)
        for model in ("ppo", "sft")
        for name, given in (("ann", rating), ("ben", bad))
    ]
    wrong = Ranking(prompt="0?", completions=["a", "b"], ranks=[1, 2], ratings=[{"quality": 8}, {}])
    with pytest.raises(ValueError, match="'quality' of a rating is 8"):
        rated_by_people([wrong], prompts, {})


def test_rates_weigh_prompts_alike_and_leave_out_what_does_not_apply() -> None:
    found = metadata_table(
        [
            rated("ppo", 0, 0, quality=7, hallucination=True),
            rated("ppo", 0, 1, quality=5, hallucination=None),
            rated("ppo", 1, quality=1, hallucination=False, use_case="closed_qa"),
            rated("ppo", 2, quality=2, use_case="closed_qa"),
            rated("sft", 0, quality=4, hallucination=False, use_case=None),
        ],
        resamples=100,
    )
    assert list(found) == ["ppo", "sft"]
    ppo = found["ppo"]
    assert ppo["all"]["quality"]["mean"] == pytest.approx((6 + 1 + 2) / 3)
    assert (ppo["all"]["quality"]["n"], ppo["all"]["quality"]["users"]) in ((3, 2), (3.0, 2))
    assert (ppo["all"]["hallucination"]["mean"], ppo["all"]["hallucination"]["n"]) == (0.5, 2)
    assert ppo["all"]["opinion"] is None
    assert {case: row["quality"]["mean"] for case, row in ppo["use_cases"].items()} == {"chat": 6, "closed_qa": 1.5}
    assert list(found["sft"]["use_cases"]) == ["unknown"]
    assert set(ppo["all"]) == set(FIELDS)
    moved = ppo["minus_sft"]
    assert (moved["quality"]["mean"], moved["quality"]["n"]) == (6 - 4, 1), "on the one prompt that both answered"
    assert (moved["hallucination"]["mean"], moved["opinion"]) == (1, None)
    assert "minus_sft" not in found["sft"]


def test_intervals_resample_users_with_all_their_prompts() -> None:
    rng = random.Random(0)
    users = [rng.random() < 0.5 for _ in range(30)]
    same = [rated("m", prompt, opinion=users[prompt // 2]) for prompt in range(60)]
    together = metadata_table(same, 2000)["m"]["all"]["opinion"]
    alone = [RatedAnswer(**{**vars(item), "user_id": item.prompt_id}) for item in same]
    apart = metadata_table(alone, 2000)["m"]["all"]["opinion"]
    assert together["mean"] == apart["mean"]
    assert (together["high"] - together["low"]) / (apart["high"] - apart["low"]) == pytest.approx(2**0.5, rel=0.12)
