"""Which language a prompt is in. The paper classified its instructions with langid.py and found 96% English (Ouyang et
al. 2022, appendix A). py3langid is langid.py, maintained; it uses no network.
"""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

UNDETERMINED = "und"
"""ISO 639's own code, for a text that is too short, mixed, or not in a language at all."""
NOT_A_LANGUAGE = "zxx"
"""ISO 639's code for no linguistic content: what the model answers to code and numbers."""
MIN_PROBABILITY = 0.5
"""A lower value takes short English prompts for rare languages, a higher one leaves more of them undetermined."""


def identify(texts: Sequence[str]) -> list[str]:
    """The ISO 639-1 code of each text's language, or `und`. Depends on nothing but the text."""
    identifier, found = _identifier(), []
    for text in texts:
        language = identifier.classify(text)[0] if any(map(str.isalpha, text)) else UNDETERMINED
        found.append(UNDETERMINED if language == NOT_A_LANGUAGE else language)
    return found


def refuse_unknown(codes: Sequence[str]) -> None:
    """Raises ValueError for a code that `identify` never gives: rows of that language could not be kept."""
    known = [label for label in _identifier().labels if len(label) == 2]
    for code in codes:
        if code not in known:
            codes = f"the ISO 639-1 codes {', '.join(sorted(known))}"
            raise ValueError(f"data.languages: {code!r} is no language that can be told; known are {codes}")


@cache
def _identifier() -> "LanguageIdentifier":
    """The model, which takes a second to load, without the languages and dialects that ISO 639-1 does not name."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=MIN_PROBABILITY)
    identifier.set_languages([label for label in identifier.labels if len(label) == 2 or label == NOT_A_LANGUAGE])
    identifier.nb_ptc = np.ascontiguousarray(identifier.nb_ptc)  # faster: rows are gathered for each text
    return identifier
