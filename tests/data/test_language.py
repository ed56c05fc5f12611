"""The language check: English prompts are English, other languages are not, and what cannot be told is said to be
undetermined.
"""

import json
import re
import string
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data.language import UNDETERMINED, identify

ROOT = Path(__file__).parents[2]
SEED = [
    json.loads(line)
    for path in sorted((ROOT / "demo" / "seed").glob("*.jsonl"))
    for line in path.read_text(encoding="utf-8").splitlines()
]
ELSEWHERE = {
    "de": "Schreibe eine höfliche Antwort an meine Vermieterin, die Heizung ist kaputt.",
    "fr": "Écris un poème sur la pluie et les toits de Paris.",
    "es": "Escribe una carta de agradecimiento a mi profesora.",
    "pt": "Escreva uma história curta sobre um pescador e o mar.",
    "it": "Scrivi una lettera di scuse al mio vicino di casa.",
    "nl": "Schrijf een kort verhaal over een hond die de weg kwijt is.",
    "pl": "Napisz krótki list do przyjaciela o wakacjach.",
    "tr": "Bana kısa bir hikaye yazar mısın?",
    "zh": "请帮我写一封求职信。",
    "ja": "猫についての短い詩を書いてください。",
    "ko": "고양이에 대한 짧은 시를 써 주세요.",
    "ar": "اكتب قصة قصيرة عن البحر.",
    "hi": "मुझे एक छोटी कहानी सुनाओ।",
}


def test_english_prompts_are_english_or_undetermined_and_never_another_language() -> None:
    codes = identify([row["prompt"] for row in SEED])
    assert len(codes) == 500
    assert codes.count("en") >= 490
    assert set(codes) == {"en", UNDETERMINED}


def test_the_document_tells_the_share_of_english_prompts_that_is_measured() -> None:
    codes = identify([row["prompt"] for row in SEED])
    document = (ROOT / "docs" / "personal-data.md").read_text(encoding="utf-8")
    assert f"{codes.count('en') / len(codes):.1%} are called `en`" in document
    assert f"{codes.count(UNDETERMINED) / len(codes):.1%} `und`" in document


@pytest.mark.parametrize(("code", "text"), ELSEWHERE.items())
def test_a_sentence_in_another_language_is_not_english(code: str, text: str) -> None:
    assert identify([text]) == [code]


@pytest.mark.parametrize(
    "text", ["", " \n", "12", "3.14 + 2", "???", "😀😀", "[1, 2, 3]", "Hi", "ok", "x", "print(i)", "def f(x): return x"]
)
def test_what_is_too_short_or_not_language_is_undetermined(text: str) -> None:
    assert identify([text]) == [UNDETERMINED]


@settings(max_examples=60, deadline=None)
@given(text=st.text(string.digits + string.punctuation + string.whitespace + "€£–…😀", max_size=300))
@example(text="0.5 1.5 2.5 3.5 " * 20)
@example(text="----------" * 20)
@example(text="१२३४ ५६७८ ९०१२ ३४५६")
@example(text="١٢٣٤ ٥٦٧٨، ٩٠١٢؟")
def test_a_text_without_letters_is_in_no_language(text: str) -> None:
    assert identify([text]) == [UNDETERMINED]


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.text(max_size=80), max_size=8))
def test_every_text_has_one_code_of_two_letters_whatever_stands_beside_it(texts: list[str]) -> None:
    codes = identify(texts)
    assert len(codes) == len(texts)
    assert all(code == UNDETERMINED or re.fullmatch("[a-z]{2}", code) for code in codes)
    assert codes == [identify([text])[0] for text in texts] == identify(texts[::-1])[::-1]


def test_capitals_do_not_change_the_language() -> None:
    text = "Please write a short poem about the sea and the wind."
    assert identify([text, text.upper()]) == ["en", "en"]
