"""The paper's rules as pure functions of annotations: each returns a mask of the records that stay (section 3.2,
appendix A.2). Near-duplicates and personal data have files of their own.
"""

from collections.abc import Mapping, Sequence

import pandas as pd

from data.language import UNDETERMINED


def under_cap(records: pd.DataFrame, limit: int) -> pd.Series:
    """The records of the first `limit` different items of each group (section 3.2: 200 prompts per user).

    Records of one item count once, so several rankings of one prompt stay together.
    """
    is_new = ~records.duplicated(["group", "item"])
    place = is_new.groupby(records["group"]).cumsum()
    # Later records of an item get the place of its first.
    return place.groupby([records["group"], records["item"]]).transform("first") <= limit


def in_languages(found: pd.Series, wanted: Sequence[str]) -> pd.Series:
    """Records in a wanted language, or all if none is named. Text of undetermined language stays."""
    return found.isin([*wanted, UNDETERMINED]) if wanted else found.notna()


def thinned(records: pd.DataFrame, role: str, weights: Mapping[str, float]) -> pd.Series:
    """The largest subset of the records with these source weights: at least one source is kept whole, and no record is
    repeated. Raises ValueError if a source has no records.

    `records` has the columns `source`, `size` (1, or the characters of a text) and `hash`. Records with the smallest
    hashes are kept, so the choice does not depend on the order, and a source that grows keeps nearly the same records.
    """
    for name in weights:
        if not (records["source"] == name).any():
            raise ValueError(
                f"data.{role}: source {name!r} has a weight but no training rows are left of it after curation"
            )
    share = pd.Series(weights) / sum(weights.values())
    whole = (records.groupby("source")["size"].sum() / share).min()
    ordered = records.sort_values("hash", kind="stable")
    cumulative = ordered.groupby("source")["size"].cumsum()
    return (cumulative <= ordered["source"].map(share) * whole + 1e-6).reindex(records.index)
