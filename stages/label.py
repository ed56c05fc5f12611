"""Web app in which people rank the answers of a run and chat with its models, or compare answers of PPO and SFT.

python -m stages.label runs/mine --invite ann      # prints ann's invitation token
python -m stages.label runs/mine                   # serves http://127.0.0.1:8000
python -m stages.label runs/mine --export exported
python -m stages.label runs/mine --import elsewhere --as label-studio
"""

import argparse
import json
import random
import signal
import socket
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from stages.errors import report

if TYPE_CHECKING:
    from types import FrameType

    from data.records import Samples
    from labeling.web.chat_model import LoadedModel
    from labeling.web.playground import Chat
    from labeling.web.store import Store
    from modeling.config import ModelConfig

PLACE = Path("people") / "labels.sqlite"
"""The labels, in the run folder."""
OTHER_PLACE = Path("people") / "comparisons.sqlite"
"""The comparisons of models, which train nothing."""
COMPARED = Path("evaluate") / "generations.jsonl"
"""The answers that are compared."""
EXPORTED = ".exported.json"
"""Name of the file, in the export folder, that lists what the last export wrote."""
STREAM_SECONDS = 5
"""Seconds that open streams of the playground get to finish when the app ends."""
LOADING = ("trust_remote_code", "precision", "attention", "device")
"""Settings of `model` that are used to load a saved model."""


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    given = parser().parse_args(arguments)
    try:
        work(given)
    except (OSError, ValueError) as error:
        return report(error, None)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m stages.label", description="People rank the answers of a run.")
    add = made.add_argument
    add("run", type=Path, help="the run folder")
    add(
        "--of",
        choices=["samples", "evaluate"],
        default="samples",
        help="samples: rank the answers of the samples stage; evaluate: compare first answers of PPO and SFT blindly",
    )
    add("--labelers", type=int, default=2, metavar="N", help="labelers of a task in the overlap (default: 2)")
    add(
        "--overlap",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="share of the tasks that --labelers people get; the others get one (default: 0.1)",
    )
    add(
        "--gold",
        type=Path,
        metavar="FILE",
        help="rankings in JSON Lines with the right ranks, for every labeler; the admin page shows who agrees",
    )
    add("--invite", metavar="NAME", help="print an invitation token for a labeler and stop")
    add("--invite_admin", metavar="NAME", help="the same for an admin")
    add(
        "--export",
        type=Path,
        metavar="FOLDER",
        help="write rankings, demonstrations, all labels and the playground's conversations, and stop",
    )
    add("--import", type=Path, metavar="PLACE", dest="place", help="add the labels of a file or folder and stop")
    add(
        "--as",
        choices=["own", "label-studio", "argilla"],
        default="own",
        dest="form",
        help="format of --export and --import: this app's own (default), Label Studio's or Argilla's",
    )
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)")
    add("--name", action="append", default=[], metavar="HOST", help="a host name under which others reach the app")
    add("--port", type=int, default=8000, help="default: 8000")
    return made


def work(given: argparse.Namespace) -> None:
    """Raises ValueError for a run without answers, and for values out of range."""
    from labeling.web.imports import read_labels
    from labeling.web.store import Store

    if not 1 <= given.labelers <= 1000 or not 0 <= given.overlap <= 1 or not 0 <= given.port < 65536:
        raise ValueError("--labelers must be from 1 to 1000, --overlap from 0 to 1, and --port from 0 to 65535")
    place = given.run / (PLACE if given.of == "samples" else OTHER_PLACE)
    if given.place is not None:
        found = read_labels(given.place, given.form)
        print(f"{Store(place).merge(found)} of {len(found)} labels are new in {place}")
        return
    if given.export is not None and place.is_file() and (given.form == "own" or not sampled(given)):
        export(Store(place), given.export, given.form)
        return
    samples = answers_of(given.run) if given.of == "samples" else comparisons(given.run)
    store = Store(place)
    if given.export is not None:  # tasks that nobody has labelled yet, for another tool
        if not store.assigns(samples):
            fill(store, samples, given)
        export(store, given.export, given.form)
        return
    invited = [(name, admin) for name, admin in ((given.invite, False), (given.invite_admin, True)) if name is not None]
    for name, admin in invited:
        print(store.invite(name, admin))
    if not invited:
        fill(store, samples, given)
        serve(store, given)


def export(store: "Store", folder: Path, form: str) -> None:
    """Writes the labels to a folder in a format. Raises ValueError if a file there is not from an earlier export."""
    from data.files import write_rows
    from labeling.web import argilla, label_studio
    from labeling.web.export import rows_of
    from modeling.disk import write_whole

    folder.mkdir(parents=True, exist_ok=True)
    if form == "own":
        exported = {name: list(rows) for name, rows in rows_of(store).items()}
        earlier = json.loads((folder / EXPORTED).read_text()) if (folder / EXPORTED).is_file() else []
        for name, rows in exported.items():
            if rows and name not in earlier and (folder / f"{name}.jsonl").exists():
                raise ValueError(
                    f"{folder / name}.jsonl is not from an earlier export: give another folder to --export"
                )
        for name in earlier:
            if not exported[name]:  # its rows have been deleted since
                (folder / f"{name}.jsonl").unlink(missing_ok=True)
        write_whole(folder / EXPORTED, json.dumps([name for name, rows in exported.items() if rows]).encode())
        for name, rows in exported.items():
            if rows:
                write_rows(folder / f"{name}.jsonl", rows)
            print(f"{len(rows)} {name} in {folder}")
        return
    tasks = store.tasks()
    for name, text in (label_studio if form == "label-studio" else argilla).files_of(tasks).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    print(f"{len(tasks)} tasks with {sum(len(labels) for _, labels in tasks)} labels in {folder}")


def serve(store: "Store", given: argparse.Namespace) -> None:
    """Serves the app until Ctrl-C. Raises ValueError if nobody was invited, or if the port is taken."""
    import uvicorn

    from labeling.web.app import HOSTS, create_app
    from labeling.web.playground import Chat

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: "FrameType | None") -> None:
            chat.ending.set()
            super().handle_exit(sig, frame)

    if not store.people():
        other = " --of evaluate" if given.of == "evaluate" else ""
        raise ValueError(
            f"nobody can sign in yet: invite people with `python -m stages.label {given.run}{other} --invite NAME`"
        )
    family = socket.AF_INET6 if ":" in given.host else socket.AF_INET
    try:
        server = socket.create_server((given.host, given.port), family=family)
    except OSError as error:
        reason = (error.strerror or str(error)).split(" (")[0]
        raise ValueError(
            f"cannot serve at {given.host}, port {given.port} ({reason}): give another --port or --host"
        ) from None
    with server as listening:
        host, *names = (f"[{name}]" if ":" in name else name for name in (given.host, *given.name))
        print(f"label: http://{host}:{listening.getsockname()[1]}, labels are kept in {store.path}", flush=True)
        chat = chat_of(given.run) if given.of == "samples" else Chat()
        app = create_app(store, (*HOSTS, host, *names), chat)
        for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn handles these, and sends them again when it has ended
            signal.signal(number, lambda *_: None)
        how = uvicorn.Config(app, log_level="warning", proxy_headers=False, timeout_graceful_shutdown=STREAM_SECONDS)
        Server(how).run(sockets=[listening])
    print("label: stopped; everything that was saved is kept")


def chat_of(run: Path) -> "Chat":
    """The finished models of a run, with the generation settings of its samples."""
    from labeling.web.playground import Chat, Settings
    from labeling.web.streaming import ModelThread
    from modeling.config import ModelConfig
    from stages.manifest import read, stage_digest

    models, settings = {}, Settings()
    for name in ("ppo", "sft"):
        if (found := read(run / name)) is None:
            continue
        saved, how = found.config["model"], found.config["samples"]
        config = ModelConfig(**{key: saved[key] for key in LOADING})
        ema = name == "ppo" and found.config["evaluate"]["weights"] == "ema"
        models[name] = ModelThread(
            partial(load, run / name / ("model_ema" if ema else "model"), config), stage_digest(run / name)
        )
        settings = Settings(min(how["max_new_tokens"], 1000), how["temperature"], how["top_k"], how["top_p"])
    return Chat(models, settings)


def load(place: Path, config: "ModelConfig") -> "LoadedModel":
    """A model to chat with; imports torch."""
    from labeling.web.chat_model import LoadedModel

    return LoadedModel.load(place, config)


SHARES = {"train": 8, "valid": 1, "test": 1}
"""Of ten tasks in a row, those of each split, while it has any: the held-out splits alone would take most labels."""


def sampled(given: argparse.Namespace) -> bool:
    """Whether the run has the answers that people are to rank."""
    train = Path("samples") / "samples_train.jsonl"
    return (given.run / (train if given.of == "samples" else COMPARED)).is_file()


def answers_of(run: Path) -> "list[Samples]":
    """The prompts of the samples stage with their answers, in the order in which they are given out. Raises ValueError
    if it has not run.
    """
    from data.files import read_records
    from data.records import SPLITS, Samples

    files = {split: run / "samples" / f"samples_{split}.jsonl" for split in SPLITS}
    if missing := [path for path in files.values() if not path.is_file()]:
        raise ValueError(f"there is no {missing[0]}: run `make samples` first")
    placed = []
    for split, path in files.items():
        found = [record for record in read_records(path, Samples) if len(record.completions) > 1]
        random.Random("queue").shuffle(found)
        placed += [((number + 0.5) / SHARES[split], record) for number, record in enumerate(found)]
    return [record for _, record in sorted(placed, key=lambda one: one[0])]


def comparisons(run: Path) -> "list[Samples]":
    """The held-out prompts with the first answers of PPO and SFT, all in random order; equal answers are left out."""
    from data.files import read_rows
    from data.records import Prompt, Samples
    from data.sets import read_set

    path = run / COMPARED
    if not path.is_file():
        raise ValueError(f"there is no {path}: run `make evaluate` first")
    asked, found = {prompt.prompt_id: prompt for prompt in read_set(run / "data", "sft", "test")}, []
    for _, row in read_rows(path):
        pair = [row["ppo"][0], row["sft"][0]]
        random.Random(row["prompt_id"]).shuffle(pair)
        if pair[0]["text"] != pair[1]["text"] and row["prompt_id"] in asked:
            texts, ended = [one["text"] for one in pair], [one["complete"] for one in pair]
            prompt = vars(Prompt.of(asked[row["prompt_id"]]))
            found.append(Samples(**prompt, completions=texts, complete=ended))
    return random.Random("queue").sample(found, len(found))


def fill(store: "Store", samples: "Sequence[Samples]", given: argparse.Namespace) -> None:
    """Makes these answers the store's tasks, together with the gold tasks; an answer that is also a gold task becomes a
    gold task only. The tasks of the overlap depend only on their prompts.
    """
    from data.files import read_records
    from data.records import Prompt, Ranking, Samples
    from labeling.web.store import text_of

    gold = read_records(given.gold, Ranking) if given.gold is not None else []
    if any(ranking.ranks is None for ranking in gold):
        raise ValueError(f"{given.gold}: gold tasks need ranks")
    right = [
        Samples(
            **vars(Prompt.of(one)), completions=one.completions, complete=one.complete or [True] * len(one.completions)
        )
        for one in gold
    ]
    screening = set(map(text_of, right))
    samples = [one for one in samples if text_of(one) not in screening]
    slots = [given.labelers if random.Random(one.prompt_id).random() < given.overlap else 1 for one in samples]
    everybody = 1_000_000
    store.add([*right, *samples], [everybody] * len(right) + slots, [one.ranks for one in gold] + [None] * len(samples))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
