"""Every judge finds a planted preference whichever side it is on; gold scores are evaluate_reward's, and people's
records are read back.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from data.files import write_records
from data.records import Demonstration, Ranking
from data.tokenize import encode_completion
from evaluation.compare import Answer, Verdicts
from evaluation.config import EvaluateConfig, GoldConfig, HumanConfig
from evaluation.judges.gold import GoldJudge
from evaluation.judges.human import HumanJudge
from evaluation.judges.likelihood import REQUEST, ReferenceLikelihoodJudge
from evaluation.judges.simulated import ChrfJudge, RubricJudge
from evaluation.judges.table import JudgeInputs, make_judge
from evaluation.models import ComparedModel
from evaluation.reward_scores import SavedRewardModel
from labeling.config import LabelsConfig
from modeling.config import ModelConfig
from modeling.generation import Generation
from modeling.load import autocast_dtype, load_scalar
from modeling.models import reward_model
from modeling.run import Run
from modeling.tiny import make_tiny_model
from reward.batches import ranking_example
from reward.scoring import score_all
from tests.fakes import FakeAccelerator
from tests.ppo.conftest import save_reward

PROMPTS = [
    Demonstration(prompt=text, completion=f"So it is with {text.lower()}", user_id=user)
    for text, user in (("Why?", "ann"), ("What is the capital of France?", "ann"), ("Write a poem.", "ben"))
]
WORDS = LabelsConfig(closeness="words")


def said(*texts: str, complete: bool = True) -> list[Answer]:
    return [Answer(text, complete, len(text)) for text in texts]


def swapped(verdicts: Verdicts) -> list[list[list[float | None]]]:
    """What the same judge has to say with the two sides exchanged."""
    return [
        [[None if verdict is None else 1 - verdict for verdict in column] for column in zip(*rows, strict=True)]
        for rows in verdicts
    ]


def human(prompts: Sequence[Demonstration], ours: Any, theirs: Any) -> HumanJudge:
    """People who prefer our first answer to their first one."""
    return HumanJudge(
        Ranking(prompt=prompt.prompt, completions=[left[0].text, right[0].text], ranks=[1, 2])
        for prompt, left, right in zip(prompts, ours, theirs, strict=True)
    )


@pytest.mark.parametrize("name", ["rubric", "chrf", "gold", "human"])
def test_a_planted_preference_is_found_on_either_side(
    name: str, tiny_scalar: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    ours = [said(prompt.completion) for prompt in PROMPTS]
    theirs = [said("Nothing of the kind, sir, nothing", prompt.completion) for prompt in PROMPTS]
    if name == "gold":
        place = save_reward(tmp_path, make_tiny_model(tmp_path / "made"))
        config = ModelConfig(base="unused", device="cpu")
        judge: Any = GoldJudge.of(GoldConfig(model=str(place / "model")), config, 200, FakeAccelerator())
        # A reward model of random weights prefers something: take what it prefers as ours.
        flat = judge.scores(PROMPTS, [[*a, *b] for a, b in zip(ours, theirs, strict=True)])
        assert all(row[0] != row[1] for row in flat)
        expected = [[[float(row[0] > row[1]), 0.5]] for row in flat]
    else:
        judge = {"rubric": RubricJudge(WORDS), "chrf": ChrfJudge(), "human": human(PROMPTS, ours, theirs)}[name]
        expected = [[[1.0, 0.5]]] * 3
    assert judge.name == name
    assert not judge.taught
    found = judge.preferences(PROMPTS, ours, theirs)
    assert found == expected
    assert judge.preferences(PROMPTS, theirs, ours) == swapped(found)


def test_the_likelihood_of_the_reference_is_plain_transformers_after_the_answer_and_a_request(tmp_path: Path) -> None:
    place = make_tiny_model(tmp_path / "made")
    judge = ReferenceLikelihoodJudge(str(place), ModelConfig(base=str(place), device="cpu"), 90, FakeAccelerator())
    judge.check(PROMPTS)
    rows = [said("So it is.", "No, <|im_end|> never."), said(), said("")]
    found = judge.scores(PROMPTS, rows)
    tokenizer = AutoTokenizer.from_pretrained(place)
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    for prompt, row, scores in zip(PROMPTS, rows, found, strict=True):
        assert len(row) == len(scores)
        for answer, score in zip(row, scores, strict=True):
            before = [*prompt.messages, {"role": "assistant", "content": answer.text}, REQUEST]
            ids = tokenizer.apply_chat_template(
                before, add_generation_prompt=True, return_dict=False, sanitize_control_tokens=True
            )
            reference = tokenizer(prompt.completion, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            with torch.no_grad():
                logits = model(torch.tensor([ids + reference])).logits[0, len(ids) - 1 : -1].double()
            chosen = logits.log_softmax(-1).gather(1, torch.tensor(reference)[:, None])
            assert score == pytest.approx(chosen.mean().item(), abs=1e-5)


def test_an_answer_too_long_for_the_base_model_is_truncated_and_a_prompt_without_room_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_tiny_model(tmp_path / "made")
    judge = ReferenceLikelihoodJudge(str(place), ModelConfig(base=str(place), device="cpu"), 90, FakeAccelerator())
    monkeypatch.setattr("evaluation.judges.likelihood.context_length", lambda *_, **__: 70)
    room = judge._room(PROMPTS[0])
    long = said("so " * 100, "so " * room)
    first, second = judge.scores(PROMPTS[:1], [long])[0]
    assert first == pytest.approx(second)
    for start in range(8):  # a cut in the middle of a character, which has several tokens
        cut = judge._shortened(PROMPTS[0], "s" * start + "\N{GRINNING FACE}" * 100)
        example = judge._example(PROMPTS[0], cut)
        assert room - 10 < len(encode_completion(judge._tokenizer, cut, ends=False)) <= room
        assert len(example.prompt) + len(example.answers[0]) <= 70
    with pytest.raises(ValueError, match="leave no room for an answer in the base model's context of 70"):
        judge.check([replace(PROMPTS[0], completion="so " * 100)])


def test_the_rubric_ties_within_its_width_and_chrf_only_at_equal_scores() -> None:
    near = [said(prompt.completion + " indeed so") for prompt in PROMPTS]
    same = [said(prompt.completion) for prompt in PROMPTS]
    wide = RubricJudge(LabelsConfig(closeness="words", tie_width=10.0))
    assert wide.preferences(PROMPTS, near, same) == [[[0.5]]] * 3
    assert ChrfJudge().preferences(PROMPTS, near, same) == [[[0.0]]] * 3


def test_an_answer_is_judged_once_however_many_comparisons_it_is_in() -> None:
    judge, asked = ChrfJudge(), list[str]()
    overlap = judge.overlap.judge

    def counted(new: Any) -> Any:
        asked.extend(answer.text for _, answer in new)
        return overlap(new)

    judge.overlap.judge = counted
    rows = [said("a", "b"), said("a"), said("c", "c")]
    first = judge.scores(PROMPTS, rows)
    assert judge.scores(PROMPTS, rows) == first
    assert asked == ["a", "b", "a", "c"], "the same text answers two prompts"


def test_answers_are_the_text_without_eos_and_its_measures(tiny_tokenizer: Any, tiny_llama: Path) -> None:
    def generated(text: str, ended: bool) -> Generation:
        ids = encode_completion(tiny_tokenizer, text, ended)
        return Generation(ids, [0.0] * len(ids), ended)

    reference = PROMPTS[0].completion
    given = [[generated(reference, True), generated("So it", False)], [generated("", True)]]
    model = ComparedModel("sft", str(tiny_llama), ModelConfig(device="cpu"), 1)
    answers = model.answers(given, tiny_tokenizer, tiny_tokenizer)
    same, cut = answers[0]
    assert (same.text, same.complete, same.tokens) == (reference, True, len(given[0][0].ids))
    assert (cut.text, cut.complete) == ("So it", False)
    rubric = RubricJudge(LabelsConfig(closeness="words", disagreement=0.99))
    [[whole, part], [empty]] = rubric.parts(PROMPTS[:2], answers)
    assert whole.closeness == pytest.approx(1)
    assert whole.score == pytest.approx(1.3 - 0.5 * whole.profanity), "closeness 1.0 + complete 0.3, nothing repeated"
    assert rubric.scores(PROMPTS[:2], answers)[0] == [whole.score, part.score], "a labeler without misjudgments"
    [[full, some], [none]] = ChrfJudge().scores(PROMPTS[:2], answers)
    assert (full, none, empty.closeness) == (pytest.approx(1), 0, 0)
    assert 0 < some < 1


LOUD = (
    "{% for message in messages %}<<{{ message['role'] }}>> {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<<assistant>> {% endif %}"
)


@pytest.mark.parametrize("suffix", [None, [7, 9]])
def test_gold_scores_are_those_of_evaluate_reward(suffix: list[int] | None, tmp_path: Path) -> None:
    """For a reward model of another family, tokenizer, template and context, downloaded or trained here."""
    corpus = ["zebra quartz vexing jumps over lazy dogs; what a cat is, and why rivers are cold. " * 3]
    made = make_tiny_model(tmp_path / "made", "gpt2", vocab_size=330, hidden_size=48, layers=3, seed=4, corpus=corpus)
    place = save_reward(tmp_path / "gold", made, LOUD, eos="</s>", answer_suffix=suffix) / "model"
    config = ModelConfig(base="unused", device="cpu")
    texts, complete = ["A cat is what it is.", "quartz", "", "Because rivers are cold"], [True, False, True, False]
    answers = [[Answer(text, ended, 1) for text, ended in zip(texts, complete, strict=True)]] * len(PROMPTS)
    # As stages/evaluate_reward.py scores rankings of the same answers.
    saved = SavedRewardModel.of(place, config, "evaluate_reward.model")
    rankings = [
        Ranking(prompt=prompt.prompt, completions=texts, complete=complete, ranks=[1, 2, 3, 4]) for prompt in PROMPTS
    ]
    items = [ranking_example(saved.tokenizer, ranking, saved.answer_suffix) for ranking in rankings]
    model = reward_model(load_scalar(place, config, saved.tokenizer), autocast_dtype(config, FakeAccelerator().device))
    expected = score_all(model, items, 10_000, FakeAccelerator())
    assert len({score for row in expected for score in row}) == 12, "the model tells all answers apart"
    for max_tokens in (30, 1000):
        judge = GoldJudge.of(GoldConfig(model=str(place)), config, max_tokens, FakeAccelerator())
        judge.check(PROMPTS)
        found = judge.scores(PROMPTS, answers)
        for row, other in zip(found, expected, strict=True):
            assert row == pytest.approx(other, abs=5e-5)


def test_a_score_that_is_not_finite_stops_the_judge(tmp_path: Path) -> None:
    place = save_reward(tmp_path / "gold", make_tiny_model(tmp_path / "made")) / "model"
    weights = load_file(place / "model.safetensors")
    weights["score.weight"] = torch.sign(weights["score.weight"]) * 3e38
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    judge = GoldJudge.of(GoldConfig(model=str(place)), ModelConfig(base="unused", device="cpu"), 500, FakeAccelerator())
    with pytest.raises(ValueError, match=r"gold/model: a score is (nan|-?inf): weights or activations .* overflow"):
        judge.scores(PROMPTS, [said("So it is.", "Never.")] * len(PROMPTS))


def test_a_prompt_that_leaves_the_gold_model_no_room_is_refused_and_a_long_answer_truncated(tmp_path: Path) -> None:
    place = save_reward(tmp_path / "gold", make_tiny_model(tmp_path / "made"), context=60) / "model"
    judge = GoldJudge.of(GoldConfig(model=str(place)), ModelConfig(base="unused", device="cpu"), 500, FakeAccelerator())
    with pytest.raises(ValueError, match="for the judge gold, which leaves no room for an answer in its context of 60"):
        judge.check([Demonstration(prompt="Why? " * 60, completion="So.")])
    long, longer = "So it is, my friend. " * 30, "So it is, my friend. " * 40
    ((one, other),) = judge.scores(PROMPTS[:1], [said(long, longer, complete=False)])
    assert one == pytest.approx(other, abs=5e-6), "the same tokens in other batches"


def test_peoples_records_are_read_back_and_pairs_that_nobody_ranked_have_no_verdict(tmp_path: Path) -> None:
    path = tmp_path / "people.jsonl"
    asked = PROMPTS[0].prompt
    write_records(
        path,
        [
            Ranking(prompt=asked, completions=["good", "bad ", "other"], ranks=[1, 2, None], labeler_id="ann"),
            Ranking(prompt=asked, completions=["bad", "good"], ranks=[1, 2], labeler_id="ben"),
            Ranking(prompt=asked, completions=["good", "bad"], preferences=[[0, 1]], labeler_id="cleo"),
            Ranking(prompt=asked, completions=["good", "fair"], preferences=[], ties=[[0, 1]], labeler_id="cleo"),
            Ranking(prompt="Another question?", completions=["x", "y"], ranks=[1, 2], labeler_id="ann"),
        ],
    )
    judge = HumanJudge.of(str(path), PROMPTS)
    ours, theirs = (
        [said("good", "other"), said("good"), []],
        [said("bad", "fair", "good"), said("bad", "good"), said("bad")],
    )
    found = judge.preferences(PROMPTS, ours, theirs)
    # Two of three labelers prefer good to bad; it ties with fair and with itself; nobody ranked `other`, nor anything
    # for the second prompt.
    assert found == [[[pytest.approx(2 / 3), 0.5, 0.5], [None, None, None]], [[None, None]], []]
    assert judge.preferences(PROMPTS[:2], theirs[:2], ours[:2])[0] == [
        [pytest.approx(1 / 3), None],
        [0.5, None],
        [0.5, None],
    ]
    again = [("ann", [1, 2]), ("ann", [2, 1]), ("ben", [1, 2]), ("ben", [1, 2]), ("cleo", [1, 1])]
    votes = [Ranking(prompt="Why?", completions=["a", "b"], ranks=ranks, labeler_id=name) for name, ranks in again]
    assert HumanJudge(votes).preferences(PROMPTS[:1], [said("a")], [said("b")]) == [[[0.75]]], (
        "ben counts once, and ann, who contradicts herself, not at all"
    )
    counted = Ranking(prompt="Why?", completions=["a", "b"], preferences=[[0, 1], [1, 0], [0, 1]])
    assert HumanJudge([counted]).preferences(PROMPTS[:1], [said("a")], [said("b")]) == [[[1.0]]], "two of three votes"
    with pytest.raises(ValueError, match="none of its 5 rankings is of one of the 1 held-out prompts"):
        HumanJudge.of(str(path), PROMPTS[1:2])
    path.write_text(json.dumps({"prompt": "Why?", "completions": ["a"], "ranks": [1]}) + "\n")
    with pytest.raises(ValueError, match=r"people\.jsonl:1: a ranking needs at least 2 completions"):
        HumanJudge.of(str(path), PROMPTS)


def test_judges_are_made_by_name_and_say_whose_rankings_were_taught(tmp_path: Path) -> None:
    path = tmp_path / "people.jsonl"
    write_records(path, [Ranking(prompt="Why?", completions=["a", "b"], ranks=[1, 2])])
    settings = EvaluateConfig(judges=["human", "chrf", "rubric"], human=HumanConfig(path=str(path)))
    settings.validate()
    run = Run(FakeAccelerator(), 0, tmp_path)  # type: ignore[arg-type]
    inputs = JudgeInputs(
        settings=settings,
        labels=WORDS,
        model_config=ModelConfig(),
        prompts=PROMPTS,
        run=run,
        client=None,
        max_tokens=100,
    )
    for teachers, expected in (
        ([], [False, False, False]),
        (["simulated"], [False, False, True]),
        (["human", "gpt-4"], [True, False, False]),
    ):
        judges = [make_judge(name, replace(inputs, teachers=teachers)) for name in settings.judges]
        assert [judge.name for judge in judges] == settings.judges
        assert [judge.taught for judge in judges] == expected, "a judge is not independent of what it taught"


def test_a_text_that_was_cut_off_has_a_score_of_its_own() -> None:
    [[whole, cut]] = RubricJudge(WORDS).scores(PROMPTS[:1], [[*said("Yes"), *said("Yes", complete=False)]])
    assert whole - cut == pytest.approx(WORDS.weights.complete)
