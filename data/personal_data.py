"""Finds personal data in prompts, so that curation can keep it out of the training split (Ouyang et al. 2022, section
3.2).

The paper says that it filtered personally identifiable information and not how; the rules are ours. `rules` looks for a
shape with a cheap pattern and asks a library whether the number is one that somebody could own. `presidio` adds
people's names with a language model of spaCy. docs/personal-data.md has what is deliberately left alone, and both
engines' measured precision and recall.

No network, no state but the libraries' tables: the functions may be called from threads and forked processes.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import phonenumbers
from phonenumbers import Leniency, PhoneNumber, PhoneNumberMatcher, PhoneNumberType
from stdnum import iban, luhn
from stdnum.ca import sin
from stdnum.gb import nhs
from stdnum.in_ import aadhaar
from stdnum.us import ssn

ENGINES = ("rules", "presidio")

Span = tuple[int, int]


@dataclass(frozen=True)
class Finding:
    """Personal data at text[start:end]."""

    entity: str
    """EMAIL, PHONE, CARD, IBAN, NATIONAL_ID, IP_ADDRESS, STREET_ADDRESS or SECRET; presidio adds PERSON and documents'
    numbers.
    """
    start: int
    end: int


def find(text: str) -> list[Finding]:
    """What the rules find, in reading order and without overlaps: where two rules claim a character, the stricter one
    has it.
    """
    found: list[Finding] = []
    if not ANYTHING.search(text):
        return found
    for entity, gate, rule in RULES:
        if gate(text):
            for start, end in rule(text):
                if not any(start < other.end and other.start < end for other in found):
                    found.append(Finding(entity, start, end))
    return sorted(found, key=lambda finding: finding.start)


def detector(engine: str) -> Callable[[str], list[Finding]]:
    """The `find` of an engine: `rules`, or `presidio` for the rules and, after them, Microsoft's presidio.

    Raises ValueError when there is no such engine, or when presidio or an English model for it is not installed.
    """
    if engine == "rules":
        return find
    if engine == "presidio":
        return _presidio()
    raise ValueError(f"personal data engine {engine!r} is unknown; known are {', '.join(ENGINES)}")


# Secrets: what opens an account. Makers gave them prefixes that nothing else has; a token without a digit is a
# placeholder, but for hf_ tokens.

SECRET = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"(?:sk-(?:proj|svcacct|admin|ant|or)-(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{20,}|(?:sk-|[sr]k_live_)(?=[A-Za-z]*[0-9])[A-Za-z0-9]{20,})"
    r"|gh[oprsu]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{22,}|glpat-[A-Za-z0-9_-]{20}|hf_[A-Za-z]{30,}"
    r"|xox[abprs]-(?=[A-Za-z-]*[0-9])[A-Za-z0-9-]{10,}|AIza[A-Za-z0-9_-]{35}|A(?:KI|SI)A(?![A-Z0-9]{9}EXAMPLE)[A-Z0-9]{16}"
    r"|eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{16,}"
    r")(?![A-Za-z0-9])"
    r"|-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"
    r"|(?<![a-z0-9+])[a-z][a-z0-9+]{0,15}://[^\s:/@\"'<>{}$]+:(?=[^\s/@]*[0-9])[^\s/@\"'<>{}$]+@(?!localhost|127\.|(?:[\w-]+\.)*example\b)"
)
SECRET_GATE = re.compile(r"[sr]k[-_]|gh[oprsu]_|github_pat_|glpat-|hf_|xox|AIza|A[KS]IA|eyJ|-----BEGIN|://")


# Emails

EMAIL = re.compile(
    r"(?<![\w.+-])[A-Za-z0-9][\w.+%'-]{0,63}@((?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+[A-Za-z]{2,24})(?![\w@-])",
    re.ASCII,
)
NOBODYS_DOMAIN = re.compile(r"(?:.*\.)?(?:example(?:\.(?:com|net|org))?|test|invalid|localhost|local)", re.IGNORECASE)
"""Reserved for documentation and tests (RFC 2606, RFC 6762)."""
FILE_NAME = re.compile(r".*\.(?:png|jpe?g|gif|svg|webp|css|js)", re.IGNORECASE)
"""logo@2x.png"""
USER_PART = re.compile(r"://[^\s/@?]*$")
"""ftp://name:word@host"""


def _emails(text: str) -> Iterator[Span]:
    for match in EMAIL.finditer(text):
        repository = match[0].startswith("git@") and text[match.end() : match.end() + 1] in (":", "/")
        login = repository or USER_PART.search(text, max(0, match.start() - 64), match.start())
        if not (login or NOBODYS_DOMAIN.fullmatch(match[1]) or FILE_NAME.fullmatch(match[1])):
            yield match.span()


# Numbers with a checksum

IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?(?![A-Za-z0-9])")
CARD = re.compile(
    r"(?<![\w.-])(?:[0-9]{14,16}|[0-9]{4}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{4}|[0-9]{4}([ "
    r"-])[0-9]{6}\2[0-9]{4,5})(?![\w-]|[.,][0-9])"
)
ISSUED = re.compile(
    r"4\d{15}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}"  # Visa, Mastercard
    # Amex, Discover, JCB, Diners
    r"|3[47]\d{13}|6(?:011|5\d\d|4[4-9]\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}|3(?:0[0-5]|[68]\d)\d{11}"
)
SEPARATOR = re.compile(r"[ -]")


def _ibans(text: str) -> Iterator[Span]:
    for match in IBAN.finditer(text):
        candidate = match[0]
        while not _is_iban(candidate) and " " in candidate:  # a short word in capitals may follow the number
            candidate = candidate.rpartition(" ")[0]
        if _is_iban(candidate):
            yield match.start(), match.start() + len(candidate)


def _is_iban(candidate: str) -> bool:
    """By check digits and the country's structure; the lists of each country's banks grow old and would let accounts
    through.
    """
    return iban.is_valid(candidate, check_country=False)


def _cards(text: str) -> Iterator[Span]:
    for match in CARD.finditer(text):
        digits = SEPARATOR.sub("", match[0])
        if ISSUED.fullmatch(digits) and luhn.is_valid(digits):
            yield match.span()


def _grouped(*sizes: int) -> re.Pattern[str]:
    return re.compile(r"(?<![\w-])" + "[ -]?".join(f"[0-9]{{{size}}}" for size in sizes) + r"(?![\w-])")


NATIONAL_IDS: tuple[tuple[re.Pattern[str], re.Pattern[str], Callable[[str], bool]], ...] = (
    (re.compile(r"\bSSN|\bssn|[Ss]ocial [Ss]ecurity"), _grouped(3, 2, 4), ssn.is_valid),
    (re.compile(r"\bSIN\b|[Ss]ocial [Ii]nsurance"), _grouped(3, 3, 3), sin.is_valid),
    (re.compile(r"\bNHS\b|\bnhs n"), _grouped(3, 3, 4), nhs.is_valid),
    (re.compile(r"\b[Aa]adhaar|\bAADHAAR"), _grouped(4, 4, 4), aadhaar.is_valid),
)
"""What the number is called, its groups, its check. A tenth of all numbers pass a check digit, so the name has to stand
before it.
"""
SSN = re.compile(r"(?<![\w-])[0-9]{3}-[0-9]{2}-[0-9]{4}(?![\w-])")
"""The one grouping that needs no name."""
SAMPLE_SSN = "123-45-6789"


def _national_ids(text: str) -> Iterator[Span]:
    for match in SSN.finditer(text):
        if match[0] != SAMPLE_SSN and ssn.is_valid(match[0]):
            yield match.span()
    for name, number, is_valid in NATIONAL_IDS:
        if called := name.search(text):
            for match in number.finditer(text, called.end()):
                if is_valid(SEPARATOR.sub("", match[0])) and match[0] != SAMPLE_SSN:
                    yield match.span()


# Addresses on the internet

IPV4 = re.compile(r"(?<![\w.:-])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![\w/-]|\.[0-9])")
IPV6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}:(?:[0-9A-Fa-f]{0,4}:){1,6}[0-9A-Fa-f]{0,4}(?![\w:/])")
"""2000::/3, the only part of the space that is given to anybody."""
VERSION = re.compile(
    r"(?:version|release|kernel|firmware|driver|chapter|section)s?\b.*$|(?:\bv|build|[=<>~]=|[~^]) ?$", re.IGNORECASE
)
RESOLVERS = frozenset({"149.112.112.112", "208.67.222.222", "208.67.220.220"})


def _ip_addresses(text: str) -> Iterator[Span]:
    for match in (*IPV4.finditer(text), *IPV6.finditer(text)):
        # four digits are an outline's number, a version or a famous resolver (1.1.1.1, 9.9.9.9) before they are
        # somebody's address
        if (
            len(match[0]) > 7
            and match[0] not in RESOLVERS
            and not VERSION.search(text, max(0, match.start() - 32), match.start())
        ):
            try:
                if ipaddress.ip_address(match[0]).is_global:
                    yield match.span()
            except ValueError:
                pass  # a part over 255, or groups that make no address


# Phone numbers

DIGITS = re.compile(r"(?:[0-9][ \t().\-/]{0,3}){7}")
REGIONS = ("GB", "AU", "DE", "FR", "IN")
"""Whose national formats are tried beside North America's; the formats of many others coincide. Numbers with a + are
found from everywhere.
"""
INTERNATIONAL = re.compile(r"\(?\+[ (]{0,2}[0-9]")
NORTH_AMERICAN = re.compile(r"(?:1[-. ])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[-. ])[0-9]{3}[-. ][0-9]{4}")
TRUNK = re.compile(r"(?<![\w.,:/-])\(?0[1-9][0-9]{0,4}\)?[ /.-]{1,2}[0-9]")
"""0 and an area code: what a number elsewhere starts with when it has no +."""
PHONE_WORD = re.compile(
    r"(?:\b(?:call|ring|text) (?:me|us|him|her|them)|phone|\btel|mobile|\bcell:|\bfax|whatsapp|\bdial|my (?:new "
    r")?number|telefon\w*|handy)\b"
    r"[^0-9]{0,24}$",
    re.IGNORECASE,
)
ANSWERED_BY_NOBODY = frozenset(
    {PhoneNumberType.TOLL_FREE, PhoneNumberType.PREMIUM_RATE, PhoneNumberType.SHARED_COST, PhoneNumberType.UAN}
)
"""Hotlines belong to a company."""


def _phones(text: str) -> Iterator[Span]:
    for region in _regions(text):
        for match in PhoneNumberMatcher(text, region, leniency=Leniency.STRICT_GROUPING):
            bracket = match.raw_string.startswith("(") and ")" not in match.raw_string  # it belongs to the sentence
            if _is_phone(match.number, text, match.start + bracket, match.end):
                yield match.start + bracket, match.end


def _regions(text: str) -> tuple[str, ...]:
    """The regions whose numbers the text can hold at all: the library reads the text once for each, a tenth of a
    millisecond.
    """
    if TRUNK.search(text) or any(_spoken_of(text, match.start()) for match in DIGITS.finditer(text)):
        return ("US", *REGIONS)
    return ("US",) if INTERNATIONAL.search(text) or NORTH_AMERICAN.search(text) else ()


def _spoken_of(text: str, start: int) -> bool:
    """Whether the words before a number say that it is for calling."""
    return bool(PHONE_WORD.search(text, max(0, start - 40), start))


def _is_phone(number: PhoneNumber, text: str, start: int, end: int) -> bool:
    """Whether a number that the library takes for valid is written as one, and could be somebody's."""
    written, country = text[start:end], number.country_code
    if NORTH_AMERICAN.fullmatch(written):
        if country != 1:  # Britain would take (212) 555-0142 for one of its own
            return False
    elif not (INTERNATIONAL.match(written) or TRUNK.match(written) or _spoken_of(text, start)):
        return False
    fictional = country == 1 and re.fullmatch(r"\d{3}55501\d\d", str(number.national_number))
    return not fictional and phonenumbers.number_type(number) not in ANSWERED_BY_NOBODY


# Streets

STREET = (
    r"(?:Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Lane|Ln|Drive|Dr|Court|Ct|Place|Pl|Way|Terrace|Crescent|Close|Gardens|Grove|Square|Sq|"
    r"Parkway|Pkwy|Highway|Hwy|Circle|Cir|Mews|Row)"
)
UNIT = r"(?:(?:Apt|Apartment|Unit|Suite|Ste|Flat|Room)\.? ?#?[0-9A-Z]{1,5}|#[0-9A-Z]{1,5})"
POSTCODE = r"(?:[A-Za-z]{2} [0-9]{5}(?:-[0-9]{4})?|[A-Z]{1,2}[0-9][0-9A-Z]? [0-9][A-Z]{2})"
TOWN = r"[A-Za-z][A-Za-z.'’]*(?: [A-Za-z][A-Za-z.'’]*){0,2}"
CODED_TOWN = rf"(?:\.?,? (?:{TOWN},? )?{POSTCODE}\b)"
ADDRESS = re.compile(
    rf"(?<![\w.,$€£/-])(?:{UNIT},? )?(?:"
    rf"(?P<number>[0-9]{{1,5}}[A-Fa-f]?(?:[-/][0-9]{{1,5}})?) (?:"
    rf"(?:(?:[A-Z]|[0-9]+(?:st|nd|rd|th)\b)[\w.'’-]* ){{1,4}}{STREET}\b(?P<rest>(?:\.?,? {UNIT})?{CODED_TOWN}?)"
    rf"|(?:[a-z][\w.'’-]* ){{1,4}}(?i:{STREET})\b(?:\.?,? {UNIT})?{CODED_TOWN})"
    rf"|P\.?O\.? Box [0-9]{{1,6}}{CODED_TOWN}?)"
)
ADDRESS_GATE = re.compile(r"[0-9][A-Fa-f]? [0-9A-Za-z]|Box [0-9]")
YEAR = re.compile(r"1[5-9][0-9]{2}|20[0-9]{2}")


def _street_addresses(text: str) -> Iterator[Span]:
    for match in ADDRESS.finditer(text):
        # "the 1969 Abbey Road album"; a house with a year's number needs a town and its code
        if match["rest"] or not YEAR.fullmatch(match["number"] or ""):
            yield match.span()


ANYTHING = re.compile(r"[0-9@]|hf_|-----BEGIN")
"""What every finding has one of; most prompts have none."""
RULES: tuple[tuple[str, Callable[[str], object], Callable[[str], Iterator[Span]]], ...] = (
    ("SECRET", SECRET_GATE.search, lambda text: (match.span() for match in SECRET.finditer(text))),
    ("EMAIL", lambda text: "@" in text, _emails),
    ("IBAN", IBAN.search, _ibans),
    ("CARD", CARD.search, _cards),
    ("NATIONAL_ID", re.compile(r"[0-9](?:[ -]?[0-9]){8}").search, _national_ids),
    ("IP_ADDRESS", re.compile(r"[0-9]\.[0-9]+\.[0-9]+\.[0-9]|[0-9A-Fa-f]{4}:[0-9A-Fa-f]*:").search, _ip_addresses),
    ("PHONE", DIGITS.search, _phones),
    ("STREET_ADDRESS", ADDRESS_GATE.search, _street_addresses),
)
"""Entity, a cheap test that most texts fail, and the rule behind it; strictest first."""


# Microsoft's presidio, for what rules cannot know

PRESIDIO_ENTITIES = {
    "PERSON": "PERSON",
    "US_PASSPORT": "NATIONAL_ID",
    "US_ITIN": "NATIONAL_ID",
    "US_DRIVER_LICENSE": "NATIONAL_ID",
}
"""Presidio's names and ours. Not used: DATE_TIME, NRP, URL, LOCATION and ORGANIZATION, which are nobody's by
themselves; and what the rules find too, because presidio takes versions for IP addresses and timestamps for phone
numbers, and its email recogniser asks the network for a list."""
PRESIDIO_SCORE = 0.4
"""What a document's number has only near a word that names it."""
SPACY_SIZES = ("lg", "md", "sm")
LONGEST_READ = 100_000
"""Characters that the language model reads of a text: spaCy refuses a million, and curation drops prompts far shorter
than this.
"""
FULL_NAME = re.compile(r"[^\W\d_][\w.'’-]*(?: [^\W\d_][\w.'’-]*)+")


def _presidio() -> Callable[[str], list[Finding]]:
    try:
        import spacy
        from presidio_analyzer import AnalyzerEngine
        from presidio_analyzer.nlp_engine import NlpEngineProvider
    except ImportError as error:
        raise ValueError(
            "data.personal_data: presidio needs a library that is not installed: pip install -e '.[presidio]'"
        ) from error
    model = _largest_model(spacy.util.get_installed_models())
    configuration = {"nlp_engine_name": "spacy", "models": [{"lang_code": "en", "model_name": model}]}
    analyzer = AnalyzerEngine(
        nlp_engine=NlpEngineProvider(nlp_configuration=configuration).create_engine(), supported_languages=["en"]
    )

    def find_with_presidio(text: str) -> list[Finding]:
        found = find(text)
        results = analyzer.analyze(
            text[:LONGEST_READ], "en", entities=list(PRESIDIO_ENTITIES), score_threshold=PRESIDIO_SCORE
        )
        for result in sorted(results, key=lambda result: (result.start, -result.end)):
            known = any(result.start < other.end and other.start < result.end for other in found)
            if not known and (result.entity_type != "PERSON" or _is_full_name(text[result.start : result.end])):
                found.append(Finding(PRESIDIO_ENTITIES[result.entity_type], result.start, result.end))
        return sorted(found, key=lambda finding: finding.start)

    return find_with_presidio


def _largest_model(installed: list[str]) -> str:
    """The largest English model of spaCy among those installed; it would be fetched over the network if it were not."""
    for size in SPACY_SIZES:
        for name in sorted(installed):
            if name.startswith(f"en_core_web_{size}"):
                return name
    raise ValueError(
        "data.personal_data: presidio needs an English model of spaCy: python -m spacy download en_core_web_lg"
    )


def _is_full_name(name: str) -> bool:
    """A first name alone points at nobody, and the language model takes many a capital for one."""
    return bool(FULL_NAME.fullmatch(name)) and name[0].isupper()
