"""The paper's metadata about answers (section 3.6, table 3): a Likert score from 1 to 7 and eleven binary flags.

Ratings by language models and by people have the same format.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.files import write_rows
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


def write_ratings(path: Path, rated: Sequence[RatedAnswer]) -> None:
    """Writes JSON Lines, whole or not at all."""
    write_rows(path, (asdict(item) for item in rated))


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
        reply = self.client.check(self._question(EXAMPLE, "Paris."))
        try:
            parse_reply(reply)
        except ValueError as error:
            raise ValueError(
                f"the LLM's reply to a simple question has no rating ({error}): {reply[-200:]!r}"
            ) from None

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
    users = {item.prompt_id: item.user_id for item in rated}
    sft = prompt_means([item for item in rated if item.model == "sft"])
    table: dict[str, Any] = {}
    for model in dict.fromkeys(item.model for item in rated):
        of_model = [item for item in rated if item.model == model]
        cases: dict[str, list[RatedAnswer]] = {}
        for item in of_model:
            cases.setdefault(item.use_case or "unknown", []).append(item)
        means = prompt_means(of_model)
        table[model] = {
            "all": intervals(means, users, resamples),
            "use_cases": {case: intervals(prompt_means(cases[case]), users, resamples) for case in sorted(cases)},
        }
        if model != "sft" and sft["quality"]:
            table[model]["minus_sft"] = intervals(
                {name: minus(means[name], sft[name]) for name in FIELDS}, users, resamples
            )
    return table


def prompt_means(rated: Sequence[RatedAnswer]) -> dict[str, dict[str, float]]:
    """Field -> prompt -> the mean of its ratings; without prompts that have no value."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in FIELDS}
    for item in rated:
        for name in FIELDS:
            if (value := item.rating.get(name)) is not None:
                found[name].setdefault(item.prompt_id, []).append(float(value))
    return {name: {prompt: sum(own) / len(own) for prompt, own in values.items()} for name, values in found.items()}


def minus(values: Mapping[str, float], others: Mapping[str, float]) -> dict[str, float]:
    """Differences on the prompts that both have."""
    return {prompt: value - others[prompt] for prompt, value in values.items() if prompt in others}


def intervals(
    means: Mapping[str, Mapping[str, float]], users: Mapping[str, str], resamples: int
) -> dict[str, dict[str, float] | None]:
    """The mean of each field over prompts, with its interval over users."""
    return {
        name: Bootstrap(resamples, [users[prompt] for prompt in values]).interval(list(values.values()))
        if values
        else None
        for name, values in means.items()
    }
