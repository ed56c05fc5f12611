"""The report kit: a page is a list of blocks (headings, texts, tables, plots), rendered as HTML and as Markdown.

The HTML file is self-contained, with its plots inside. The Markdown file has its plots beside it.
"""

import base64
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from matplotlib.figure import Figure

TEMPLATES = Path(__file__).parent / "templates"
Cell = str | tuple[str, str]
"""A cell of a table, with a smaller second text if there are two."""
Format = Callable[[Any], str]
Interval = Mapping[str, float]
"""mean, low, high, n (data/intervals.py)."""


@dataclass(frozen=True)
class Block:
    """A part of a page. `kind` selects its macro in the templates."""

    kind: ClassVar[str]


@dataclass(frozen=True)
class Heading(Block):
    """A heading; those of level 2 are in the page's navigation."""

    kind: ClassVar[str] = "heading"
    text: str
    level: int = 2


@dataclass(frozen=True)
class Text(Block):
    """A paragraph; a `link` is (label, address) at its end."""

    kind: ClassVar[str] = "text"
    text: str
    small: bool = False
    link: tuple[str, str] | None = None


@dataclass(frozen=True)
class Box(Block):
    """A framed paragraph with a title and a list. `tone` is its colour: better, worse, even or unknown."""

    kind: ClassVar[str] = "box"
    text: str
    title: str = ""
    items: tuple[str, ...] = ()
    tone: str = ""


@dataclass(frozen=True)
class Bullets(Block):
    """A list; an item may start with a mark: holds, open or fails."""

    kind: ClassVar[str] = "bullets"
    items: Sequence[Cell]
    marks: Sequence[str] = ()


@dataclass(frozen=True)
class Table(Block):
    """Rows of text. The first column is text, the others are numbers unless they are in `words`."""

    kind: ClassVar[str] = "table"
    columns: list[str]
    rows: list[list[Cell]]
    quiet: tuple[int, ...] = ()
    """Columns in grey, such as the paper's numbers."""
    words: tuple[int, ...] = ()
    """Further columns of text: left-aligned, with line breaks."""
    empty: str = "Not measured in this run."
    """The text in place of a table without rows."""


@dataclass(frozen=True)
class Picture(Block):
    """A plot by its name; nothing if the page has no such plot."""

    kind: ClassVar[str] = "picture"
    name: str
    caption: str


@dataclass(frozen=True)
class Tiles(Block):
    """Headline numbers: (label, value, detail)."""

    kind: ClassVar[str] = "tiles"
    tiles: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Quote(Block):
    """A text that somebody or a model wrote, with a note beneath. `language` is set for code."""

    kind: ClassVar[str] = "quote"
    text: str
    title: str = ""
    note: str = ""
    language: str = "text"


@dataclass(frozen=True)
class Columns(Block):
    """Quotes side by side; `names` are their colours."""

    kind: ClassVar[str] = "columns"
    quotes: Sequence[Quote]
    names: Sequence[str]


@dataclass(frozen=True)
class Details(Block):
    """Blocks that a click opens."""

    kind: ClassVar[str] = "details"
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A report: its title and its blocks, and where it is written."""

    title: str
    blocks: Sequence[Block]
    html: str
    markdown: str
    pictures: str
    """The folder of the Markdown file's plots."""

    def write(self, folder: Path, figures: Mapping[str, Figure]) -> None:
        """Writes both files and the plots into `folder`."""
        drawn = {name: png(figure) for name, figure in figures.items()}
        (folder / self.pictures).mkdir(parents=True, exist_ok=True)
        for name, content in drawn.items():
            (folder / self.pictures / f"{name}.png").write_bytes(content)
        inline = {name: f"data:image/png;base64,{base64.b64encode(png).decode()}" for name, png in drawn.items()}
        linked = {name: f"{self.pictures}/{name}.png" for name in drawn}
        for file, template, places in (
            (self.html, "page.html.j2", inline),
            (self.markdown, "page.md.j2", linked),
        ):
            text = environment().get_template(template).render(page=self, pictures=places)
            (folder / file).write_text(text, encoding="utf-8")


def environment() -> Environment:
    """The templates: HTML is escaped, and an undefined variable is an error."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(enabled_extensions=("html.j2",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"fenced": fenced, "cell": markdown_cell}
    return made


def png(figure: Figure) -> bytes:
    """The plot as a file, on white in any theme."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def number(value: Any) -> str:
    """About three significant digits; a dash if it is not a number."""
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
    """A difference with its sign, without one if it rounds to zero."""
    text = f"{value:+z.{digits}f}"
    return text.removeprefix("+") if float(text) == 0 else text


def share(part: float, whole: float) -> str:
    """A part of the whole in percent; a dash if the whole is 0."""
    return percent(part / whole) if whole else "–"


def counted(count: int, what: str) -> str:
    """`1 user`, `2 users`."""
    return f"{number(count)} {what}{'' if count == 1 else 's'}"


def between(found: Interval, form: Format) -> str:
    """The ends of an interval."""
    return f"{form(found['low'])} to {form(found['high'])}"


def measured(found: Any, form: Format) -> Cell:
    """A number, or a mean with its interval."""
    return (form(found["mean"]), between(found, form)) if isinstance(found, Mapping) else form(found)


def duration(seconds: Any) -> str:
    """Wall time in its two largest units."""
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


def fenced(text: str, language: str = "text") -> str:
    """Text as a Markdown code block that it cannot close."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def markdown_cell(cell: Cell) -> str:
    """A cell of a Markdown table."""
    text = cell if isinstance(cell, str) else f"{cell[0]} ({cell[1]})" if cell[1] else cell[0]
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
