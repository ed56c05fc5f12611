"""InstructGPT's loop (Ouyang et al. 2022, 3.1): in each round, answers of the latest policy are ranked, the reward
model is trained on the rankings of all rounds, and PPO trains a new policy from SFT.

python -m stages.loop --config configs/demo.yaml --rounds 2

Each round is a run folder `<runs_folder>/<run_name>-loop/round-N` with all stages. An interrupted loop continues when
the command is run again, also with more rounds.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any

from modeling.disk import write_whole
from stages import data, manifest, pipeline, sft
from stages.config import FORCE, RunConfig
from stages.label import PLACE, answers_of
from stages.labels import close, left_out
from stages.launch import connected
from stages.pins import pin
from stages.runner import RunFolder, adopt, main, make_folder
from stages.unfinished import interrupted_after

OPTIONS: Mapping[str, Mapping[str, Any]] = FORCE | {
    "rounds": {"type": int, "default": 2, "help": "Number of rounds in all (default: 2)."},
    "unlabelled": {"action": "store_true", "help": "Continue although people have not labelled all tasks of a round."},
}
COLLECTED = ("prompts", "demonstrations", "rankings")
"""What the next round reads from the web apps of earlier rounds; each is a setting in `data`."""


def work(config: RunConfig, force: bool, rounds: int = 2, unlabelled: bool = False) -> None:
    """Runs the rounds, and writes `loop.json`, index.html and report.md in the loop's folder."""
    from modeling.accelerator import from_main
    from reports.loop import write_loop

    if rounds < 1:
        raise ValueError(f"--rounds must be at least 1, found {rounds}")
    if config.labels.labeler == "none":
        raise ValueError("a loop needs a labeler: set labels.labeler to simulated, human or llm")
    if rounds > 1 and config.model.trust_remote_code and not config.evaluate.trust_remote_code:
        raise ValueError(
            "each round also evaluates the policies of earlier rounds, and their code runs only with "
            "evaluate.trust_remote_code: set evaluate.trust_remote_code too"
        )
    accelerator = connected(config)
    done: list[Path] = []
    for number in range(1, rounds + 1):
        accelerator.print(f"loop: round {number} of {rounds}", flush=True)
        current = from_main(accelerator, partial(prepared, config, done, force))
        run = RunFolder(Path(current.runs_folder) / current.run_name)
        again = force
        if current.labels.labeler == "human" and manifest.read(run.stage("labels")) is None:
            pipeline.work(current, force, last="samples")
            if not unlabelled:
                from_main(accelerator, partial(refuse_unlabelled, run))
            again = False
        if current.labels.labeler == "human":
            from_main(accelerator, partial(close_round, run, round_folder(config, number + 1), force))
            if late := from_main(accelerator, partial(left_out, run.root)):
                accelerator.print(f"loop: ignored {late} ranking(s), saved in {run.root} after its labels stage")
        pipeline.work(current, again)
        done.append(run.root)
        from_main(accelerator, partial(write_loop, done, done[-1].parent))
    accelerator.print(f"loop: done, report: {done[-1].parent / 'index.html'}")


def close_round(run: RunFolder, following: Path, force: bool) -> None:
    """Closes a round: only the rankings saved so far count. A round stays as it is if the next one has begun, or if an
    interrupted stage that read its rankings will resume.
    """
    if force or not (following.exists() or interrupted_after("labels", run)):
        close(run.root)


def round_folder(config: RunConfig, number: int) -> Path:
    """The folder of a round, from 1."""
    return Path(config.runs_folder) / f"{config.run_name}-loop" / f"round-{number}"


def prepared(config: RunConfig, done: Sequence[Path], force: bool) -> RunConfig:
    """Begins the round after these, and takes the data and SFT of the round before if they would be the same."""
    current = begin(config, done)
    current.validate()
    current = pin(current, Path(current.runs_folder) / current.run_name, *done)
    if done and not force:
        for stage in (data.STAGE, sft.STAGE):
            adopt(stage, current, RunFolder(done[-1]))
    return current


def begin(config: RunConfig, done: Sequence[Path]) -> RunConfig:
    """The configuration of the round after these; makes its folder and round.json."""
    root = round_folder(config, len(done) + 1)
    current = replace(deepcopy(config), runs_folder=str(root.parent), run_name=root.name)
    make_folder(root)
    if done:
        weights = {"ema": "model_ema", "last": "model"}[config.evaluate.weights]
        policies = [str(run / "ppo" / weights) for run in done]
        current.samples.policy = policies[-1]
        current.samples.leave_out += [str(run / "samples") for run in done]
        current.labels.earlier += [str(done[-1] / "labels")]  # with the rankings of the rounds before
        current.evaluate.models += policies
        collect(done, root)
        for name in COLLECTED:
            if (file := root / "collected" / f"{name}.jsonl").is_file():
                # First in the list: of two answers to a prompt, the data stage keeps the first one.
                getattr(current.data, name).insert(0, str(file))
    about = {"round": len(done) + 1, "parent": done[-1].name if done else None, "policy": current.samples.policy}
    write_whole(root / "round.json", f"{json.dumps(about, indent=2)}\n".encode())
    return current


def collect(done: Sequence[Path], root: Path) -> None:
    """Writes what people entered in the web apps of earlier rounds to `root/collected`, once; later entries go to the
    next round. Rankings are only those of the playground: the `labels` stages have those of the rounds' tasks.
    """
    from data.files import write_rows
    from data.records import SPLITS, to_row
    from data.sets import read_set
    from labeling.web.conversations import Conversations
    from labeling.web.export import demonstrations_of
    from labeling.web.store import Store

    if (root / "collected").is_dir():
        return
    unfinished = root / "collected.partial"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    # The references of held-out prompts stay as they are, so that the evaluations of all rounds are alike.
    held_out = {one.prompt_id for split in SPLITS[1:] for one in read_set(done[-1] / "data", "rm", split)}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in COLLECTED}
    for store in [Store(run / PLACE) for run in done if (run / PLACE).is_file()]:
        exported = Conversations(store).rows()
        answered = [any(answer["text"] for answer in turn["answers"]) for turn in exported["conversations"]]
        found["prompts"] += compress(exported["prompts"], answered)  # the others may not fit any model's context
        found["rankings"] += [ranking for ranking in exported["rankings"] if len(set(ranking["ranks"])) > 1]
        found["demonstrations"] += [to_row(one) for one in demonstrations_of(store) if one.prompt_id not in held_out]
    for name, rows in found.items():
        if rows:
            write_rows(unfinished / f"{name}.jsonl", rows)
    unfinished.rename(root / "collected")


def refuse_unlabelled(run: RunFolder) -> None:
    """Raises ValueError if nobody has labelled or skipped some of the sampled answers of a round."""
    from labeling.web.store import Store, text_of

    place = run.root / PLACE
    labelled = {text_of(task) for task, labels in Store(place).tasks() if labels} if place.is_file() else set[str]()
    wanted = [text_of(task) for task in answers_of(run.root)]
    if missing := sum(task not in labelled for task in wanted):
        raise ValueError(
            f"people have labelled {len(wanted) - missing} of the {len(wanted)} tasks of {run.root}: continue with "
            f"`make label RUN={run.root}` and run the loop again, or add --unlabelled to use the labels saved so far"
        )


if __name__ == "__main__":
    main(work, "python -m stages.loop", "Runs rounds of samples, labels, reward model and PPO.", options=OPTIONS)
