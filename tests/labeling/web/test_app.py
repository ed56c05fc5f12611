"""The web app as labelers and attackers use it."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from data.records import Samples
from labeling.web.app import SIGN_INS, create_app
from labeling.web.forms import MAX_FIELD, MAX_TEXT
from labeling.web.store import Label, Store

HOSTILE = "<script>alert('no')</script><b onmouseover=x>\" '"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "labels.sqlite")
    samples = [
        Samples(prompt=f"Why {n}? {HOSTILE}", completions=[f"{n}a {HOSTILE}", f"{n}b", f"{n}c"], complete=[True] * 3)
        for n in range(4)
    ]
    made.add(samples, [1] * 4, [None] * 4)
    return made


def signed_in(store: Store, name: str, admin: bool = False) -> TestClient:
    client = TestClient(create_app(store), follow_redirects=False)
    answer = client.post("/sign-in", data={"token": store.invite(name, admin)})
    assert answer.status_code == 303
    return client


@pytest.fixture
def ann(store: Store) -> Iterator[TestClient]:
    with signed_in(store, "ann") as client:
        yield client


def fields(page: str) -> dict[str, str]:
    """The hidden fields of the ranking form."""
    return dict(re.findall(r'name="(csrf|revision)" value="([^"]*)"', page.split("<main>")[1]))


def test_a_labeler_ranks_with_ties_corrects_and_comes_to_the_end(store: Store, ann: TestClient) -> None:
    place = ann.get("/next").headers["location"]
    page = ann.get(place).text
    form = fields(page) | {"rank-0": "3", "rank-1": "1", "rank-2": "", "quality-1": "6", "opinion-1": "yes"}
    form |= {"quality-0": "2", "hallucination-0": "no"}
    assert ann.post(place, data=form).headers["location"] == "/next"
    assert ann.post(place, data=form).headers["location"] == "/next", "sent twice"
    (label,) = [label for _, _, label, _ in store.labels()]
    assert label.ranks == [2, 1, None], "ranks without gaps"
    assert label.ratings[2] == {}
    nullable = [[rating[name] for name in ("hallucination", "satisfies_constraint")] for rating in label.ratings[:2]]
    assert nullable == [[False, None], [None, None]], "what does not apply is not false"
    assert (label.ratings[1]["quality"], label.ratings[1]["opinion"], label.ratings[1]["harmful_advice"]) == (
        6,
        True,
        False,
    )
    back = ann.get("/previous").headers["location"]
    assert back == place
    again = ann.get(back).text
    assert fields(again)["revision"] == "1"
    assert ann.post(place, data=fields(again) | {"rank-0": "1", "rank-1": "1", "rank-2": "1"}).status_code == 303
    assert [label.ranks for _, _, label, _ in store.labels()] == [[1, 1, 1]]
    for _ in range(3):
        place = ann.get("/next").headers["location"]
        done = ann.post(place, data=fields(ann.get(place).text) | {"skipped": "unclear"})
        assert done.status_code == 303
    assert "All tasks are labelled" in ann.get("/next").text
    assert "4 of 4 labels are saved. You have saved 4." in ann.get("/").text


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({}, "Rank at least two answers, or skip the task with a reason."),
        ({"rank-0": "1"}, "Rank at least two answers"),
        ({"rank-0": "1", "rank-1": "4"}, "A rank is a number from 1 to 3."),
        ({"rank-0": "1", "rank-1": "²"}, "A rank is a number from 1 to 3."),
        ({"rank-0": "1", "rank-1": "1" * 5000}, "A rank is a number from 1 to 3."),
        ({"rank-0": "1", "rank-1": "2", "skipped": "unclear"}, "ranks or ratings and a reason for skipping"),
        ({"rank-0": "1", "demonstration": "Because."}, "Rank at least two answers"),
        ({"rank-0": "1", "rank-1": "2", "demonstration": "a\0b"}, "characters that cannot be stored"),
        ({"rank-0": "1", "rank-1": "2", "quality-2": "8"}, "Quality is a number from 1 to 7."),
        ({"rank-0": "1", "rank-1": "2", "opinion-2": "yes"}, "Give a quality to every answer of which you set flags."),
        ({"skipped": "bored"}, "Choose a reason for skipping from the list."),
        ({"rank-0": "1", "rank-1": "2", "demonstration": "x" * (MAX_TEXT + 1)}, "The text is too long"),
        ({"rank-0": "1", "rank-1": "2", "revision": "one"}, "The form is incomplete. Reload the page."),
    ],
)
def test_what_cannot_be_saved_is_explained_and_what_was_entered_stays(
    store: Store, ann: TestClient, change: dict[str, str], sentence: str
) -> None:
    place = ann.get("/next").headers["location"]
    answer = ann.post(place, data=fields(ann.get(place).text) | {"quality-1": "5"} | change)
    assert answer.status_code == 422
    assert sentence in answer.text
    assert (
        '<select name="quality-1"><option value="">–</option><option>1</option><option>2</option><option>3</option>'
        "<option>4</option><option selected>5</option>" in answer.text
    )
    assert list(store.labels()) == []


def test_a_form_of_an_older_page_overwrites_nothing(store: Store, ann: TestClient) -> None:
    place = ann.get("/next").headers["location"]
    old = fields(ann.get(place).text)
    assert ann.post(place, data=old | {"rank-0": "1", "rank-1": "2"}).status_code == 303
    answer = ann.post(place, data=old | {"rank-0": "2", "rank-1": "1"})
    assert answer.status_code == 409
    assert "saved in another window" in answer.text
    assert [label.ranks for _, _, label, _ in store.labels()] == [[1, 2, None]]
    assert ann.post(place, data=fields(answer.text) | {"rank-0": "2", "rank-1": "1"}).status_code == 303, "on purpose"
    assert [label.ranks for _, _, label, _ in store.labels()] == [[2, 1, None]]


def test_what_people_and_models_wrote_is_shown_as_text(store: Store) -> None:
    with signed_in(store, HOSTILE) as client:
        page = client.get(client.get("/next").headers["location"]).text
    assert "alert(" in page
    assert HOSTILE not in page
    assert "<script>alert" not in page
    assert "onmouseover=x&gt;" in page
    assert page.count("<script") == 1
    with signed_in(store, "root", admin=True) as client:
        assert "<script" not in client.get("/admin").text


ROUTES = [
    ("GET", "/next"), ("GET", "/previous"), ("GET", "/rank/1"), ("POST", "/rank/1"), ("GET", "/admin"),
    ("POST", "/admin/invite"), ("GET", "/admin/rankings.jsonl"), ("POST", "/sign-out"),
]  # fmt: skip


def test_nobody_gets_in_without_an_invitation(store: Store) -> None:
    store.invite("ann")
    with TestClient(create_app(store), follow_redirects=False) as client:
        for method, route in ROUTES:
            assert client.request(method, route).status_code == 401, route
        for cookie in ("", "x", "session"):
            client.cookies.set("session", cookie)
            assert client.get("/next").status_code == 401
        assert "Sign in" in client.get("/").text
        assert client.get("/docs").status_code == client.get("/openapi.json").status_code == 404


def test_labelers_reach_neither_admin_pages_nor_the_tasks_of_others(store: Store, ann: TestClient) -> None:
    for method, route in [("GET", "/admin"), ("GET", "/admin/rankings.jsonl"), ("POST", "/admin/invite")]:
        assert ann.request(method, route).status_code == 403, route
    with signed_in(store, "ben") as ben:
        place = ben.get("/next").headers["location"]
    assert ann.get(place).status_code == 404
    csrf = fields(ann.get(ann.get("/next").headers["location"]).text)
    assert ann.post(place, data=csrf | {"rank-0": "1", "rank-1": "2"}).status_code == 404
    assert list(store.labels()) == []


@pytest.mark.parametrize("csrf", [None, "", "x", "of another session"])
def test_a_form_of_another_site_or_session_is_refused(store: Store, ann: TestClient, csrf: str | None) -> None:
    place = ann.get("/next").headers["location"]
    form = {"revision": "0", "rank-0": "1", "rank-1": "2"} | ({} if csrf is None else {"csrf": csrf})
    if csrf == "of another session":
        with signed_in(store, "ann2") as other:
            form["csrf"] = fields(other.get(other.get("/next").headers["location"]).text)["csrf"]
    assert ann.post(place, data=form).status_code == 403
    assert list(store.labels()) == []


def test_what_was_written_is_shown_when_the_session_has_ended(store: Store, ann: TestClient) -> None:
    place = ann.get("/next").headers["location"]
    form = fields(ann.get(place).text) | {"demonstration": f"Because.\r\n{HOSTILE}"}
    refused = ann.post(place, data=form | {"csrf": "of another session"})
    store.sign_out(str(ann.cookies.get(ann.app.app.app.state.pages.cookie)))  # type: ignore[attr-defined]
    ended = ann.post(place, data=form)
    assert (refused.status_code, ended.status_code, list(store.labels())) == (403, 401, [])
    for answer in (refused, ended):
        assert "What you wrote was not saved" in answer.text
        assert "Because." in answer.text
        assert HOSTILE not in answer.text
    assert "What you wrote" not in ann.post(place, data={"revision": "0"}).text
    asked = ann.post("/playground", data={"prompt": "Why is the sky blue?"})
    assert (asked.status_code, "Why is the sky blue?" in asked.text) == (401, True)


def test_a_clock_that_was_set_back_gives_no_negative_time(
    store: Store, ann: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = ann.get("/next").headers["location"]
    form = fields(ann.get(place).text) | {"skipped": "unclear"}
    before = time.time() - 60
    monkeypatch.setattr(time, "time", lambda: before)
    assert ann.post(place, data=form).status_code == 303
    assert [one.label.seconds for one in store.history()] == [0.0]


def test_other_hosts_files_and_large_or_many_requests_are_refused(store: Store, ann: TestClient) -> None:
    assert ann.get("/", headers={"host": "evil.example"}).status_code == 400, "a name that resolves to this machine"
    for path in ("/static/../app.py", "/static/..%2fapp.py", "/static/%2e%2e/store.py", "/rank/..%2f..%2fetc"):
        assert ann.get(path).status_code in (404, 422), path
    place = ann.get("/next").headers["location"]
    assert ann.post(place, data={"demonstration": "x" * (MAX_FIELD + 1)}).status_code == 400
    chunks = (part for part in [b"demonstration=", *[b"x" * 100_000] * 20])
    kind = {"content-type": "application/x-www-form-urlencoded"}
    assert ann.post(place, content=chunks, headers=kind).status_code == 400, "without a length"
    longest = fields(ann.get(place).text) | {"demonstration": "\N{GRINNING FACE}" * MAX_TEXT}
    assert ann.post(place, data=longest).status_code == 303, "the longest text that may be saved"
    with TestClient(create_app(store), follow_redirects=False) as client:
        codes = [client.post("/sign-in", data={"token": "guess"}).status_code for _ in range(SIGN_INS + 1)]
        assert codes == [401] * SIGN_INS + [429]
        token = store.invite("dora")
        assert client.post("/sign-in", data={"token": token}).status_code == 303, "who has a token gets in"
        assert client.get("/", headers={"host": "[::1]:8000"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"},
        {"origin": "http://testserver:81"},
    ],
)  # fmt: skip
def test_another_site_can_neither_sign_somebody_in_nor_send_a_form(store: Store, headers: dict[str, str]) -> None:
    token = store.invite("eve")
    with TestClient(create_app(store), follow_redirects=False) as client:
        assert client.post("/sign-in", data={"token": token}, headers=headers).status_code == 403
        own = {"origin": "http://testserver", "sec-fetch-site": "same-origin"}
        assert client.post("/sign-in", data={"token": token}, headers=own).status_code == 303


def test_a_store_that_cannot_be_written_says_so_and_shows_no_traceback(
    store: Store, ann: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = ann.get("/next").headers["location"]
    form = fields(ann.get(place).text) | {"rank-0": "1", "rank-1": "2", "demonstration": "So it is."}
    monkeypatch.setattr(store, "path", store.path.parent)
    answer = ann.post(place, data=form)
    assert answer.status_code == 503
    assert "So it is." in answer.text
    assert "Nothing was saved" in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_unknown_places_are_pages(ann: TestClient) -> None:
    for place in ("/rank/x", "/rank/99999999999999999999999", "/nowhere"):
        answer = ann.get(place)
        assert answer.status_code == 404
        assert "This did not work" in answer.text


def test_every_answer_has_the_headers_that_protect_it(store: Store, ann: TestClient) -> None:
    for answer in (ann.get("/"), ann.get("/static/rank.js"), ann.get("/nowhere"), ann.get("/admin")):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin", (
            "with no-referrer, browsers send forms without origin"
        )
    cookie = ann.post("/sign-in", data={"token": store.invite("eve")}).headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie


def test_an_admin_invites_and_exports_and_sees_agreement(store: Store, ann: TestClient) -> None:
    place = ann.get("/next").headers["location"]
    ann.post(place, data=fields(ann.get(place).text) | {"rank-0": "1", "rank-1": "2", "rank-2": "2"})
    with signed_in(store, "root", admin=True) as root:
        page = root.get("/admin").text
        assert "1 of 4 labels saved" in page
        assert "No two labelers have ranked the same answers yet." in page
        csrf: dict[str, Any] = {"csrf": fields(page)["csrf"]}
        invited = root.post("/admin/invite", data=csrf | {"name": "cleo"}).text
        token = re.findall(r"<code>(.+)</code>", invited)[0]
        assert store.sign_in(token) is not None
        assert root.post("/admin/invite", data=csrf | {"name": "root"}).status_code == 422
        rows = [json.loads(line) for line in root.get("/admin/rankings.jsonl").text.splitlines()]
    assert [(row["ranks"], row["labeler_id"], row["labeler"]) for row in rows] == [([1, 2, 2], "ann", "human")]


def test_a_label_of_the_store_is_shown_in_the_form(store: Store, ann: TestClient) -> None:
    place = ann.get("/next").headers["location"]
    store.save(1, "ann", Label([2, 1, 1], [{"quality": 3}, {}, {}], demonstration="Because."), 0)
    page = ann.get(place).text
    assert "You saved this task before" in page
    assert ">Because.</textarea>" in page
    for answer, rank in enumerate(("2", "1", "1")):
        chosen = page.split(f'name="rank-{answer}"')[1].split("</select>")[0]
        assert re.findall(r"<option selected>(\d)", chosen) == [rank]
