"""The ranking page in a real browser: by keyboard alone, by dragging, on a phone, and for screen readers.

`make test-browser` runs these; they need playwright (`pip install -e '.[browser]'`) and a Chromium.
"""

import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from data.records import Samples
from labeling.web.app import create_app
from labeling.web.conversations import Answer, Conversations
from labeling.web.playground import Chat
from labeling.web.store import Store
from labeling.web.streaming import ModelThread
from modeling.config import GenerationSettings
from tests.labeling.web.echo_model import EchoModel

pytestmark = pytest.mark.slow
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
AXE = os.environ.get("AXE_SCRIPT")
"""axe.min.js of the npm package axe-core, for the accessibility check."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "labels.sqlite")
    texts = ["One.", "Two.", "Three.", "A long answer. " * 200]
    made.add(
        [Samples(prompt=f"Why {n}?", completions=texts, complete=[True] * 4) for n in range(3)], [1] * 3, [None] * 3
    )
    return made


@pytest.fixture
def address(store: Store) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    chat = Chat({name: ModelThread(EchoModel, "") for name in ("ppo", "sft")})
    server = uvicorn.Server(uvicorn.Config(create_app(store, chat=chat), port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    chat.ending.set()
    server.should_exit = True
    thread.join()


def ranking_page(browser: Any, store: Store, address: str, **options: Any) -> Any:
    """The page of ann's first task; problems of its script fail the test."""
    page = browser.new_context(**options).new_page()
    page.on("pageerror", lambda error: pytest.fail(str(error)))
    page.goto(address)
    page.fill("input[name=token]", store.invite("ann"))
    page.click("main button")
    page.click("main a.button")
    return page


def ranked(page: Any) -> list[str]:
    """`<rank> <beginning of the answer>` of each line of the list."""
    return [
        " ".join([line.locator(".rank").inner_text(), line.locator(".words").inner_text()[:5].strip()])
        for line in page.locator("#order li").all()
    ]


def saved(store: Store) -> list[list[int | None]]:
    return [label.ranks for _, _, label, _ in store.labels()]


def test_answers_are_ranked_by_keyboard_alone(browser: Any, store: Store, address: str) -> None:
    page = ranking_page(browser, store, address)
    first = [line.split(" ", 1)[1] for line in ranked(page)]
    page.locator("#order").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Alt+ArrowUp")
    a, b, c, d = first
    assert ranked(page) == [f"1. {b}", f"none {a}", f"none {c}", f"none {d}"]
    assert page.inner_text("#status").endswith("has rank 1.")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Alt+ArrowUp")
    page.keyboard.press("Alt+ArrowDown")
    assert ranked(page) == [f"1. {b}", f"2. {a}", f"none {c}", f"none {d}"]
    page.keyboard.press("ArrowDown")
    page.keyboard.press("t")
    assert ranked(page) == [f"1. {b}", f"2. {a}", f"2. {c}", f"none {d}"]
    assert "tied with" in page.inner_text("#status")
    page.keyboard.press("n")
    assert ranked(page) == [f"1. {b}", f"2. {a}", f"none {c}", f"none {d}"]
    chosen = page.locator("#order").get_attribute("aria-activedescendant")
    assert page.locator(f"#{chosen}").get_attribute("aria-selected") == "true"
    page.locator("main .buttons button").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/rank/2")
    (ranks,) = saved(store)
    texts = ["One.", "Two.", "Three", "A lon"]
    assert {text: rank for text, rank in zip(texts, ranks, strict=True) if rank} == {b: 1, a: 2}


def drag(page: Any, line: int, to: int) -> None:
    page.locator("#order li").nth(0).scroll_into_view_if_needed()
    start, end = (page.locator("#order li").nth(place).bounding_box() for place in (line, to))
    page.mouse.move(start["x"] + 30, start["y"] + start["height"] / 2)
    page.mouse.down()
    page.mouse.move(end["x"] + 30, end["y"] + 3, steps=8)
    page.mouse.up()


@pytest.mark.parametrize("options", [{}, {"viewport": {"width": 390, "height": 844}, "has_touch": True}])
def test_answers_are_ranked_by_dragging(browser: Any, store: Store, address: str, options: dict[str, Any]) -> None:
    page = ranking_page(browser, store, address, **options)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    a, b, c, d = (line.split(" ", 1)[1] for line in ranked(page))
    box = page.locator("#order li").nth(3).bounding_box()
    page.mouse.move(box["x"] + 30, box["y"] + 3)
    page.mouse.down()
    page.mouse.move(box["x"] + 31, box["y"] + 5)
    page.mouse.up()
    assert ranked(page) == [f"none {text}" for text in (a, b, c, d)], "a click that moves by two pixels"
    drag(page, 3, 0)
    assert ranked(page) == [f"1. {d}", f"none {a}", f"none {b}", f"none {c}"]
    drag(page, 2, 0)
    assert ranked(page) == [f"1. {b}", f"2. {d}", f"none {a}", f"none {c}"]
    drag(page, 2, 3)
    assert ranked(page) == [f"1. {b}", f"2. {d}", f"3. {a}", f"none {c}"], "already behind the ranked ones"
    page.click("main .buttons button")
    page.wait_for_url("**/rank/2")
    assert sorted(filter(None, saved(store)[0])) == [1, 2, 3]
    page.go_back()
    page.click("main .buttons button")
    assert len(saved(store)) == 1, "the form of the page before was sent again"


def test_rank_fields_stay_as_they_were_set_and_a_way_back_changes_none(
    browser: Any, store: Store, address: str
) -> None:
    page = ranking_page(browser, store, address)
    fields = page.locator("select[name^=rank-]")
    for place, rank in enumerate(("2", "3", "1", "4")):
        fields.nth(place).select_option(rank)
    assert [fields.nth(place).input_value() for place in range(4)] == ["2", "3", "1", "4"]
    assert [line.split(" ", 1)[0] for line in ranked(page)] == ["1.", "2.", "3.", "4."]
    page.click("header a >> nth=0")
    page.go_back()
    before = [fields.nth(place).input_value() for place in range(4)]
    page.locator("#order").focus()
    page.keyboard.press("ArrowDown")
    assert [fields.nth(place).input_value() for place in range(4)] == before


def test_people_chat_by_keyboard_alone(browser: Any, store: Store, address: str) -> None:
    page, conversations = ranking_page(browser, store, address), Conversations(store)

    def press(button: str, key: str = "Enter") -> None:
        page.get_by_role("button", name=button, exact=True).first.focus()
        page.keyboard.press(key)

    page.goto(f"{address}/playground")
    press("I understand and accept this")
    page.get_by_label("Your prompt").focus()
    page.keyboard.type("Why <b>?")
    page.locator("select[name=models]").select_option("ppo sft")
    page.get_by_label("Your prompt").focus()
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#status:text-is('Both answers have ended.')")
    assert sorted(page.locator(".answer .text").all_inner_texts())[0].startswith("1 Why <b>? ")
    press("Thumbs up", "Space")
    page.wait_for_selector("button[aria-pressed=true]")
    press("Equally good")
    page.wait_for_selector("button[name=judgment][aria-pressed=true]")
    (turn,) = conversations.turns("ann")
    assert (turn.ranks, [answer.thumb for answer in turn.answers]) == ([1, 1], ["up", ""])
    page.get_by_label("Your next prompt").focus()
    page.keyboard.type("go on <b>")
    press("Send")
    page.wait_for_selector("text=more more")
    assert page.locator(".answer .text b").count() == 0, "text of a model is no HTML, also while it is streamed"
    assert page.locator("#ask button").is_disabled(), "sending would end the answers"
    press("Stop")
    page.wait_for_selector("#status:text-is('Both answers have ended.')")
    assert page.evaluate("document.activeElement.className").startswith("turn"), "the focus is not lost with the button"
    assert [answer.state for answer in conversations.turns("ann")[1].answers] == ["stopped"] * 2
    page.locator("select[name=models]").select_option("ppo")
    page.get_by_label("Your next prompt").fill("go on")
    press("Send")
    page.wait_for_selector("text=more more")
    page.goto(f"{address}/playground")
    for _ in range(50):
        if not (left := conversations.turns("ann")[2]).waiting:
            break
        time.sleep(0.1)
    assert left.answers[0].state == "stopped", "nobody waits for it any more"
    page.locator("summary").press("Enter")
    press("Delete this conversation permanently")
    page.wait_for_selector("text=Your conversations", state="detached")
    assert conversations.turns("ann") == []


def test_the_pages_pass_an_accessibility_check(browser: Any, store: Store, address: str) -> None:
    if AXE is None:
        pytest.skip("AXE_SCRIPT does not name axe.min.js of the npm package axe-core")
    page = ranking_page(browser, store, address, bypass_csp=True)
    conversations, task = Conversations(store), page.url.removeprefix(address)
    answers = [Answer(model, GenerationSettings().recorded(0), "stopped", "Because.") for model in ("ppo", "sft")]
    chat = conversations.ask("ann", "Why?", answers, "", None).conversation
    for place in ("/", task, "/playground", f"/playground?conversation={chat}"):
        page.goto(address + place)
        if place.endswith(str(chat)):
            conversations.accept("ann")
            page.reload()
        page.add_script_tag(path=AXE)
        found = page.evaluate("axe.run()")
        assert [(problem["id"], problem["nodes"][0]["html"]) for problem in found["violations"]] == []
