"""The client of a chat completions API, against a local server that fails in every way, over real HTTP."""

import concurrent.futures
import json
import logging
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from data.messages import Message
from evaluation.judges import llm_client
from evaluation.judges.llm_client import LLMClient
from evaluation.judges.llm_http import retry_after
from labeling.llm_config import LLMConfig
from tests.evaluation.fake_llm import FakeLLM, serving

ROOT = Path(__file__).resolve().parents[2]
FAULTS = ("429:0.01", "429", "500", "503", "timeout", "close", "cut", "html", "empty")
KEY = "sk-do-not-tell-0123456789"


def ask(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def shout(text: str) -> str:
    return text.upper()


def client(url: str, cache: Path, first_wait: float = 0.001, **settings: Any) -> LLMClient:
    settings = {"endpoint": url, "model": "judge", "cache": str(cache), "timeout": 1.0, **settings}
    return LLMClient(LLMConfig(**settings), first_wait)


def test_no_fault_loses_a_reply_and_each_question_is_answered_once(tmp_path: Path) -> None:
    faults = [*FAULTS * 4, *["ok"] * 20]
    random.Random(0).shuffle(faults)
    fake = FakeLLM(shout, faults)
    texts = [f"question {number % 50}" for number in range(60)]
    with serving(fake) as url:
        first = client(url, tmp_path, concurrency=8, input_price=1e6, output_price=5e5, max_retries=12)
        assert first.ask([ask(text) for text in texts], "test") == [text.upper() for text in texts]
        sent = len(fake.requests)
        assert sorted(fake.answered.values()) == [1] * 50
        found = first.report()
        assert {name: found[name] for name in ("replies", "cached", "requests", "retries", "refused")} == {
            "replies": 50, "cached": 0, "requests": sent, "retries": 36, "refused": 0
        }  # fmt: skip
        assert (found["input_tokens"], found["output_tokens"]) == (500, 100)
        assert found["cost"] == found["spent"] == pytest.approx(550)
        second = client(url, tmp_path, input_price=1e6, output_price=5e5)
        assert second.ask([ask(text) for text in texts], "test") == [text.upper() for text in texts]
        assert len(fake.requests) == sent, "everything is in the cache"
        found = second.report()
        assert (found["cached"], found["requests"], found["cost"], found["spent"]) == (50, 0, pytest.approx(550), 0)


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_requests_are_open_than_allowed_and_as_many(tmp_path: Path, concurrency: int) -> None:
    fake = FakeLLM(shout, seconds=0.02)
    with serving(fake) as url:
        client(url, tmp_path, concurrency=concurrency).ask([ask(str(number)) for number in range(12)], "test")
    assert fake.most_open == concurrency


def test_another_question_setting_model_or_endpoint_is_another_question(tmp_path: Path) -> None:
    fake = FakeLLM(shout)
    with serving(fake) as url, serving(fake) as other:
        kinds: Iterable[dict[str, Any]] = ({}, {"temperature": 0.5}, {"model": "b"}, {"extra_body": {"seed": 1}})
        for number, settings in enumerate(kinds, 1):
            for _ in range(2):
                client(url, tmp_path, **settings).ask([ask("a")], "test")
            assert len(fake.requests) == number
        client(other, tmp_path).ask([ask("a")], "test")
        client(url, tmp_path, concurrency=2, timeout=9, max_retries=1).ask([ask("a")], "test")
        client(f"{url}/", tmp_path).ask([ask("a")], "test")
        assert len(fake.requests) == 5
        assert fake.requests[0] == {"model": "judge", "messages": ask("a"), "temperature": 0.0, "max_tokens": 1024}
        assert fake.requests[3]["seed"] == 1
        client(url, tmp_path, temperature=None, max_tokens=None).ask([ask("\ud800")], "a lone surrogate")
        assert fake.requests[-1] == {"model": "judge", "messages": ask("?")}


def test_a_retry_waits_for_as_long_as_the_server_asks(tmp_path: Path) -> None:
    fake = FakeLLM(shout, ["429:0.3"])
    with serving(fake) as url:
        assert client(url, tmp_path).ask([ask("a")], "test") == ["A"]
        assert 0.3 <= fake.times[1] - fake.times[0] < 2
        fake.faults = iter(["429:3600"])
        with pytest.raises(ValueError, match="asks for a wait of 3600 s"):
            client(url, tmp_path).ask([ask("b")], "test")
    soon = retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True))
    assert soon is not None
    assert 25 < soon <= 30
    assert (retry_after("soon"), retry_after("-1"), retry_after(None)) == (None, 0.0, None)


def test_waits_double_with_every_retry(tmp_path: Path) -> None:
    fake = FakeLLM(shout, ["500"] * 4)
    with serving(fake) as url:
        client(url, tmp_path, first_wait=0.04).ask([ask("a")], "test")
    waits = [after - before for before, after in zip(fake.times, fake.times[1:], strict=False)]
    for retry, wait in enumerate(waits):
        assert 0.02 * 2**retry <= wait < 0.04 * 2**retry + 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("401", "check the key"),
        ("403", "its permissions"),
        ("404", "has the model judge"),
        ("402", "HTTP 402"),
        ("quota", "HTTP 429"),
    ],
)
def test_a_refusal_is_no_reason_to_try_again_and_never_shows_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    fake = FakeLLM(shout, [fault])
    with serving(fake) as url:
        one = client(url, tmp_path, api_key_env="JUDGE_KEY")
        with pytest.raises(ValueError, match=words) as failure:
            one.check(ask("there?"))
        assert len(fake.requests) == 1
        assert fake.keys == [f"Bearer {KEY}"]
        assert one.check(ask("there?")) == "THERE?"
        one.ask([ask("a")], "test")
    assert "Bearer *** xxx" in str(failure.value), "the server's own words"
    assert len(str(failure.value)) < 500
    written = "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    assert "judge" in written
    assert KEY not in written + str(failure.value) + caplog.text + repr(vars(one.endpoint._http)) + repr(one.report())


def test_a_check_says_at_once_what_a_server_without_this_api_answers(tmp_path: Path) -> None:
    fake = FakeLLM(shout, ["empty"] * 9)
    with serving(fake) as url, pytest.raises(ValueError, match=r"is not a chat completion: HTTP 200 OK: .*choices"):
        client(url, tmp_path).check(ask("there?"))
    assert len(fake.requests) == 1


def test_a_check_says_at_once_that_nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    start = time.monotonic()
    with pytest.raises(ValueError, match=re.escape(f"the language model at {url} gives no usable reply: ")):
        client(url, tmp_path, first_wait=5).check(ask("there?"))
    assert time.monotonic() - start < 3
    with pytest.raises(ValueError, match=re.escape("gives no usable reply (3 tries)")):
        client(url, tmp_path, max_retries=2).ask([ask("a")], "test")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot keep replies in .*file"):
        client(url, tmp_path / "file").check(ask("there?"))
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(ValueError, match=r"\$NO_KEY .* is not set"):
        client(url, tmp_path, api_key_env="NO_KEY")
    with pytest.raises(ValueError, match=r"needs llm\.endpoint and llm\.model"):
        LLMClient(LLMConfig())


def test_a_key_in_the_wrong_place_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-é")
    for settings in (
        {"api_key_env": KEY},
        {"api_key_env": "JUDGE_KEY"},
        {"endpoint": f"https://user:{KEY}@host/v1"},
        {"endpoint": f"https://host/v1?key={KEY}"},
    ):
        with pytest.raises(ValueError, match="key") as failure:
            client(**{"url": "http://127.0.0.1:9/v1", "cache": tmp_path, **settings})
        assert KEY not in str(failure.value)
        assert "é" not in str(failure.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"endpoint": "localhost:8000/v1"},
        {"endpoint": "http://host/v1/chat/completions"},
        {"model": None},
        {"input_price": 1.0},
        {"extra_body": {"messages": []}},
        {"concurrency": 0},
        {"timeout": 1e12},
    ],
)
def test_contradictions_are_refused_and_any_further_field_is_accepted(settings: dict[str, Any]) -> None:
    further = {"seed": 1, "stop": ["x"], "chat_template_kwargs": {"enable_thinking": False}}
    LLMConfig(endpoint="http://host/v1", model="judge", extra_body=further).validate()
    with pytest.raises(ValueError, match=r"^evaluate\.llm\."):
        LLMConfig(**{"endpoint": "http://host/v1", "model": "judge", **settings}).validate()


def test_one_refused_question_does_not_end_the_run_and_a_fatal_error_keeps_the_replies(tmp_path: Path) -> None:
    fake = FakeLLM(shout, ["ok", "400", "null", "ok", "401"])
    with serving(fake) as url:
        one = client(url, tmp_path, concurrency=1)
        assert one.ask([ask("a"), ask("b"), ask("c")], "test") == ["A", None, ""]
        assert one.report()["refused"] == 1
        assert "HTTP 400" in one.report()["refused_because"]
        with pytest.raises(
            ValueError, match=r"^the language model at .* HTTP 401.*; 1 of 3 replies have arrived and are cached: run"
        ):
            one.ask([ask("d"), ask("e"), ask("f")], "test")
        before = len(fake.requests)
        assert client(url, tmp_path).ask([ask(text) for text in "acdef"], "test") == ["A", "", "D", "E", "F"]
        assert len(fake.requests) == before + 2, "e and f"
        fake.faults = iter(["400"])
        with pytest.raises(ValueError, match="refuses a request"):
            one.check(ask("there?"))


def test_a_damaged_reply_is_asked_again(tmp_path: Path) -> None:
    fake = FakeLLM(shout)
    with serving(fake) as url:
        client(url, tmp_path).ask([ask("a")], "test")
        (stored,) = tmp_path.rglob("*.json")
        whole = json.loads(stored.read_text())
        for damaged in ("", stored.read_text()[:40], "{}", "[]", json.dumps(whole | {"reply": {"text": "A"}})):
            stored.write_text(damaged)
            before = len(fake.requests)
            assert client(url, tmp_path).ask([ask("a")], "test") == ["A"]
            assert len(fake.requests) == before + 1
            assert json.loads(stored.read_text()) == whole


def test_malformed_replies_are_asked_again_once_and_then_counted(tmp_path: Path) -> None:
    def number(text: str) -> int:
        if not text.isdigit():
            raise ValueError("Only a number.")
        return int(text)

    replies = {"good": "7", "hard": "seven", "Only a number.": "8", "bad": "no"}
    fake = FakeLLM(replies.__getitem__)
    with serving(fake) as url:
        one = client(url, tmp_path)
        assert one.ask_parsed([ask("good"), ask("hard")], number, "test") == [7, 8]
        assert [len(request["messages"]) for request in fake.requests] == [1, 1, 3]
        assert fake.requests[-1]["messages"][1:] == [
            {"role": "assistant", "content": "seven"}, {"role": "user", "content": "Only a number."}
        ]  # fmt: skip
        assert one.report()["malformed"] == 0
        replies["Only a number."] = "still no"
        assert one.ask_parsed([ask("bad"), ask("bad"), ask("good")], number, "test") == [None, None, 7]
        assert one.report()["malformed"] == 1
        assert len(fake.requests) == 5


def test_a_killed_run_asks_only_the_rest(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.evaluation.test_llm_client import ask, client\n"
        "client(sys.argv[1], Path(sys.argv[2]), concurrency=3).ask([ask(str(n)) for n in range(60)], 'test')"
    )
    fake = FakeLLM(shout, seconds=0.02)
    with serving(fake) as url:
        command = [sys.executable, "-c", program, url, str(tmp_path)]
        running = subprocess.Popen(command, cwd=ROOT, env=os.environ, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while len(fake.answered) < 20 and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        running.send_signal(signal.SIGKILL)
        running.wait()
        time.sleep(0.1)
        before, kept = len(fake.requests), len(list(tmp_path.rglob("*.json")))
        assert 17 <= kept < 50
        assert before - kept <= 6, "only the requests that were under way"
        replies = client(url, tmp_path, concurrency=3).ask([ask(str(number)) for number in range(60)], "test")
        assert replies == [str(number) for number in range(60)]
        assert len(fake.requests) - before == 60 - kept


def test_an_interrupt_does_not_wait_for_open_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting, sent, wait = threading.Event(), list[float](), concurrent.futures.wait

    def signal_and_wait(*given: Any) -> Any:
        waiting.set()
        return wait(*given)

    def interrupt(text: str) -> str:
        if text == "0":
            # Not earlier: an interrupt in tqdm would leave its lock held, and forked processes would wait for it.
            assert waiting.wait(30)
            sent.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1.5)
        return text

    monkeypatch.setattr(llm_client, "wait", signal_and_wait)
    fake = FakeLLM(interrupt)
    with serving(fake) as url:
        one = client(url, tmp_path, timeout=3, concurrency=2)
        with pytest.raises(KeyboardInterrupt):
            one.ask([ask(str(number)) for number in range(6)], "test")
        assert time.monotonic() - sent[0] < 1.4
        time.sleep(1.7)
        assert len(fake.requests) in (1, 2), "no new ones"
