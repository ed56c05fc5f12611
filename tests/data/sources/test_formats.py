"""Property tests of all formats: any JSON gives records or a ValueError of one line."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.config import BUILT_IN, ROLES
from data.sources.convert import Role
from data.sources.formats import FORMATS, TABLE, Format
from stages.config import parse_config
from tests.data.sources.converting import convert

CONFIGS = Path(__file__).parents[3] / "configs"
PUBLISHED = {name: form for name, form in FORMATS.items() if name != "rows"}
KEYS = {
    "oasst": "message_tree_id message_id parent_id text role rank deleted review_result prompt replies",
    "qa_feedback": "question passages gold answer preference prediction_1 prediction_2 prediction_3 prediction_4",
    "truthfulqa": "prompt completion Question Best_Answer",
    "hh_rlhf": "chosen rejected",
    "ultrafeedback": "instruction completions response annotations instruction_following truthfulness Rating",
    "ultrafeedback_binarized": "chosen rejected prompt_id score_chosen score_rejected role content",
    "nectar": "prompt answers answer rank",
    "shp": "post_id history human_ref_A human_ref_B labels",
    "summarize_feedback": "info summaries choice worker post title subreddit article id text",
    "dolly": "instruction context response category",
    "alpaca": "instruction input output",
    "no_robots": "messages prompt_id category role content",
    "sharegpt": "conversations from value system chosen rejected role content human gpt tools",
    "label_studio": "data annotations prompt items id body record result from_name type value ranker rank meta _ 1",
    "argilla": "fields metadata record labels responses values ranking value rank user_id status prompt answer-1",
    "self_instruct": "id instruction instances input output motivation_app is_classification",
}
SPACED = {"prediction_1", "prediction_2", "prediction_3", "prediction_4", "Best_Answer"}
WORDS = ["", " ", "a", "prompter", "assistant", "user", "\n\nHuman: a\n\nAssistant: b", "Human: a\n\nAssistant: "]
WORDS += ["Q: a\nA: b\nTrue:", " yes", "5", "N/A"]
SCALARS = st.none() | st.booleans() | st.integers(-2, 4) | st.floats() | st.sampled_from(WORDS) | st.text(max_size=4)


def values(keys: list[str]) -> st.SearchStrategy[Any]:
    """JSON values whose objects have the format's own keys, which is where a converter looks."""
    return st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.sampled_from(keys), inner, max_size=len(keys)),
        max_leaves=12,
    )


def rows_of(keys: list[str]) -> st.SearchStrategy[list[Any]]:
    """One to three rows: objects with some of the keys or all of them, or no objects at all."""
    value = values(keys)
    some, full = (
        st.fixed_dictionaries({}, optional=dict.fromkeys(keys, value)),
        st.fixed_dictionaries(dict.fromkeys(keys, value)),
    )
    return st.lists(some | full | SCALARS, min_size=1, max_size=3)


ROWS = {
    name: rows_of([key.replace("_", " ") if key in SPACED else key for key in keys.split()])
    for name, keys in KEYS.items()
}


def test_the_generator_knows_every_format() -> None:
    assert set(KEYS) == set(PUBLISHED)


def test_names_are_unique_and_our_own_records_come_first() -> None:
    assert len(FORMATS) == len(TABLE)
    assert next(iter(FORMATS)) == "rows"


@pytest.mark.parametrize("form", PUBLISHED.values(), ids=PUBLISHED)
def test_a_format_names_its_licence_and_only_roles_that_there_are(form: Format) -> None:
    assert set(form.convert) <= set(ROLES)
    assert set(form.files) <= set(form.convert)
    assert "(" in form.about, "the licence, in brackets"


@pytest.mark.parametrize(("name", "role"), [(name, role) for name, form in PUBLISHED.items() for role in form.convert])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_json_becomes_records_or_one_sentence(name: str, role: Role, data: st.DataObject) -> None:
    group = PUBLISHED[name].group
    rows = data.draw(ROWS[name])
    for member in rows:
        if group is not None and isinstance(member, dict):
            hash(group(member))
    # Any other exception fails the test; `convert` parses what comes back.
    with contextlib.suppress(ValueError):
        convert(name, role, *rows)


@pytest.mark.parametrize("name", ["hh_rlhf", "oasst", "qa_feedback", "tldr_1b", "truthfulqa", "ultrafeedback"])
def test_a_public_configuration_parses_and_its_sources_can_play_their_roles(name: str) -> None:
    config, _ = parse_config("test", "", ["--config", str(CONFIGS / f"{name}.yaml")])
    assert config.run_name == name
    assert config.labels.labeler == "none", "human or published rankings are the reward data"
    assert config.data.rankings
    for role in ROLES:
        for source in getattr(config.data, role):
            if source not in BUILT_IN:
                assert role in FORMATS[config.data.sources[source].format].convert
    for source in config.data.sources.values():
        if hub := FORMATS[source.format].hub:
            assert source.place == hub
            assert source.revision, "what is read from the Hub is pinned"
    longest = config.data.max_prompt_tokens + max(config.data.max_answer_tokens, config.ppo.max_new_tokens)
    assert longest <= config.reward.max_tokens_per_micro_batch
