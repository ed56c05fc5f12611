"""A labeler that ranks by rubric score, with ties and a given error rate."""

import math
import random
from collections.abc import Sequence

from data.records import Prompt, Ranking, Samples
from labeling.config import LabelsConfig
from labeling.judges import Closeness
from labeling.rubric import Answered, Judged, judge
from modeling.seeds import derive_seed


def ranks_of(scores: Sequence[float], tie_width: float) -> list[int]:
    """Dense ranks, 1 best; scores in the same bin of `tie_width` tie. Width 0 ties equal scores only.

    Rounding keeps equal sums of decimal weights equal: 0.1 + 0.2 is not 0.3, and 0.3 / 0.05 is below 6.
    """
    bins = [math.floor(round(score / tie_width, 9)) if tie_width else round(score, 12) for score in scores]
    places = {value: place for place, value in enumerate(sorted(set(bins), reverse=True), start=1)}
    return [places[value] for value in bins]


def misjudge(scores: Sequence[float], rate: float, generator: random.Random) -> list[float]:
    """Replaces each score, with probability `rate`, by one drawn uniformly between the lowest and the highest."""
    return [generator.uniform(min(scores), max(scores)) if generator.random() < rate else score for score in scores]


def rank(samples: Sequence[Samples], config: LabelsConfig, closeness: Closeness, seed: int) -> list[Ranking]:
    """Rankings of every prompt's answers, with the rubric's parts as ratings.

    Raises ValueError when a prompt has no reference answer to compare with.
    """
    for row in samples:
        if row.reference is None:
            raise ValueError(
                f"prompt {row.prompt_id} has no demonstration, which the simulated labeler needs as its reference"
            )
    judged = iter(
        judge(
            [
                Answered(row.text, answer, ended, row.reference or "")
                for row in samples
                for answer, ended in zip(row.completions, row.complete, strict=True)
            ],
            config.weights,
            closeness,
        )
    )
    return [_ranking(row, [next(judged) for _ in row.completions], config, seed) for row in samples]


def _ranking(row: Samples, judged: list[Judged], config: LabelsConfig, seed: int) -> Ranking:
    scores = misjudge(
        [part.score for part in judged], config.disagreement, random.Random(derive_seed(seed, "labeler", row.prompt_id))
    )
    return Ranking(
        **{name: getattr(row, name) for name in Prompt.__dataclass_fields__},
        completions=row.completions,
        complete=row.complete,
        ranks=list(ranks_of(scores, config.tie_width)),
        labeler="simulated",
        labeler_id="rubric",
        ratings=[{name: round(value, 4) for name, value in vars(part).items()} for part in judged],
    )
