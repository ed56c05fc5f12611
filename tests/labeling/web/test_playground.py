"""The playground: what people can ask, what is stored, and who can see it."""

import asyncio
import json
import random
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from data.files import read_records
from data.records import Prompt, Ranking
from data.tokenize import decode_completion, encode_prompt
from labeling.web import streaming
from labeling.web.app import create_app
from labeling.web.conversations import AbsentError, Answer, Conversations
from labeling.web.playground import PROMPTS, Chat
from labeling.web.store import Store
from labeling.web.streaming import AnswerStream, ModelThread
from modeling.config import GenerationSettings
from stages.label import PLACE, main
from tests.labeling.web.echo_model import EchoModel

HOSTILE = "<script>alert('no')</script><b onmouseover=x>"
FORM = {"max_new_tokens": "20", "temperature": "1", "top_p": "0.9", "top_k": "0", "seed": "5", "models": "ppo"}


def app_of(store: Store, *models: str) -> Any:
    return create_app(store, chat=Chat({name: ModelThread(EchoModel, f"digest of {name}") for name in models}))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / PLACE)


def signed_in(store: Store, name: str = "ann") -> TestClient:
    client = TestClient(app_of(store, "ppo", "sft"), follow_redirects=False)
    client.post("/sign-in", data={"token": store.invite(name)})
    client.headers["x-csrf"] = fields(client.get("/playground").text)["csrf"]
    client.post("/playground/accept", data={"csrf": client.headers["x-csrf"]})
    return client


@pytest.fixture
def ann(store: Store) -> Iterator[TestClient]:
    with signed_in(store) as client:
        yield client


def fields(page: str) -> dict[str, str]:
    """The hidden fields of the form for a prompt."""
    return dict(re.findall(r'name="(csrf|form)" value="([^"]*)"', page.split("<main>")[1]))


def ask(client: TestClient, prompt: str, place: str = "/playground", **change: str) -> Any:
    return client.post(place, data=FORM | fields(client.get(place).text) | {"prompt": prompt} | change)


def answered(client: TestClient, place: str) -> list[tuple[str, dict[str, Any]]]:
    """The events of the turn to which the response to `ask` redirects."""
    number = place.partition("#turn-")[2]
    text = client.get(f"/playground/{number}").text
    found = re.findall(r"event: (\w+)\ndata: (.*)\n", text)
    return [(event, json.loads(data)) for event, data in found]


def test_a_conversation_is_answered_judged_and_exported(store: Store, ann: TestClient, tmp_path: Path) -> None:
    conversations = Conversations(store)
    place = ask(ann, f"Why? {HOSTILE}", models="ppo sft").headers["location"]
    (turn,) = conversations.turns("ann")
    assert [answer.state for answer in turn.answers] == ["waiting"] * 2, "the prompt is kept before it is answered"
    page = ann.get(place).text
    assert "data-stream" in page
    assert not re.search("<h3>.*(PPO|SFT)", page), "the models are not named before they are judged"
    with TestClient(app_of(store, "ppo", "sft"), cookies=ann.cookies) as restarted:
        events = answered(restarted, place)
    assert [event for event, _ in events].count("end") == 2
    assert {data["text"] for event, data in events if event == "end"} == {f"1 Why? {HOSTILE} {n}" for n in (5, 6)}
    judged = {"csrf": fields(page)["csrf"]}
    assert ann.post(f"/playground/{turn.id}/judge", data=judged | {"thumb-0": "up"}).headers["location"] == place
    for thumb in ("none", "up", "up"):  # removed; then a double click
        ann.post(f"/playground/{turn.id}/judge", data=judged | {"thumb-0": thumb})
    ann.post(f"/playground/{turn.id}/judge", data=judged | {"judgment": "right"})
    page = ann.get(place).text
    assert page.count("<script") == 1
    assert HOSTILE not in page
    assert "onmouseover=x&gt;" in page
    assert re.search("<h3>.*(PPO|SFT)", page)
    assert page.count('aria-pressed="true"') == 2
    assert re.findall('name="thumb-0" value="([^"]*)"', page) == ["none", "down"], "a thumb removes itself"
    second = ask(ann, "go\r\non?", place.partition("#")[0]).headers["location"]
    assert [data["text"] for event, data in answered(ann, second) if event == "end"] == ["3 go\non? 5"], (
        "the line break of browsers"
    )
    better = turn_text(conversations, 0, 1)
    assert conversations.turns("ann")[1].messages[1]["content"] == better, "the conversation continues with it"
    assert main([str(tmp_path), "--export", str(tmp_path / "out")]) == 0
    prompts = read_records(tmp_path / "out" / "prompts.jsonl", Prompt)
    assert [(prompt.user_id, len(prompt.messages)) for prompt in prompts] == [("ann", 1), ("ann", 3)]
    (ranking,) = read_records(tmp_path / "out" / "rankings.jsonl", Ranking)
    assert (ranking.ranks, ranking.labeler, ranking.labeler_id, ranking.user_id) == ([2, 1], "human", "ann", "ann")
    row = json.loads((tmp_path / "out" / "conversations.jsonl").read_text().splitlines()[0])
    kept = row["answers"][0]
    assert (kept["thumb"], kept["digest"], kept["generation"]["top_p"]) == ("up", f"digest of {kept['model']}", 0.9)


def turn_text(conversations: Conversations, turn: int, place: int) -> str:
    return conversations.turns("ann")[turn].answers[place].text


def test_an_answer_is_stopped_by_its_button_or_a_closed_page_and_blocks_nothing_else(
    store: Store, ann: TestClient
) -> None:
    conversations = Conversations(store)
    place = ask(ann, "go on").headers["location"]
    number, found = place.partition("#turn-")[2], list[Any]()
    reading = threading.Thread(target=lambda: found.extend(answered(ann, place)))
    reading.start()
    assert ann.get("/next").status_code == 200, "while the model answers"
    assert ann.post(f"/playground/{number}/judge", data={"csrf": ann.headers["x-csrf"]}).status_code == 422
    assert ann.post(f"/playground/{number}/stop", data={"csrf": ann.headers["x-csrf"]}).status_code == 204
    reading.join(10)
    assert found[-1] == ("end", {"place": 0, "text": "1 go on 5", "state": "stopped"})

    turn = conversations.ask("ann", "go on", [Answer("ppo", GenerationSettings().recorded(1))], "other", None)

    async def leave(thread: ModelThread, seconds: float) -> None:
        events = AnswerStream(conversations, turn, lambda: False).events({"ppo": thread})
        with suppress(TimeoutError):
            assert (await asyncio.wait_for(anext(events), seconds)).event == "part"
        await events.aclose()

    for busy, seconds, state in ((True, 0.05, "waiting"), (False, 10, "stopped")):
        thread, free = ModelThread(EchoModel, ""), threading.Event()
        if busy:
            thread.thread.submit(free.wait)
        asyncio.run(leave(thread, seconds))
        free.set()
        thread.thread.shutdown()
        assert [answer.state for answer in conversations.turns("ann", number=turn.id)[0].answers] == [state]
        assert all(thread.slots.acquire(blocking=False) for _ in range(streaming.MAX_JOBS)), "all slots are free again"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"prompt": " "}, "Write a prompt."),
        ({"prompt": "x" * 20_001}, "The text is too long: at most 20,000 characters."),
        ({"models": "../../other"}, "Choose a model from the list."),
        ({"max_new_tokens": "1001"}, "max_new_tokens=1001 must be at least 1 and at most 1000."),
        ({"top_p": "0"}, "top_p=0.0 must be above 0 and at most 1."),
        ({"temperature": "nan"}, "temperature=nan must be a finite number"),
        ({"top_k": "2.5"}, "Each of the settings is a number; max_new_tokens, top_k and seed are whole numbers."),
        ({"models": "sft sft", "temperature": "0"}, "Without sampling, two answers of one model are the same"),
    ],
)
def test_what_cannot_be_asked_is_explained_and_stays_in_the_form(
    store: Store, ann: TestClient, change: dict[str, str], sentence: str
) -> None:
    answer = ask(ann, **{"prompt": "Kept?"} | change)
    assert answer.status_code == 422
    assert sentence in answer.text
    assert "prompt" in change or ">Kept?</textarea>" in answer.text
    assert Conversations(store).turns("ann") == []


def test_limits_are_explained_in_a_sentence(store: Store, ann: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "it is too long" in answered(ann, ask(ann, "fail").headers["location"])[-1][1]["text"]
    assert len({ask(ann, "Twice?", form="same").headers["location"] for _ in range(2)}) == 1, "sent twice, asked once"
    monkeypatch.setattr(streaming, "EVENT_TIMEOUT", 0.05)
    assert answered(ann, ask(ann, "silence").headers["location"]) == [("problem", {"place": 0, "text": streaming.BUSY})]
    monkeypatch.setattr(streaming, "MAX_JOBS", 0)
    place = ask(ann, "Why?").headers["location"]
    for model, sentence in (("ppo", streaming.BUSY), ("sft", "The run no longer has this model.")):
        with TestClient(app_of(store, model), cookies=ann.cookies) as other:
            assert answered(other, place) == [("problem", {"place": 0, "text": sentence})]
    assert [ask(ann, f"{n}?").status_code for n in range(PROMPTS - 4)] == [303] * (PROMPTS - 5) + [422], "a minute"
    assert "There is no model to chat with" not in ann.get("/playground").text
    with TestClient(create_app(store), cookies=ann.cookies) as without:
        assert "There is no model to chat with" in without.get("/playground").text


def test_only_the_person_who_accepted_the_notice_reaches_her_conversations(store: Store, ann: TestClient) -> None:
    place = ask(ann, "A secret?").headers["location"]
    number, conversation = place.partition("#turn-")[2], place.partition("#")[0]
    routes = [f"/playground/{number}/{what}" for what in ("stop", "judge")] + [
        "/playground", "/playground/accept", conversation.replace("?", "/delete?"),
    ]  # fmt: skip
    for route in routes:
        for csrf in ({}, {"csrf": "forged"}):
            assert ann.post(route, data=FORM | csrf | {"prompt": "Forged?"}).status_code == 403, route
    with signed_in(store, "ben") as ben:
        for route in (conversation, f"/playground/{number}", f"/playground/{2**63}", "/playground?conversation=x"):
            assert ben.get(route).status_code == 404, route
        for route in (*routes[:2], routes[-1], conversation):
            assert ben.post(route, data=FORM | {"csrf": ben.headers["x-csrf"], "prompt": "?"}).status_code == 404, route
        assert "secret" not in ben.get("/playground").text
    with TestClient(app_of(store, "ppo"), follow_redirects=False) as dora:
        assert [dora.get(route).status_code for route in ("/playground", f"/playground/{number}")] == [401] * 2
        dora.post("/sign-in", data={"token": store.invite("dora")})
        page = dora.get("/playground").text
        assert "may be used to train models" in page
        assert "textarea" not in page
        assert dora.post("/playground", data=FORM | fields(page) | {"prompt": "?"}).status_code == 403
    assert [turn.messages[-1]["content"] for turn in Conversations(store).turns("ann")] == ["A secret?"]


def test_a_deleted_conversation_is_in_no_file_and_no_export(store: Store, ann: TestClient) -> None:
    conversations, draw = Conversations(store), random.Random(0)
    kept = ask(ann, "Kept?").headers["location"]
    answered(ann, kept)
    places = []
    for number in range(12):
        words = f"hidden{number} " * draw.choice([1, 50, 400, 900])
        turn = conversations.ask("ann", words, [Answer("ppo", GenerationSettings().recorded(0))], str(number), None)
        with conversations.changed("ann", turn.id) as turn:
            turn.answers[0].text = f"hidden answer {number} " * draw.choice([1, 100, 800])
        places.append(turn.conversation)
    draw.shuffle(places)
    other = sqlite3.connect(store.path)  # with another connection the write-ahead log stays
    other.execute("SELECT count(*) FROM turns").fetchall()
    for place in places:
        form = {"csrf": ann.headers["x-csrf"]}
        assert ann.post(f"/playground/delete?conversation={place}", data=form).status_code == 303
    files = b"".join(path.read_bytes() for path in store.path.parent.iterdir())
    other.close()
    assert b"Kept?" in files
    assert b"hidden" not in files
    assert [row["messages"][0]["content"] for row in conversations.rows()["conversations"]] == ["Kept?"]
    with pytest.raises(AbsentError):
        conversations.delete("ann", places[0])


def test_a_models_text_is_that_of_the_projects_sampling(
    tiny_causal: Callable[[str], Any], tiny_tokenizer: Any, model_config: Any
) -> None:
    from labeling.web.chat_model import LoadedModel
    from modeling.generation import NativeGenerator

    model = LoadedModel(tiny_causal("llama"), tiny_tokenizer, model_config)
    end = tiny_tokenizer.eos_token
    for prompt, seed, how in (
        (Prompt(prompt="Why?"), 3, GenerationSettings(24, temperature=0)),
        (Prompt(prompt=f"Say {end} and {HOSTILE}."), 4, GenerationSettings(24, temperature=0.7, top_k=40, top_p=0.9)),
    ):
        ids, parts = encode_prompt(tiny_tokenizer, prompt), list[str]()
        text, ended = model(prompt, how.recorded(seed), parts.append, lambda: False)
        (ours,) = NativeGenerator().generate(model.model, [ids], [seed], how)
        assert (text, ended) == (decode_completion(tiny_tokenizer, ours.ids, ours.ended), ours.ended)
        assert len(text) > 10
        assert "".join(parts).strip() == text
        assert len(parts) > 2
    plain = encode_prompt(tiny_tokenizer, Prompt(prompt="Say it."))
    assert ids.count(tiny_tokenizer.eos_token_id) == plain.count(tiny_tokenizer.eos_token_id), (
        "text is no control token"
    )
    parts.clear()
    stopped, ended = model(prompt, how.recorded(seed), parts.append, lambda: len(parts) > 1)
    assert not ended
    assert text.startswith(stopped)
    assert len(stopped) < len(text)
    with pytest.raises(ValueError, match="do not fit the model's context"):
        model(Prompt(prompt="word " * 3000), how.recorded(0), parts.append, lambda: False)
