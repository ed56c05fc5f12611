"""The rubric's arithmetic by hand, and what its judges see in texts that anybody can judge."""

from collections.abc import Sequence

import pytest
import torch

from labeling import rubric
from labeling.config import RubricWeights
from labeling.judges import SentenceEncoder, WordOverlap, closeness_judge, profanity
from labeling.rubric import PARTS, Answered, copying, judge, repetition


def closeness(answers: Sequence[str], references: Sequence[str]) -> list[float]:
    return [0.5 if reference == "near" else 0.25 for reference in references]


def test_the_score_is_the_weighted_sum_worked_out_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rubric, "profanity", lambda texts: [0.125 * len(text.split()) for text in texts])
    weights = RubricWeights(closeness=2.0, complete=0.5, repetition=4.0, copying=0.25, profanity=1.0)
    answered = [Answered("Is A b, A?", "a b a b a b", True, "near"), Answered("Fine", "fine", False, "far")]
    first, second = judge(answered, weights, closeness)
    # Trigrams aba bab aba bab: two of four repeat, and aba is in the prompt. 2 * 0.5 + 0.5 * 1 - 4 * 0.5 - 0.25 * 0.5 -
    # 1 * 0.75
    parts = {"closeness": 0.5, "complete": 1.0, "repetition": 0.5, "copying": 0.5, "profanity": 0.75}
    assert vars(first) == parts | {"score": -1.375}
    # 2 * 0.25 + 0.5 * 0 - 4 * 0 - 0.25 * 0 - 1 * 0.125
    parts = {"closeness": 0.25, "complete": 0.0, "repetition": 0.0, "copying": 0.0, "profanity": 0.125}
    assert vars(second) == parts | {"score": 0.375}
    assert set(PARTS) == set(vars(first)) - {"score"}


@pytest.mark.parametrize(
    ("part", "sign"), [("closeness", +1), ("complete", +1), ("repetition", -1), ("copying", -1), ("profanity", -1)]
)
def test_each_weight_counts_with_its_sign(part: str, sign: int) -> None:
    without = dict.fromkeys(PARTS, 0.0)
    answered = Answered("Say: well, you idiot", "well well well well you idiot", True, "near")
    [judged] = judge([answered], RubricWeights(**without | {part: 2.0}), closeness)
    assert vars(judged)[part] > 0
    assert judged.score == pytest.approx(sign * 2.0 * vars(judged)[part], rel=1e-12)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0),
        ("one", 0),
        ("one two three", 0),
        ("no no no", 0),
        ("no no no no", 1 / 2),
        ("No no NO no no", 2 / 3),
        ("one two three four five six", 0),
        ("a b c a b c", 1 / 4),
        ("a b c x a b c y a b c", 2 / 9),
        ("so\nit  goes so it\tgoes", 1 / 4),
    ],
)
def test_repetition_is_the_share_of_trigrams_that_were_there_before(text: str, share: float) -> None:
    assert repetition(text) == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize(
    ("answer", "prompt", "share"),
    [
        ("", "", 0),
        ("calm", "calm or angry?", 0),
        ("in May", "was it in May", 0),
        ("Would it burn on Mars", "would it burn, on Mars?", 1),
        ("No, it would not burn on Mars", "would it burn on Mars", 1 / 5),
        ("on Mars it would burn", "would it burn on Mars", 0),
    ],
)
def test_copying_is_the_share_of_trigrams_that_are_in_the_prompt(answer: str, prompt: str, share: float) -> None:
    assert copying(answer, prompt) == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize(
    ("answer", "reference", "cosine"),
    [
        ("red green", "red green", 1),
        ("red green", "red blue", 1 / 2),
        ("red red green", "red", 2 / 5**0.5),
        ("Red, green!", "green RED", 1),
        ("red", "blue", 0),
        ("B", "b", 1),
        ("the 3", "the 4", 1 / 2),
        ("", "blue", 0),
    ],
)
def test_word_overlap_is_the_cosine_of_word_counts(answer: str, reference: str, cosine: float) -> None:
    assert WordOverlap()([answer], [reference]) == pytest.approx([cosine], abs=1e-9)


def test_word_overlap_pairs_each_answer_with_its_own_reference() -> None:
    judged = closeness_judge("words")(["red", "blue", "red green"], ["red", "red", "green blue"])
    assert judged == pytest.approx([1, 0, 0.5], abs=1e-9)


def test_an_insult_is_more_offensive_than_a_kind_word() -> None:
    kind, insult = profanity(["Thank you, that is a lovely idea.", "Shut up, you fucking idiot."])
    assert 0 <= kind < 0.2
    assert 0.8 < insult <= 1
    assert profanity([]) == []


def test_texts_of_equal_length_are_encoded_in_the_same_order_in_every_process() -> None:
    """The order decides which texts share a batch, and with that the last digits of their embeddings."""
    encoded: list[str] = []

    class Encoder(SentenceEncoder):
        def __init__(self) -> None:
            pass

        def embed(self, texts: Sequence[str]) -> torch.Tensor:
            encoded.extend(texts)
            return torch.eye(len(texts))

    words = ["ccc", "aaa", "bbb", "eee", "ddd", "fff", "b"]
    assert Encoder()(words, words) == [1.0] * 7
    assert encoded == ["b", "aaa", "bbb", "ccc", "ddd", "eee", "fff"]
