"""Finds people's names and the numbers of their documents with Microsoft's presidio and spaCy, beside what the rules
of data/personal_data.py find (docs/personal-data.md). Neither uses the network.
"""

import re
from collections.abc import Callable

from data.personal_data import Finding, find

ENGINES = ("rules", "presidio")
ENTITIES = {
    "PERSON": "PERSON",
    "US_PASSPORT": "NATIONAL_ID",
    "US_ITIN": "NATIONAL_ID",
    "US_DRIVER_LICENSE": "NATIONAL_ID",
}
"""Presidio's names and ours. For emails, phones and IP addresses the rules are more precise; dates, places and
organizations are no personal data by themselves."""
SCORE = 0.4
"""A document's number reaches it only near a word that names it."""
LONGEST = 100_000
"""Characters of a text that are read; spaCy refuses a million."""
FULL_NAME = re.compile(r"[^\W\d_][\w.'’-]*(?: [^\W\d_][\w.'’-]*)+")
"""A first name alone identifies nobody."""


def detector(engine: str) -> Callable[[str], list[Finding]]:
    """The function `find` of an engine: `rules`, or `presidio` for both.

    Raises ValueError for another engine, or if presidio or its English model is not installed.
    """
    if engine not in ENGINES:
        raise ValueError(f"personal data engine {engine!r} is unknown; known are {', '.join(ENGINES)}")
    return find if engine == "rules" else _presidio()


def _presidio() -> Callable[[str], list[Finding]]:
    try:
        import spacy
        from presidio_analyzer import AnalyzerEngine
        from presidio_analyzer.nlp_engine import NlpEngineProvider
    except ImportError as error:
        raise ValueError(
            "data.personal_data: presidio needs a library that is not installed: pip install -e '.[presidio]'"
        ) from error
    installed = sorted(spacy.util.get_installed_models())
    sizes = [f"en_core_web_{size}" for size in ("lg", "md", "sm")]
    model = next((name for size in sizes for name in installed if name.startswith(size)), None)
    if model is None:
        raise ValueError(
            "data.personal_data: presidio needs an English model of spaCy: python -m spacy download en_core_web_lg"
        )
    settings = {"nlp_engine_name": "spacy", "models": [{"lang_code": "en", "model_name": model}]}
    analyzer = AnalyzerEngine(
        nlp_engine=NlpEngineProvider(nlp_configuration=settings).create_engine(), supported_languages=["en"]
    )

    def find_with_presidio(text: str) -> list[Finding]:
        found = find(text)
        results = analyzer.analyze(text[:LONGEST], "en", entities=list(ENTITIES), score_threshold=SCORE)
        for result in sorted(results, key=lambda result: (result.start, -result.end)):
            name = text[result.start : result.end]
            known = any(result.start < other.end and other.start < result.end for other in found)
            if not known and (result.entity_type != "PERSON" or (FULL_NAME.fullmatch(name) and name[0].isupper())):
                found.append(Finding(ENTITIES[result.entity_type], result.start, result.end))
        return sorted(found, key=lambda finding: finding.start)

    return find_with_presidio
