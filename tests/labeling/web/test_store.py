"""Slots are given out once, labels are never lost or doubled, and a record says what was saved."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from data.records import Ranking, Samples, parse, to_row
from labeling.web import store as module
from labeling.web.export import rankings_of, screening
from labeling.web.store import Label, Store


def tasks(count: int, answers: int = 3) -> list[Samples]:
    return [
        Samples(prompt=f"Why {n}?", completions=[f"{n}{letter}" for letter in "abcdefghi"[:answers]],
                complete=[True] * answers)
        for n in range(count)
    ]  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "people" / "labels.sqlite")
    for name in ("ann", "ben", "cleo"):
        made.invite(name)
    return made


def test_no_slot_is_given_out_twice_to_labelers_who_come_at_the_same_time(store: Store) -> None:
    store.add(tasks(20), [2] * 10 + [1] * 10, [None] * 20)
    names = [f"p{number}" for number in range(8)]
    for name in names:
        store.invite(name)
    taken: list[tuple[int, str]] = []

    def work(name: str) -> None:
        while (task := store.claim(name)) is not None:
            taken.append((task.id, name))
            assert store.save(task.id, name, Label([1, 2, None]), 0)

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(taken)) == len(taken) == 30
    assert sorted(Counter(task for task, _ in taken).values()) == [1] * 10 + [2] * 10
    assert store.progress("p0")["done"] == store.progress()["slots"] == 30


def test_a_form_that_is_sent_twice_is_one_label_and_a_correction_keeps_the_first(store: Store) -> None:
    store.add(tasks(1), [1], [None])
    task = store.claim("ann")
    assert task is not None
    assert store.save(task.id, "ann", Label([1, 2, 2], seconds=3.0), 0)
    assert store.save(task.id, "ann", Label([1, 2, 2], seconds=4.0), 0), "the same again"
    assert not store.save(task.id, "ann", Label([2, 1, 1]), 0), "another window, which has not seen the first"
    assert store.save(task.id, "ann", Label([2, 1, 1]), 1)
    last = store.last("ann")
    assert last is not None
    assert (last.label, last.revision) == (Label([2, 1, 1]), 2)
    assert [label.ranks for _, _, label, _ in store.labels()] == [[2, 1, 1]]
    with store.connected() as db:
        kept = [json.loads(row["label"]) for row in db.execute("SELECT label FROM labels ORDER BY revision")]
    assert [(label["ranks"], label["seconds"]) for label in kept] == [([1, 2, 2], 3.0), ([2, 1, 1], 0.0)]
    with pytest.raises(ValueError, match="the task 1 is not one that ben has opened"):
        store.save(task.id, "ben", Label([1, 2, 3]), 0)


def test_a_task_that_was_left_goes_to_others_and_its_first_labeler_can_still_save(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add(tasks(1), [1], [None])
    task = store.claim("ann")
    assert task is not None
    assert store.claim("ben") is None
    assert store.claim("ann") == task, "after a reload"
    later = time.time() + module.CLAIM_SECONDS + 1
    monkeypatch.setattr("time.time", lambda: later)
    renewed = store.claim("ann")
    assert renewed is not None
    assert renewed.id == task.id
    assert store.claim("ben") is None, "ann came back first"
    monkeypatch.setattr("time.time", lambda: later + module.CLAIM_SECONDS + 1)
    assert store.claim("ben") is not None
    assert store.claim("ann") is None, "it is ben's now"
    assert store.save(task.id, "ann", Label([1, 2, 3]), 0), "from a page that was open"
    assert store.save(task.id, "ben", Label([1, 3, 2]), 0)
    assert [ranking.labeler_id for ranking in rankings_of(store)] == ["ann", "ben"]


KILLED = """
import sys
from pathlib import Path
from labeling.web.store import Label, Store
store = Store(Path(sys.argv[1]))
while (task := store.claim("ann")) is not None:
    store.save(task.id, "ann", Label([1, 2, 3]), 0)
    print(task.id, flush=True)
"""


def test_a_label_is_on_the_disk_once_it_is_said_to_be_saved(store: Store) -> None:
    store.add(tasks(3000), [1] * 3000, [None] * 3000)
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(store.path)], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdout is not None
    said = [int(process.stdout.readline()) for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    said += [int(line) for line in process.stdout.read().split()]
    process.wait()
    saved = [samples.prompt for _, samples, _, _ in Store(store.path).labels()]
    assert len(saved) == len(set(saved))
    assert len(said) <= len(saved) <= len(said) + 1
    assert {f"Why {task - 1}?" for task in said} <= set(saved)
    assert Store(store.path).claim("ann") is not None, "the file still works"


def test_records_have_ties_unranked_answers_and_ratings_in_the_order_of_the_samples(store: Store) -> None:
    (samples,) = tasks(1, 4)
    store.add([samples], [3], [None])
    orders = []
    for name, ranks in (("ann", [2, 1, None, 1]), ("ben", [1, 2, 3, 4])):
        task = store.claim(name)
        assert task is not None
        orders.append(task.shown)
        store.save(task.id, name, Label(ranks, [{"quality": n + 1} for n in range(4)], seconds=2.5), 0)
    task = store.claim("cleo")
    assert task is not None
    store.save(task.id, "cleo", Label(skipped="unclear"), 0)
    assert sorted(orders[0]) == [0, 1, 2, 3]
    assert orders[0] != orders[1], "each labeler has an order of her own"
    first, second = rankings_of(store)
    assert parse(json.loads(json.dumps(to_row(first))), Ranking) == first
    assert (first.ranks, first.labeler_id, first.labeler) == ([2, 1, None, 1], "ann", "human")
    assert first.ratings == [{"quality": 1}, {"quality": 2}, {"quality": 3}, {"quality": 4}]
    assert (first.prompt_id, first.completions) == (samples.prompt_id, samples.completions)
    assert second.ranks == [1, 2, 3, 4]


def test_tasks_that_are_replaced_are_not_given_out_and_keep_their_labels(store: Store) -> None:
    old, new = tasks(2), tasks(4)[2:]
    store.add(old, [1, 1], [None, None])
    task = store.claim("ann")
    assert task is not None
    store.save(task.id, "ann", Label([1, 2, 3]), 0)
    open_one = store.claim("ann")
    assert open_one is not None
    assert store.add(new, [1, 2], [None, None]) == 2
    given = []
    while (task := store.claim("ann")) is not None:
        store.save(task.id, "ann", Label([1, 2, 3]), 0)
        given.append(task.samples.prompt)
    assert given == ["Why 2?", "Why 3?"]
    assert store.progress("ann") == {"slots": 3, "done": 2, "own": 3, "tasks": 2}
    assert store.save(open_one.id, "ann", Label([1, 2, 3]), 0), "from a page that was open"
    assert len(list(rankings_of(store))) == 4
    assert store.add(new, [1, 3], [None, None]) == 0
    assert store.progress()["slots"] == 4, "the overlap can be raised"


def test_labelers_are_compared_with_each_other_and_with_gold_tasks(store: Store) -> None:
    store.add(tasks(2), [1_000_000, 2], [[1, 2, 2], None])
    for name, gold, own in (("ann", [1, 2, 3], [1, 2, 3]), ("ben", [2, 1, 1], [1, 3, 2]), ("cleo", [1, 2, None], None)):
        for ranks in filter(None, (gold, own)):
            task = store.claim(name)
            assert task is not None
            store.save(task.id, name, Label(ranks), 0)
    agreed, screened = screening(store)
    assert agreed is not None
    assert agreed["strict"]["mean"] == pytest.approx(2 / 3)
    assert {name: (found["pairs"], found["right"], found["passes"]) for name, found in screened.items()} == {
        "ann": (2, 1.0, True), "ben": (2, 0.0, False), "cleo": (2, 0.5, False),
    }  # fmt: skip
    assert len(list(rankings_of(store))) == 2, "gold tasks train nothing"


def test_tokens_and_sessions_are_stored_as_hashes_and_a_renewed_invitation_ends_the_old_one(store: Store) -> None:
    token = store.invite("dora")
    secret = store.sign_in(token)
    assert secret is not None
    session = store.session(secret)
    assert session is not None
    assert (session.name, session.admin) == ("dora", False)
    kept = b"".join(path.read_bytes() for path in store.path.parent.iterdir())
    assert token.encode() not in kept
    assert secret.encode() not in kept
    store.invite("dora", admin=True)
    assert store.session(secret) is None
    assert store.sign_in(token) is None
