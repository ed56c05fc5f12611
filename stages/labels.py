"""Ranks the sampled answers. The simulated labeler is a rubric: no human ranked them (docs/labeling.md).

python -m stages.labels --config configs/demo.yaml --labels.disagreement 0.2
"""

from pathlib import Path
from typing import Any

from stages.config import RunConfig
from stages.runner import RunFolder, Stage, stage_main


def work(config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
    """Writes rankings_<split>.jsonl."""
    from data.files import read_records, write_records
    from data.records import SPLITS, Samples
    from labeling.judges import closeness_judge
    from labeling.simulated import has_strict_pair, rank

    numbers: dict[str, Any] = {"rankings": 0, "all_tied": 0, "tied_pairs": 0.0}
    if config.labels.labeler == "none":
        return numbers
    judge = closeness_judge(config.labels.closeness)
    pairs = ties = 0
    for split in SPLITS:
        ranked = rank(
            read_records(run.stage("samples") / f"samples_{split}.jsonl", Samples), config.labels, judge, config.seed
        )
        write_records(out / f"rankings_{split}.jsonl", ranked)
        numbers["rankings"] += len(ranked)
        numbers["all_tied"] += sum(not has_strict_pair(ranking) for ranking in ranked)
        for ranking in ranked:
            ranks = ranking.ranks or []
            count = len(ranks) * (len(ranks) - 1) // 2
            pairs += count
            ties += sum(ranks[i] == ranks[j] for i in range(len(ranks)) for j in range(i))
    numbers["tied_pairs"] = ties / max(1, pairs)
    return numbers


STAGE = Stage("labels", sections=("labels",), after=("samples",), work=work)

if __name__ == "__main__":
    stage_main(STAGE, "Ranks the sampled answers.")
