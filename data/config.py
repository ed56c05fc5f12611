"""Settings of the data stage: sources, and rules of curation."""

from dataclasses import dataclass, field
from typing import Literal

from data.numbers import AtLeastTwo, FractionAboveZero, OpenUnitInterval, PositiveFloat, PositiveInt, check_numbers

BUILT_IN = ("seed", "wikipedia")
"""Sources that need no entry under data.sources: the set written for this project, and the embedded articles."""
ROLES = ("demonstrations", "prompts", "rankings", "pretraining")


@dataclass
class SourceConfig:
    """A source of data. Its name, the key under `data.sources`, is used in the lists of the data section."""

    format: str = "rows"
    """`rows`, for this project's records and trl's formats, or a published format (docs/data.md lists all)."""
    place: str = ""
    """A file, a folder, or a data set on the Hub. Default: the published data set of the format."""
    revision: str | None = None
    """Commit of the data set on the Hub, so that a rerun reads the same rows; `main` reads the latest ones."""
    subset: str | None = None
    """Configuration of a data set on the Hub, or of a folder copied from it. Default: the format's."""
    split: str | None = None
    """Split of the data set to read; this project makes its own splits, by user. Default: the format's."""
    columns: dict[str, str | None] = field(default_factory=dict)
    """Maps the source's column names to ours; null leaves a column out."""
    source: Literal["labeler", "api"] | None = None
    """Who wrote the prompts, if the rows do not say: RL trains on `api` prompts only. Default: the format's, or api."""
    labeler: str | None = None
    """Who ranked, if neither the rows nor the format say: `human`, or the name of a language model. Default: human."""
    weight: PositiveFloat | None = None
    """Relative share of the role's training rows; sources are subsampled, never repeated. Default: all rows."""
    limit: PositiveInt | None = None
    """Maximum number of rows to read, or of groups of rows that belong together. Default: all."""
    licence: str | None = None
    """Licence for the data card; of a published format it is added to the description."""


@dataclass
class DataConfig:
    """Prompts, demonstrations, rankings and plain text. Defaults are the paper's (3.2, A.2) unless marked ours."""

    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """Named sources for the four lists below, which may also name files directly."""
    demonstrations: list[str] = field(default_factory=lambda: ["seed"])
    """Sources of prompts with an answer to imitate; `seed` is the set written for this project (demo/seed)."""
    prompts: list[str] = field(default_factory=list)
    """Sources of additional prompts without answers."""
    rankings: list[str] = field(default_factory=list)
    """Sources of ranked answers; they are added to the labeler's rankings in the reward stage."""
    pretraining: list[str] = field(default_factory=lambda: ["wikipedia"])
    """Sources of plain text: `wikipedia` (the embedded articles), .txt or .md files, rows with `text`."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """A malformed row, or one that the chat template rejects: `stop` the run, or `skip` and count it. Ours."""
    group_by: Literal["user", "organisation"] = "user"
    """Unit whose prompts are capped and kept in one split. Section 3.2: user; appendix A.2: organisation."""
    max_prompts_per_group: PositiveInt = 200
    """Maximum number of prompts per user or organisation. Section 3.2."""
    near_duplicate_fraction: FractionAboveZero = 0.9
    """Common prefix of duplicates, as a fraction of the longer prompt. Ours: appendix A.2 gives no number."""
    languages: list[str] = field(default_factory=list)
    """ISO 639-1 codes of the languages to keep. Default: all, as in the paper, whose prompts were 96% English."""
    personal_data: Literal["rules", "presidio", "off"] = "rules"
    """How personal data is detected; training rows with it are dropped (section 3.2; docs/personal-data.md)."""
    max_prompt_tokens: PositiveInt = 1000
    """Tokens of the policy, template included; longer prompts are dropped and counted. Appendix C."""
    max_answer_tokens: PositiveInt = 1000
    """Tokens of the policy; longer demonstrated or ranked answers are dropped and counted. Appendix C."""
    valid_fraction: OpenUnitInterval = 0.1
    """Share of users in the validation split, for choosing between checkpoints. Ours."""
    test_fraction: OpenUnitInterval = 0.1
    """Share of users in the test split, for the report. Ours."""
    split_salt: str = ""
    """A different salt gives a different split of the same users."""
    pretraining_tokens: AtLeastTwo = 512
    """Tokens per pretraining example; the first is not predicted. Ours; the paper's context is 2,048."""
    workers: PositiveInt = 1
    """Processes that count tokens, detect languages and search for personal data. Ours."""

    def validate(self) -> None:
        """Raises ValueError on contradictions."""
        check_numbers(self, "data")
        if not self.demonstrations:
            raise ValueError(
                "data.demonstrations is empty: SFT is trained on them, and models are evaluated on held-out ones "
                "(so they are needed even with sft.epochs=0)"
            )
        if not self.pretraining:
            why = "the report measures perplexity on plain text that is held out of it"
            raise ValueError(f"data.pretraining is empty: {why}")
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"data.valid_fraction={self.valid_fraction} and data.test_fraction={self.test_fraction} must leave "
                "room for training: their sum must be below 1"
            )
        self._validate_sources()

    def weights(self, role: str) -> dict[str, float]:
        """The weights of a role's sources by name; empty if they have none."""
        names: list[str] = getattr(self, role)
        found = {name: self.sources[name].weight if name in self.sources else None for name in names}
        return {name: weight for name, weight in found.items() if weight is not None}

    def _validate_sources(self) -> None:
        for name in self.sources:
            if name in BUILT_IN:
                raise ValueError(f"data.sources.{name}: that name is taken by the embedded source; choose another")
        named = {name for role in ROLES for name in getattr(self, role)}
        for name, source in self.sources.items():
            if odd := [key for key in source.columns if not isinstance(key, str)]:
                raise ValueError(f"data.sources.{name}.columns: the key {odd[0]!r} is not text: put it in quotes")
            if name not in named:
                raise ValueError(
                    f"data.sources.{name} is in none of the lists {', '.join(ROLES)}, so it would not be read"
                )
            if source.labeler in ("llm", "simulated"):
                raise ValueError(
                    f"data.sources.{name}.labeler={source.labeler}: give `human`, or the name of the language model"
                )
            if source.labeler is not None and name not in self.rankings:
                raise ValueError(f"data.sources.{name}.labeler is for rankings, and data.rankings does not list {name}")
            if source.weight is not None and name in self.demonstrations and name in self.prompts:
                raise ValueError(
                    f"data.sources.{name} has a weight and is under demonstrations and prompts: its prompts are those "
                    "of its demonstrations, so there is no share of prompts to give it; take it out of data.prompts"
                )
        for role in ROLES:
            names: list[str] = getattr(self, role)
            if len(set(names)) < len(names):
                raise ValueError(f"data.{role} names a source twice")
            missing = [name for name in names if name not in self.weights(role)]
            if 0 < len(missing) < len(names):
                raise ValueError(
                    f"data.{role}: give every source a weight or none; {missing[0]!r} has none (an entry under "
                    "data.sources takes one)"
                )
