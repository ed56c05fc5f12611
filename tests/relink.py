"""Points the links of docs/details.md at the lines where things are defined now.

python -m tests.relink
"""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DETAILS = ROOT / "docs" / "details.md"


def relinked(text: str) -> str:
    """The text with every `#L<number>` renewed. Raises ValueError for a name that its file does not define."""

    def renew(match: re.Match[str]) -> str:
        name, file = match.group(1), match.group(2)
        for number, line in enumerate((ROOT / file).read_text().splitlines(), start=1):
            if re.match(rf"\s*(def|class) {name}\b", line):
                return f"[`{name}`](../{file}#L{number})"
        raise ValueError(f"{file} defines no {name}")

    return re.sub(r"\[`(\w+)`\]\(\.\./([\w/]+\.py)#L\d+\)", renew, text)


if __name__ == "__main__":
    DETAILS.write_text(relinked(DETAILS.read_text()))
