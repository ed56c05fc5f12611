"""Examples of removed rows: the right twin, and never anyone's personal data."""

import math
from pathlib import Path

import numpy as np
import pytest

from data.near_duplicates import near
from data.personal_data import find
from data.removed_examples import SHOWN, cut, find_twin, masked, shown, shown_beside
from data.split import split_of
from tests.data.making import described, made, prompts, rankings


def examples(facts, kind, rule):
    return [example for example in facts["examples"] if (example["kind"], example["rule"]) == (kind, rule)]


LETTER = {"prompt": "Write to bob.miller@miller-tools.com or call +44 20 7946 0958 about it", "user_id": "secretive"}


def test_the_twin_is_found_and_it_is_an_earlier_row_that_stayed(tmp_path):
    long = "ä" * 7 + " über die Brücke gehen wir heute noch einmal gemeinsam nach Hause"
    rows = [
        {"prompt": long + " an", "user_id": "a"},
        {"prompt": long + "!", "user_id": "b"},
        {"prompt": "ä" * 7 + " über die Brücke, nein", "user_id": "c"},
        {"prompt": "Another thing", "user_id": "d"},
        {"prompt": "another   THING.", "user_id": "e"},
    ]
    facts = described(tmp_path, {"prompts": rows})
    found = {one["text"]: one["twin"] for one in examples(facts, "prompts", "near_duplicate")}
    assert found == {rows[1]["prompt"]: rows[0]["prompt"], rows[4]["prompt"]: rows[3]["prompt"]}


@pytest.mark.parametrize("fraction", [0.5, 0.72, 0.9, 1.0])
def test_a_twin_is_one_by_the_rule_to_the_byte(tmp_path, fraction):
    texts = [
        text[:length]
        for text in ("ééééééééééé", "eeeeeeeeeee", "éeeéeeéeeée", "日本語日本語日本語")
        for length in range(1, len(text) + 1)
    ]
    built, _ = made(
        tmp_path, {"prompts": [{"prompt": text, "user_id": f"u{place}"} for place, text in enumerate(texts)]}
    )
    keys = [built.pool.key(number) for number in range(built.pool.count)]
    everyone = np.ones(built.pool.count, dtype=bool)
    for row in range(60, built.pool.count):
        key = keys[row].encode()
        # What the rule says, letter by letter: the common prefix is at least that fraction of the longer one.
        alike = []
        for number, other in enumerate(keys):
            common = next(
                (k for k, (a, b) in enumerate(zip(key, other.encode(), strict=False)) if a != b),
                min(len(key), len(other.encode())),
            )
            if number != row and common >= math.ceil(fraction * max(len(key), len(other.encode()))):
                alike.append(number)
        allowed = everyone.copy()
        allowed[row] = False
        found = find_twin([(built.pool, allowed)], keys[row], fraction)
        assert found == (next(built.pool.read(alike[:1])) if alike else None)


def test_near_is_a_fraction_of_the_longer_one():
    assert near("abcdefghi", "abcdefghij", 0.9)
    assert not near("abcdefgh", "abcdefghij", 0.9)


def test_a_training_row_that_is_an_evaluation_prompt_shows_it(tmp_path):
    asked = [rankings(1)[0] | {"user_id": f"u{number}", "labeler_id": f"l{number}"} for number in range(40)]
    facts = described(tmp_path, {"rankings": asked})
    found = examples(facts, "rankings", "evaluation_prompt")
    assert len(found) == 5
    assert all(example["twin"] == example["text"] for example in found)


def test_personal_data_are_named_and_never_shown(tmp_path):
    letters = [
        LETTER | {"user_id": f"secretive {number}", "prompt": f"{number}. {LETTER['prompt']}"} for number in range(20)
    ]
    facts = described(tmp_path, {"prompts": prompts(30) + letters})
    kinds = {example["text"] for example in examples(facts, "prompts", "personal_data")}
    assert kinds == {"EMAIL, PHONE"}


@pytest.mark.parametrize("engine", ["rules", "off"])
def test_examples_of_other_rules_are_masked(tmp_path, engine):
    # In training the rule for personal data comes first.
    held_out = next(user for user in map(str, range(99)) if split_of(user, 0.2, 0.2) == "test")
    rows = [
        LETTER | {"user_id": held_out},
        LETTER | {"user_id": held_out, "prompt": LETTER["prompt"] + "!"},
        LETTER | {"prompt": LETTER["prompt"] + " now" * 50, "user_id": "long"},
    ]
    facts = described(tmp_path, {"prompts": rows}, max_prompt_tokens=40, personal_data=engine)
    (long,) = examples(facts, "prompts", "prompt_too_long")
    for example in [*examples(facts, "prompts", "near_duplicate"), long]:
        assert example["text"].startswith("Write to [EMAIL] or call [PHONE] about it")
        assert example["twin"] in ("", "Write to [EMAIL] or call [PHONE] about it")
    assert long["note"] == "61 tokens"


def test_a_number_at_the_cut_is_masked_before_it_is_cut():
    text = "x" * (SHOWN - 20) + " mail bob.miller@miller-tools.com please"
    assert "bob" not in shown(text, find)
    assert masked("a bob@miller-tools.com b kim@miller-tools.com", find) == "a [EMAIL] b [EMAIL]"


def test_two_long_texts_are_cut_where_they_part():
    one, two = shown_beside("a" * 900 + " left turn", "a" * 900 + " right turn", find)
    assert one.endswith("left turn")
    assert two.endswith("right turn")
    assert len(one) < 1.2 * SHOWN
    assert cut("b" * 1000, 10) == "b" * SHOWN + " …"


def test_every_rule_has_a_meaning(tmp_path: Path):
    facts = described(tmp_path, {"rankings": rankings(3)})
    assert all(meaning != rule.replace("_", " ") for rule, meaning in facts["rules"].items())
