"""Finds personal data in text, so that curation can keep it out of the training split (Ouyang et al. 2022, section
3.2). The paper does not say how it was found; the rules are *ours*.

A rule is a pattern and a check of what matched. docs/personal-data.md lists what each rule ignores, and their measured
precision and recall. data/presidio.py also finds names.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from phonenumbers import Leniency, PhoneNumberMatcher, PhoneNumberType, number_type
from stdnum import iban, luhn
from stdnum.ca import sin
from stdnum.gb import nhs
from stdnum.in_ import aadhaar
from stdnum.us import ssn
from stdnum.util import clean

Match = re.Match[str]
Rule = Callable[[str], Iterator[tuple[int, int]]]
SECRET = re.compile(  # the prefixes of keys, which need a digit so that placeholders are ignored
    r"(?<![A-Za-z0-9])(?:sk-(?:proj|svcacct|admin|ant|or)-(?=[A-Za-z_-]*\d)[\w-]{20,}"
    r"|(?:sk-|[sr]k_live_)(?=[A-Za-z]*\d)[A-Za-z0-9]{20,}|gh[oprsu]_[A-Za-z0-9]{36}|github_pat_\w{22,}"
    r"|glpat-[\w-]{20,}(?:\.[\w-]+)*|hf_[A-Za-z]{30,}|xox[abprs]-(?=[A-Za-z-]*\d)[A-Za-z0-9-]{10,}|AIza[\w-]{35}"
    r"|A(?:KI|SI)A(?![A-Z0-9]{9}EXAMPLE)[A-Z0-9]{16}|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{16,})(?![A-Za-z0-9])"
    r"|-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"
    r"|(?<![a-z0-9+])[a-z][a-z0-9+]{0,15}://[^\s:/@\"'<>{}$]+:(?=[^\s/@]*\d)[^\s/@\"'<>{}$]+"
    r"@(?!localhost|127\.|(?:[\w-]+\.)*example\b)",
    re.ASCII,
)
EMAIL = re.compile(
    r"(?<![\w.+-])[A-Za-z0-9][\w.+%'-]{0,63}@((?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+[A-Za-z]{2,24})(?![\w@-])",
    re.ASCII,
)
RESERVED = re.compile(r"(?:.*\.)?(?:example(?:\.(?:com|net|org))?|test|invalid|localhost|local)", re.IGNORECASE)
"""Domains for documentation and tests (RFC 2606, RFC 6762)."""
FILE_NAME = re.compile(r".*\.(?:png|jpe?g|gif|svg|webp|css|js)", re.IGNORECASE)
IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d\d(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?(?![A-Za-z0-9])", re.ASCII)
CARD = re.compile(
    r"(?<![\w.-])(?:\d{14,16}|\d{4}([ -])\d{4}\1\d{4}\1\d{4}|\d{4}([ -])\d{6}\2\d{4,5})(?![\w-]|[.,]\d)", re.ASCII
)
ISSUED = re.compile(  # Visa, Mastercard, Amex, Discover, JCB, Diners
    r"4\d{15}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    r"|6(?:011|5\d\d|4[4-9]\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}|3(?:0[0-5]|[68]\d)\d{11}"
)
NINE_DIGITS = re.compile(r"[0-9](?:[ -]?[0-9]){8}")
NATIONAL_IDS: tuple[tuple[str, str, Callable[[str], bool]], ...] = (
    ("", r"\d{3}-\d\d-\d{4}", ssn.is_valid),
    (r"\bSSN|\bssn|(?i:social security)", r"\d{3}[ -]?\d\d[ -]?\d{4}", ssn.is_valid),
    (r"\bSIN\b|(?i:social insurance)", r"\d{3}[ -]?\d{3}[ -]?\d{3}", sin.is_valid),
    (r"\bNHS\b|\bnhs n", r"\d{3}[ -]?\d{3}[ -]?\d{4}", nhs.is_valid),
    (r"(?i:\baadhaar)", r"\d{4}[ -]?\d{4}[ -]?\d{4}", aadhaar.is_valid),
)
"""(name that must precede the number, grouping, check). One number in ten passes a check digit, hence the name."""
IP_ADDRESS = re.compile(
    r"(?<![\w.:-])(?:\d{1,3}(?:\.\d{1,3}){3}(?![\w/-]|\.\d)"
    r"|[23][0-9A-Fa-f]{3}:(?:[0-9A-Fa-f]{0,4}:){1,6}[0-9A-Fa-f]{0,4}(?![\w:/]))",
    re.ASCII,
)
VERSION = re.compile(
    r"(?:version|release|kernel|firmware|driver|chapter|section)s?\b.*$|(?:\bv|build|[=<>~]=|[~^]) ?$", re.IGNORECASE
)
RESOLVERS = ("149.112.112.112", "208.67.222.222", "208.67.220.220")
PHONE = re.compile(r"(?:\d[ \t().\-/]{0,3}){7}", re.ASCII)
REGIONS = ("US", "GB", "AU", "DE", "FR", "IN")
"""Whose national formats are tried; many other countries share one of them. A number with + may be from anywhere."""
NORTH_AMERICAN = re.compile(r"(?:1[-. ])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[-. ])\d{3}[-. ]\d{4}", re.ASCII)
TRUNK = re.compile(r"(?<![\w.,:/-])\(?0[1-9]\d{0,4}\)?[ /.-]{1,2}\d", re.ASCII)
PHONE_WORD = re.compile(
    r"(?:\b(?:call|ring|text) (?:me|us|him|her|them)|phone|\btel|mobile|\bcell:|\bfax|whatsapp|\bdial"
    r"|my (?:new )?number|telefon\w*|handy)\b[^0-9]{0,24}$",
    re.IGNORECASE,
)
HOTLINES = (PhoneNumberType.TOLL_FREE, PhoneNumberType.PREMIUM_RATE, PhoneNumberType.SHARED_COST, PhoneNumberType.UAN)
STREET = (
    r"(?:Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Lane|Ln|Drive|Dr|Court|Ct|Place|Pl|Way|Terrace|Crescent|Close"
    r"|Gardens|Grove|Square|Sq|Parkway|Pkwy|Highway|Hwy|Circle|Cir|Mews|Row)"
)
UNIT = r"(?:(?:Apt|Apartment|Unit|Suite|Ste|Flat|Room)\.? ?#?[0-9A-Z]{1,5}|#[0-9A-Z]{1,5})"
TOWN = (
    r"(?:\.?,? (?:[A-Za-z][A-Za-z.'’]*(?: [A-Za-z][A-Za-z.'’]*){0,2},? )?"
    r"(?:[A-Za-z]{2} [0-9]{5}(?:-[0-9]{4})?|[A-Z]{1,2}[0-9][0-9A-Z]? [0-9][A-Z]{2})\b)"
)
"""With its postal code."""
STREET_ADDRESS = re.compile(
    rf"(?<![\w.,$€£/-])(?:{UNIT},? )?(?:(?P<number>[0-9]{{1,5}}[A-Fa-f]?(?:[-/][0-9]{{1,5}})?) (?:"
    rf"(?:(?:[A-Z]|[0-9]+(?:st|nd|rd|th)\b)[\w.'’-]* ){{1,4}}{STREET}\b(?P<rest>(?:\.?,? {UNIT})?{TOWN}?)"
    rf"|(?:[a-z][\w.'’-]* ){{1,4}}(?i:{STREET})\b(?:\.?,? {UNIT})?{TOWN})|P\.?O\.? Box [0-9]{{1,6}}{TOWN}?)"
)
YEAR = re.compile(r"1[5-9][0-9][0-9]|20[0-9][0-9]")
ANYTHING = re.compile(r"[0-9@]|hf_|-----BEGIN")
"""Found in every text with a finding; most texts have none of these."""


@dataclass(frozen=True)
class Finding:
    """Personal data at text[start:end]."""

    entity: str
    """EMAIL, PHONE, CARD, IBAN, NATIONAL_ID, IP_ADDRESS, STREET_ADDRESS or SECRET; presidio adds PERSON."""
    start: int
    end: int


def find(text: str) -> list[Finding]:
    """Non-overlapping findings in reading order. Where two rules match, the first of `RULES` counts."""
    found: list[Finding] = []
    if ANYTHING.search(text):
        for entity, rule in RULES.items():
            for start, end in rule(text):
                if not any(start < other.end and other.start < end for other in found):
                    found.append(Finding(entity, start, end))
    return sorted(found, key=lambda finding: finding.start)


def checked(pattern: re.Pattern[str], is_personal: Callable[[Match], object], hint: str = "") -> Rule:
    """A rule: the spans of the matches that pass the check. `hint` matches fast where `pattern` may match."""
    has_hint = re.compile(hint).search
    return lambda text: (m.span() for m in pattern.finditer(text) if is_personal(m)) if has_hint(text) else iter(())


def is_mailbox(match: Match) -> bool:
    """Not a reserved domain, a file name such as logo@2x.png, git@host:path or the user in ftp://name:word@host."""
    text, start, end = match.string, *match.span()
    login = match[0].startswith("git@") and text[end : end + 1] in (":", "/")
    login |= bool(re.search(r"://[^\s/@?]*$", text[max(0, start - 64) : start]))
    return not (login or RESERVED.fullmatch(match[1]) or FILE_NAME.fullmatch(match[1]))


def ibans(text: str) -> Iterator[tuple[int, int]]:
    """By check digits and the country's length. A word in capitals may follow the number."""
    for match in IBAN.finditer(text):
        words = match[0].split(" ")
        numbers = (" ".join(words[:size]) for size in range(len(words), 0, -1))
        if number := next((number for number in numbers if iban.is_valid(number, check_country=False)), None):
            yield match.start(), match.start() + len(number)


def national_ids(text: str) -> Iterator[tuple[int, int]]:
    """Numbers with the grouping and check digit of one of `NATIONAL_IDS` that follow its name."""
    if not NINE_DIGITS.search(text):
        return
    for name, grouping, is_valid in NATIONAL_IDS:
        if named := re.search(name, text):
            for match in re.compile(rf"(?a:(?<![\w-]){grouping}(?![\w-]))").finditer(text, named.end()):
                if match[0] != "123-45-6789" and is_valid(clean(match[0], " -")):
                    yield match.span()


def is_host(match: Match) -> bool:
    """A global address that is not a version number, an outline number such as 1.2.3.4 or a public resolver."""
    before = match.string[max(0, match.start() - 32) : match.start()]
    try:
        is_global = ipaddress.ip_address(match[0]).is_global
    except ValueError:
        return False
    return is_global and len(match[0]) >= 8 and match[0] not in RESOLVERS and not VERSION.search(before)


def is_card(match: Match) -> bool:
    """Of an issuer, with Luhn's check digit."""
    number = clean(match[0], " -")
    return bool(ISSUED.fullmatch(number)) and luhn.is_valid(number)


def is_announced(text: str, start: int) -> bool:
    """Whether a number at `start` follows words such as "call me"."""
    return bool(PHONE_WORD.search(text[max(0, start - 40) : start]))


def phones(text: str) -> Iterator[tuple[int, int]]:
    """Valid numbers with +, an area code or words before them; no hotlines, and no numbers reserved for films."""
    places = [match.start() for match in PHONE.finditer(text)]
    national = places and (TRUNK.search(text) or any(is_announced(text, start) for start in places))
    american = places and ("+" in text or NORTH_AMERICAN.search(text))
    for region in REGIONS if national else REGIONS[:1] if american else ():
        for match in PhoneNumberMatcher(text, region, leniency=Leniency.STRICT_GROUPING):
            # A bracket that is not closed belongs to the sentence.
            start = match.start + (match.raw_string.startswith("(") and ")" not in match.raw_string)
            written, is_american = text[start : match.end], match.number.country_code == 1
            known = written.startswith(("+", "(+")) or TRUNK.match(written) or is_announced(text, start)
            if NORTH_AMERICAN.fullmatch(written):
                known = is_american  # (212) 555-0142 is also valid in Britain
            reserved = is_american and re.fullmatch(r"\d{3}55501\d\d", str(match.number.national_number))
            if known and not reserved and number_type(match.number) not in HOTLINES:
                yield start, match.end


RULES: dict[str, Rule] = {
    "SECRET": checked(SECRET, bool, r"[sr]k[-_]|gh[oprsu]_|github_pat|glpat-|hf_|xox|AIza|A[KS]IA|eyJ|-----BEGIN|://"),
    "EMAIL": checked(EMAIL, is_mailbox, "@"),
    "IBAN": ibans,
    "CARD": checked(CARD, is_card),
    "NATIONAL_ID": national_ids,
    "IP_ADDRESS": checked(IP_ADDRESS, is_host),
    "PHONE": phones,
    # A year before "Abbey Road" is no house number unless a town and its postal code follow.
    "STREET_ADDRESS": checked(STREET_ADDRESS, lambda match: match["rest"] or not YEAR.fullmatch(match["number"] or "")),
}
