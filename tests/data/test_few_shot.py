"""Few-shot prompts: K pairs give K examples, and none of them shows its own answer."""

from hypothesis import given, settings
from hypothesis import strategies as st

from data.few_shot import expand, render, whole_text
from data.records import Example, FewShot

WORD = st.text("abcdefgh", min_size=3, max_size=8)


def few_shot(*pairs: tuple[str, str], **extra: str) -> FewShot:
    return FewShot(
        prompt="Say it in French.",
        examples=[{"prompt": query, "completion": answer} for query, answer in pairs],
        **extra,
    )


def test_k_pairs_give_k_examples_each_with_the_others_in_order() -> None:
    record = few_shot(
        ("one", "un"),
        ("two", "deux"),
        ("three", "trois"),
        prompt_id="p",
        user_id="u",
        source="labeler",
        use_case="rewrite",
    )
    first, second, third = expand(record)
    assert (
        second.prompt
        == "Say it in French.\n\nInput: one\nOutput: un\n\nInput: three\nOutput: trois\n\nInput: two\nOutput:"
    )
    assert [example.completion for example in (first, second, third)] == ["un", "deux", "trois"]
    assert [example.prompt_id for example in (first, second, third)] == ["p#1", "p#2", "p#3"]
    assert {(e.user_id, e.source, e.kind, e.use_case) for e in (first, second, third)} == {
        ("u", "labeler", "few_shot", "rewrite")
    }


@settings(max_examples=100, deadline=None)
@given(pairs=st.lists(st.tuples(WORD, WORD), min_size=2, max_size=6))
def test_an_example_never_shows_the_pair_that_it_asks_for(pairs: list[tuple[str, str]]) -> None:
    record = few_shot(*pairs)
    examples, unique = list(expand(record)), list(dict.fromkeys(pairs))
    assert [example.completion for example in examples] == [answer for _, answer in unique]
    assert [example.prompt_id for example in examples] == [
        f"{record.prompt_id}#{place}" for place in range(1, len(unique) + 1)
    ]
    for (query, answer), example in zip(unique, examples, strict=True):
        assert isinstance(example.prompt, str)
        context = example.prompt.rsplit("Input: ", 1)[0]
        assert f"Input: {query}\n" not in context, "not even from another pair that asks the same"
        assert example.completion == answer
        shown = [Example(prompt=q, completion=a) for q, a in unique if q != query]
        assert example.prompt == render(record.text, shown, query)


def test_a_pair_that_asks_the_same_in_other_marks_does_not_give_the_answer_away() -> None:
    first, second, third = expand(few_shot(("one", "un"), ("One?", "une"), ("two", "deux")))
    assert "un" not in str(first.prompt).replace("Output: deux", "")
    assert "un" not in str(second.prompt).replace("Output: deux", "")
    assert "Output: un\n" in str(third.prompt)
    assert "Output: une\n" in str(third.prompt)


def test_a_pair_that_is_there_twice_counts_once() -> None:
    assert [example.completion for example in expand(few_shot(("one", "un"), (" one\n", "un"), ("two", "deux")))] == [
        "un",
        "deux",
    ]


def test_without_ids_the_examples_still_are_one_users() -> None:
    """Each prompt is a user of its own by default, and here the K prompts are one: a split must not separate them."""
    examples = list(expand(few_shot(("one", "un"), ("two", "deux"))))
    assert len({example.user_id for example in examples}) == len({example.organisation_id for example in examples}) == 1
    assert len({example.prompt_id for example in examples}) == 2


def test_the_rules_see_every_word_of_it() -> None:
    text = whole_text(few_shot(("one", "un"), ("two", "deux")))
    assert all(word in text for word in ("French", "one", "un", "two", "deux"))
