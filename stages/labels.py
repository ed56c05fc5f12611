"""Ranks the sampled answers: by the simulated labeler, a rubric, or by people in the web app (docs/labeling.md).

python -m stages.labels --config configs/demo.yaml --labels.disagreement 0.2
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.config import RunConfig
from stages.label import PLACE
from stages.manifest import digest_of
from stages.runner import RunFolder, Stage, stage_main

if TYPE_CHECKING:
    from data.records import Ranking, Samples

    Labeler = Callable[[Sequence[Samples]], list[Ranking]]


def work(config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
    """Writes rankings_<split>.jsonl."""
    from data.files import read_records, write_records
    from data.records import SPLITS, Samples
    from labeling.simulated import has_strict_pair

    numbers: dict[str, Any] = {"rankings": 0, "all_tied": 0, "tied_pairs": 0.0}
    if config.labels.labeler == "none":
        return numbers
    labeler = by_people(run.root) if config.labels.labeler == "human" else by_rubric(config)
    pairs = ties = 0
    for split in SPLITS:
        ranked = labeler(read_records(run.stage("samples") / f"samples_{split}.jsonl", Samples))
        write_records(out / f"rankings_{split}.jsonl", ranked)
        numbers["rankings"] += len(ranked)
        numbers["all_tied"] += sum(not has_strict_pair(ranking) for ranking in ranked)
        for ranking in ranked:
            ranks = [rank for rank in ranking.ranks or [] if rank is not None]
            count = len(ranks) * (len(ranks) - 1) // 2
            pairs += count
            ties += sum(ranks[i] == ranks[j] for i in range(len(ranks)) for j in range(i))
    numbers["tied_pairs"] = ties / max(1, pairs)
    if config.labels.labeler == "human" and (left := len(saved_rankings(run.root)) - numbers["rankings"]):
        print(f"labels: {left} rankings are left out: the samples stage no longer has their prompts", flush=True)
    return numbers


def by_rubric(config: RunConfig) -> "Labeler":
    """The simulated labeler."""
    from labeling.judges import closeness_judge
    from labeling.simulated import rank

    judge = closeness_judge(config.labels.closeness)
    return lambda samples: rank(samples, config.labels, judge, config.seed)


def by_people(root: Path) -> "Labeler":
    """The rankings that people saved, of these and of earlier answers to the prompts; several of a prompt that several
    labelers ranked.
    """
    rankings = saved_rankings(root)

    def ranked(samples: "Sequence[Samples]") -> "list[Ranking]":
        prompts = {one.prompt_id for one in samples}
        found = [one for one in rankings if one.prompt_id in prompts]
        if not found:
            raise ValueError(
                f"people have ranked none of the {len(samples)} prompts of a split in {root / PLACE}: rank more with "
                "`make label`, or set labels.labeler"
            )
        return found

    return ranked


def saved_rankings(root: Path) -> "list[Ranking]":
    """All rankings of the web app. Raises ValueError if it has not been used."""
    from labeling.web.export import rankings_of
    from labeling.web.store import Store

    if not (root / PLACE).is_file():
        raise ValueError(
            f"labels.labeler is human, but there is no {root / PLACE}: rank answers with `make label` first"
        )
    return list(rankings_of(Store(root / PLACE)))


def external(config: RunConfig) -> dict[str, str]:
    """A digest of the rankings that people saved, so that more of them make the stage run again."""
    if config.labels.labeler != "human":
        return {}
    rankings = saved_rankings(Path(config.runs_folder) / config.run_name)
    return {"people": digest_of([asdict(ranking) for ranking in rankings])}


STAGE = Stage("labels", sections=("labels",), after=("samples",), work=work, external=external)

if __name__ == "__main__":
    stage_main(STAGE, "Ranks the sampled answers.")
