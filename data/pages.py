"""What every report is made of: numbers as text, tables, pictures, and the two pages that hold them.

A report is one HTML file that stands alone, its pictures inside, and the same in Markdown with the pictures beside it.
The skeleton, the style and the macros of both are in data/templates; a room's own templates build on them.
"""

import base64
import io
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from matplotlib.figure import Figure

SHARED_TEMPLATES = Path(__file__).parent / "templates"
Cell = str | tuple[str, str]
"""A table's cell, with a smaller second text where there are two."""
Format = Callable[[Any], str]
Interval = Mapping[str, float]
"""mean, low, high, n (data/intervals.py)."""


@dataclass(frozen=True)
class Table:
    """Rows of text for both templates; the first column is text, the others are numbers unless said otherwise."""

    columns: list[str]
    rows: list[list[Cell]]
    quiet: tuple[int, ...] = ()
    """Columns that stand back, such as the paper's numbers beside one's own."""
    words: tuple[int, ...] = ()
    """Further columns of text: they start at the left and may break into lines."""


def write_pages(
    folder: Path, templates: Path, html: str, shown: Mapping[str, Any], figures: Mapping[str, Figure], pictures: str
) -> None:
    """Writes `folder/html` with its pictures inline, and `folder/report.md` with them in `folder/pictures`.

    `templates` holds `page.html.j2` and `page.md.j2`, which see `shown` and, as `pictures`, where each picture is.
    """
    drawn = {name: png(figure) for name, figure in figures.items()}
    (folder / pictures).mkdir(parents=True, exist_ok=True)
    for name, content in drawn.items():
        (folder / pictures / f"{name}.png").write_bytes(content)
    inline = {name: f"data:image/png;base64,{base64.b64encode(content).decode()}" for name, content in drawn.items()}
    linked = {name: f"{pictures}/{name}.png" for name in drawn}
    made = environment(templates)
    for file, template, places in ((html, "page.html.j2", inline), ("report.md", "page.md.j2", linked)):
        (folder / file).write_text(made.get_template(template).render(shown, pictures=places), encoding="utf-8")


def environment(templates: Path) -> Environment:
    """Where templates are rendered: HTML is escaped, and a name that nobody gave is an error."""
    made = Environment(
        loader=FileSystemLoader([templates, SHARED_TEMPLATES]),
        autoescape=select_autoescape(enabled_extensions=("html.j2",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"number": number, "percent": percent, "fenced": fenced, "cell": markdown_cell}
    return made


def png(figure: Figure) -> bytes:
    """The picture as a file. White in any theme: its inks are made for it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def number(value: Any) -> str:
    """About three telling digits; a dash where there is no number."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    digits = (
        0 if isinstance(value, int) or abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    )
    return f"{value:z,.{digits}f}"


def percent(value: Any) -> str:
    """A share in percent."""
    return f"{100 * value:z.1f}%" if isinstance(value, int | float) and math.isfinite(value) else "–"


def signed(value: float, digits: int = 4) -> str:
    """A difference with its sign; what rounds to zero has none."""
    text = f"{value:+z.{digits}f}"
    return text.removeprefix("+") if float(text) == 0 else text


def share(part: float, whole: float) -> str:
    """A part of the whole in percent; a dash where there is no whole."""
    return percent(part / whole) if whole else "–"


def counted(count: int, what: str) -> str:
    """`1 user`, `2 users`."""
    return f"{number(count)} {what}{'' if count == 1 else 's'}"


def between(found: Interval, form: Format) -> str:
    """An interval's ends."""
    return f"{form(found['low'])} to {form(found['high'])}"


def measured(found: Any, form: Format) -> Cell:
    """A number, or a mean with its interval beneath."""
    return (form(found["mean"]), between(found, form)) if isinstance(found, Mapping) else form(found)


def duration(seconds: Any) -> str:
    """Wall time in the two largest units that matter."""
    if not isinstance(seconds, int | float):
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes // 60} h {minutes % 60} min"
        if minutes >= 60
        else f"{minutes} min {rest} s"
        if minutes
        else f"{rest} s"
    )


def fenced(text: str) -> str:
    """Text as a Markdown code block that it cannot break out of."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def markdown_cell(cell: Cell) -> str:
    """A cell of a Markdown table."""
    text = cell if isinstance(cell, str) else f"{cell[0]} ({cell[1]})" if cell[1] else cell[0]
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
