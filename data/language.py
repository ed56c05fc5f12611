"""Which language a prompt is in. The paper classified its instructions with langid.py and found 96% English (Ouyang et
al. 2022, appendix A).

py3langid is langid.py, maintained: naive Bayes over byte n-grams, with probabilities calibrated across lengths. No
network.
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
"""The language must be more likely than all others together. A lower value takes short English prompts for rare
languages, a higher one leaves more of them undetermined.
"""


def identify(texts: Sequence[str]) -> list[str]:
    """The ISO 639-1 code of each text's language, or `und`. Depends on nothing but the text."""
    identifier = _identifier()
    return [_identify(text, identifier) for text in texts]


def refuse_unknown(codes: Sequence[str]) -> None:
    """Raises ValueError for a code that `identify` never gives: rows of that language could not be kept."""
    known = [label for label in _identifier().labels if len(label) == 2]
    for code in codes:
        if code not in known:
            raise ValueError(
                f"data.languages: {code!r} is no language that can be told; known are the ISO 639-1 codes "
                f"{', '.join(sorted(known))}"
            )


def _identify(text: str, identifier: "LanguageIdentifier") -> str:
    if not any(character.isalpha() for character in text):
        return UNDETERMINED
    language, _ = identifier.classify(text)
    return UNDETERMINED if language == NOT_A_LANGUAGE else language


@cache
def _identifier() -> "LanguageIdentifier":
    """The model, loaded when first asked for (a second), without the languages and dialects that ISO 639-1 does not
    name.
    """
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=MIN_PROBABILITY)
    identifier.set_languages([label for label in identifier.labels if len(label) == 2 or label == NOT_A_LANGUAGE])
    identifier.nb_ptc = np.ascontiguousarray(
        identifier.nb_ptc
    )  # rows are gathered for each text; the choice of columns left them scattered
    return identifier
