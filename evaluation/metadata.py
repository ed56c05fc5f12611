"""The paper's metadata about answers (section 3.6, table 3): a Likert score from 1 to 7 and eleven binary flags.

Ratings by language models and by people have the same format.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from data.intervals import Bootstrap
from data.records import Demonstration, Ranking
from data.sets import evenly
from evaluation.compare import Answer
from evaluation.judges.human import question
from evaluation.judges.llm_client import LLMClient
from evaluation.judges.llm_prompts import EXAMPLE, PromptFile, last_object
from labeling.ratings import FLAGS, NULLABLE, QUALITY

FIELDS = ("quality", *FLAGS)
Rating = Mapping[str, int | bool | None]
"""`quality` and flags of one answer, as in `Ranking.ratings`; null or missing: not judged or not applicable."""


@dataclass(frozen=True, kw_only=True)
class RatedAnswer:
    """A labeler's rating of one answer."""

    prompt_id: str
    user_id: str
    use_case: str | None = None
    model: str
    """The model that answered: `ppo`, `sft`, `base`, ..."""
    answer: int = 0
    """Index of the answer, if the model gave several."""
    labeler: str
    """`human`, `llm` or `simulated`."""
    labeler_id: str = ""
    """The person, or the name of the language model."""
    rating: Rating


def check_rating(rating: object) -> Rating:
    """The rating itself. Raises ValueError for unknown fields and values that a field cannot have."""
    if not isinstance(rating, dict):
        raise ValueError("a rating must be an object")
    if unknown := [name for name in rating if name not in FIELDS]:
        raise ValueError(f"unknown field {unknown[0]!r} in a rating; known are {', '.join(FIELDS)}")
    for name, value in rating.items():
        # bool is a subclass of int.
        good = (type(value) is int and value in QUALITY) if name == "quality" else type(value) is bool
        if value is not None and not good:
            expected = "a whole number from 1 to 7" if name == "quality" else "true, false or null"
            raise ValueError(f"{name!r} of a rating is {value!r}, and must be {expected}")
    return rating


class MetadataRater:
    """Asks a language model to rate answers, one question each.

    rater = MetadataRater(LLMClient(config.llm))
    rater.check()                                              # before anything is sampled
    rated = rater.rate(prompts, {"ppo": answers, "sft": others})
    table = metadata_table(rated)
    """

    def __init__(self, client: LLMClient) -> None:
        """Raises ValueError if the prompt file cannot be used."""
        self.client = client
        self.prompt_file = PromptFile.read(client.config.metadata_prompt_file, "metadata.j2")
        self.prompt_file.check(["Paris, of course."], flags=FLAGS, nullable=NULLABLE)

    def check(self) -> None:
        """Asks about a simple answer. Raises ValueError as `LLMClient.check`, or if the reply has no rating."""
        self.client.check_parsed(self._question(EXAMPLE, "Paris."), parse_reply, "rating")

    def rate(
        self, prompts: Sequence[Demonstration], answers: Mapping[str, Sequence[Sequence[Answer]]]
    ) -> list[RatedAnswer]:
        """The ratings of each model's answers to each prompt; answers without a valid reply are left out, and so are
        prompts that `max_prompts` leaves out.
        """
        jobs = [
            (model, prompts[index], number, answer.text)
            for model, rows in answers.items()
            for index in evenly(range(len(prompts)), self.client.config.max_prompts)
            for number, answer in enumerate(rows[index])
        ]
        questions = [self._question(prompt, text) for _, prompt, _, text in jobs]
        ratings = self.client.ask_parsed(questions, parse_reply, "metadata")
        return [
            RatedAnswer(
                prompt_id=prompt.prompt_id,
                user_id=prompt.user_id,
                use_case=prompt.use_case,
                model=model,
                answer=number,
                labeler="llm",
                labeler_id=self.client.config.model or "",
                rating=rating,
            )
            for (model, prompt, number, _), rating in zip(jobs, ratings, strict=True)
            if rating is not None
        ]

    def _question(self, prompt: Demonstration, text: str) -> list[Any]:
        return self.prompt_file.render(prompt, [text], flags=FLAGS, nullable=NULLABLE)


def parse_reply(reply: str) -> Rating:
    """The rating in a model's reply: all fields, null only where a flag may not apply. Raises ValueError, with a
    sentence for the model.
    """
    rating = check_rating(last_object(reply))
    if missing := [name for name in FIELDS if rating.get(name) is None and name not in NULLABLE]:
        raise ValueError(f"the JSON object at the end of your reply has no value for {missing[0]!r}")
    return rating


def rated_by_people(
    rankings: Sequence[Ranking], prompts: Sequence[Demonstration], answers: Mapping[str, Sequence[Sequence[Answer]]]
) -> list[RatedAnswer]:
    """The ratings in people's records of the models' answers, which are recognized by prompt and text; an answer that
    several models gave counts for each of them. Raises ValueError for a rating with a value that its field cannot have.
    """
    ratings: dict[tuple[Any, str], list[tuple[str, Rating]]] = {}
    for ranking in rankings:
        for text, given in zip(ranking.completions, ranking.ratings or [], strict=False):
            if rating := check_rating({name: given[name] for name in FIELDS if name in given}):
                ratings.setdefault((question(ranking), text.strip()), []).append((ranking.labeler_id, rating))
    return [
        RatedAnswer(
            prompt_id=prompt.prompt_id, user_id=prompt.user_id, use_case=prompt.use_case, model=model, answer=number,
            labeler="human", labeler_id=name, rating=rating,
        )
        for model, rows in answers.items()
        for prompt, row in zip(prompts, rows, strict=True)
        for number, answer in enumerate(row)
        for name, rating in ratings.get((question(prompt), answer.text.strip()), [])
    ]  # fmt: skip


def metadata_table(rated: Sequence[RatedAnswer], resamples: int = 10_000) -> dict[str, Any]:
    """{model: {"all": ..., "use_cases": {use case: ...}, "minus_sft": ...}}, each with an interval per field, or None
    if no prompt has a value. `minus_sft` is the difference from SFT on the same prompts.

    Rates are means over prompts of the mean over a prompt's ratings; intervals resample users. A prompt without a use
    case counts as `unknown`.
    """
    rows = [
        (item.model, item.prompt_id, item.user_id, item.use_case or "unknown", *map(item.rating.get, FIELDS))
        for item in rated
    ]
    frame = pd.DataFrame(rows, columns=["model", "prompt", "user", "use_case", *FIELDS])
    frame = frame.astype(dict.fromkeys(FIELDS, float))
    sft = prompt_means(frame[frame["model"] == "sft"])
    table: dict[str, Any] = {}
    for model, own in frame.groupby("model", sort=False):
        means = prompt_means(own)
        table[model] = {
            "all": intervals(means, resamples),
            "use_cases": {case: intervals(prompt_means(some), resamples) for case, some in own.groupby("use_case")},
        }
        if model != "sft" and sft["quality"].notna().any():
            table[model]["minus_sft"] = intervals(means - sft.reindex(means.index), resamples)
    return table


def prompt_means(frame: pd.DataFrame) -> pd.DataFrame:
    """The mean of each field over the ratings of each prompt; NaN for a prompt without a value."""
    return frame.groupby(["prompt", "user"], sort=False)[list(FIELDS)].mean()


def intervals(means: pd.DataFrame, resamples: int) -> dict[str, dict[str, float] | None]:
    """The mean of each field over prompts, with its interval over users."""
    found = {}
    for name in FIELDS:
        values = means[name].dropna()
        bootstrap = Bootstrap(resamples, values.index.get_level_values("user").tolist())
        found[name] = bootstrap.interval(values.tolist()) if len(values) else None
    return found
