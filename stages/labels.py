"""Ranks the sampled answers by a rubric (the simulated labeler), by people in the web app, or by a language model
(docs/labeling.md).

python -m stages.labels --config configs/demo.yaml --labels.disagreement 0.2
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labeling.llm_config import UNHASHED
from stages.config import RunConfig
from stages.errors import shortened
from stages.label import PLACE
from stages.manifest import digest_of, model_digests
from stages.runner import RunFolder, Stage, stage_main

LLM_NUMBERS = ("replies", "refused", "malformed", "truncated", "input_tokens", "output_tokens", "cost")
CLOSED = Path("people") / "closed.jsonl"
"""The rankings that a round of the loop uses (see `close`); without this file all rankings are used."""

if TYPE_CHECKING:
    from data.records import Ranking, Samples

    Labeler = Callable[[Sequence[Samples]], list[Ranking]]


def work(config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
    """Writes rankings_<split>.jsonl."""
    from data.answers import has_strict_pair, judged_pairs
    from data.files import read_records, write_records
    from data.records import SPLITS, Samples

    how = config.labels
    numbers: dict[str, Any] = {"rankings": 0, "all_tied": 0, "tied_pairs": 0.0}
    if how.labeler == "none":
        return numbers
    kinds: dict[str, Callable[[RunConfig, RunFolder], Labeler]] = {
        "human": by_people, "llm": LLMLabeler, "simulated": by_rubric,
    }  # fmt: skip
    labeler = kinds[how.labeler](config, run)
    earlier = earlier_rankings(config, run)
    pairs = ties = own = 0
    for split in SPLITS:
        samples = read_records(run.stage("samples") / f"samples_{split}.jsonl", Samples)
        ranked = labeler(samples)
        own += len(ranked)
        if how.labeler == "llm":
            asked = sum(math.comb(len(one.completions), 2) for one in samples)
            numbers.setdefault("no_verdict", 0)
            numbers["no_verdict"] += asked - sum(len(judged_pairs(one)) for one in ranked)
        ranked += earlier[split]
        write_records(out / f"rankings_{split}.jsonl", ranked)
        numbers["rankings"] += len(ranked)
        numbers["all_tied"] += sum(not has_strict_pair(ranking) for ranking in ranked)
        for ranking in ranked:
            judged = judged_pairs(ranking)
            pairs, ties = pairs + len(judged), ties + sum(tied for *_, tied in judged)
    if isinstance(labeler, LLMLabeler):
        numbers |= labeler.numbers()
    numbers["tied_pairs"] = ties / max(1, pairs)
    if how.earlier:
        numbers["earlier_rankings"] = numbers["rankings"] - own
    if how.labeler == "human" and (left := len(saved_rankings(run.root)) - own):
        print(f"labels: {left} rankings are left out: the samples stage no longer has their prompts", flush=True)
    if how.labeler == "human" and (late := left_out(run.root)):
        print(f"labels: ignored {late} ranking(s) saved after the round was closed ({run.root / CLOSED})", flush=True)
    return numbers


def earlier_rankings(config: RunConfig, run: RunFolder) -> "dict[str, list[Ranking]]":
    """The rankings of `labels.earlier` by split. Raises ValueError if a folder has none, or if a user or a prompt is in
    another split there.
    """
    from data.files import read_records
    from data.records import SPLITS, Ranking, to_row
    from data.sets import read_set

    if not config.labels.earlier:
        return {split: [] for split in SPLITS}
    found: dict[str, dict[str, Ranking]] = {split: {} for split in SPLITS}
    users, prompts = dict[str, str](), dict[str, str]()
    for split in SPLITS:
        for prompt in read_set(run.stage("data"), "rm", split):
            users[prompt.user_id] = prompts[prompt.text] = split
    for folder in map(Path, config.labels.earlier):
        for split, kept in found.items():
            path = folder / f"rankings_{split}.jsonl"
            if not path.is_file():
                raise ValueError(f"labels.earlier: there is no {path}: give the labels folder of a run")
            # The folders may share rankings, which count once.
            kept |= {json.dumps(to_row(one), sort_keys=True): one for one in read_records(path, Ranking)}
            for one in kept.values():
                for what, other in (
                    (f"user {one.user_id!r}", users.get(one.user_id, split)),
                    (f"the prompt {shortened(one.text)!r}", prompts.get(one.text, split)),
                ):
                    if other != split:
                        raise ValueError(
                            f"{path}: {what} is in the {other} split of this run: use the same data.split_salt, "
                            "fractions and user ids as in the run of labels.earlier"
                        )
    return {split: list(kept.values()) for split, kept in found.items()}


def by_rubric(config: RunConfig, run: RunFolder) -> "Labeler":
    """The simulated labeler."""
    from labeling.judges import closeness_judge
    from labeling.simulated import rank

    judge = closeness_judge(config.labels.closeness)
    return lambda samples: rank(samples, config.labels, judge, config.seed)


class LLMLabeler:
    """A language model that compares every two answers. Its replies are cached, so that an interrupted stage does not
    repeat requests. Raises ValueError if it cannot be asked.
    """

    def __init__(self, config: RunConfig, run: RunFolder) -> None:
        from evaluation.judges.llm import LLMJudge
        from evaluation.judges.llm_client import LLMClient

        self.judge = LLMJudge(LLMClient(config.labels.llm))
        self.judge.check()

    def __call__(self, samples: "Sequence[Samples]") -> "list[Ranking]":
        """The rankings. Raises ValueError if there are none."""
        from evaluation.judges.llm_labeler import rank_by_llm

        found = rank_by_llm(samples, self.judge)
        if not found:
            raise ValueError(
                f"the language model of labels.llm gave no verdict on {len(samples)} prompts of a split: "
                f"{self.judge.client.failure()}"
            )
        return found

    def numbers(self) -> dict[str, Any]:
        """Counts of replies, tokens and cost (with cached replies), for the stage's headline."""
        counts = self.judge.client.report()
        return {name: counts[name] for name in LLM_NUMBERS if counts[name] is not None}


def by_people(config: RunConfig, run: RunFolder) -> "Labeler":
    """The rankings that people saved, of these and of earlier answers to the prompts; one for each labeler of a
    prompt.
    """
    rankings, place = saved_rankings(run.root), run.root / PLACE

    def ranked(samples: "Sequence[Samples]") -> "list[Ranking]":
        prompts = {one.prompt_id for one in samples}
        found = [one for one in rankings if one.prompt_id in prompts]
        if not found:
            raise ValueError(
                f"people have ranked none of the {len(samples)} prompts of a split in {place}: rank more with "
                f"`make label RUN={run.root}`, or set labels.labeler"
            )
        return found

    return ranked


def saved_rankings(root: Path) -> "list[Ranking]":
    """All rankings of the web app, or those that `close` has fixed. Raises ValueError if it has not been used."""
    from data.files import read_records
    from data.records import Ranking
    from labeling.web.export import rankings_of
    from labeling.web.store import Store

    if not (root / PLACE).is_file():
        raise ValueError(
            f"labels.labeler is human, but there is no {root / PLACE}: rank answers with `make label RUN={root}` first"
        )
    if (root / CLOSED).is_file():
        return read_records(root / CLOSED, Ranking)
    return list(rankings_of(Store(root / PLACE)))


def close(root: Path) -> None:
    """Writes the rankings that people have saved so far, if any, to `CLOSED`, so that later ones do not change the
    round.
    """
    from data.files import write_records
    from labeling.web.export import rankings_of
    from labeling.web.store import Store

    found = list(rankings_of(Store(root / PLACE))) if (root / PLACE).is_file() else []
    if found:
        write_records(root / CLOSED, found)
    else:
        (root / CLOSED).unlink(missing_ok=True)


def left_out(root: Path) -> int:
    """The number of rankings that people saved and `CLOSED` does not have."""
    from labeling.web.export import rankings_of
    from labeling.web.store import Store

    if not (root / CLOSED).is_file() or not (root / PLACE).is_file():
        return 0
    kept = {people_digest([ranking]) for ranking in saved_rankings(root)}
    return sum(people_digest([ranking]) not in kept for ranking in rankings_of(Store(root / PLACE)))


def external(config: RunConfig) -> dict[str, str]:
    """Digests of earlier labels, of the language model's prompt file, and of the rankings that people saved, so that
    new rankings make the stage run again.
    """
    found = model_digests(*config.labels.earlier, config.labels.llm.prompt_file)
    if config.labels.labeler != "human":
        return found
    rankings = saved_rankings(Path(config.runs_folder) / config.run_name)
    return found | {"people": people_digest(rankings)}


def people_digest(rankings: "Iterable[Ranking]") -> str:
    """The digest of people's rankings."""
    return digest_of([asdict(ranking) for ranking in rankings])


STAGE = Stage(
    "labels",
    sections=("labels",),
    after=("data", "samples"),
    work=work,
    external=external,
    rankings_file=lambda config: PLACE if config.labels.labeler == "human" else None,
    hash_exclude=tuple(f"labels.llm.{name}" for name in UNHASHED),
)

if __name__ == "__main__":
    stage_main(STAGE, "Ranks the sampled answers.")
