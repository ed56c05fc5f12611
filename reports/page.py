"""The report kit: each report is one Jinja template of headings, texts, tables and plots, rendered to two formats.

The HTML file is self-contained, with its plots inside. The Markdown file has its plots beside it. `html.j2` and
`markdown.j2` define the same macros (`heading`, `text`, `table`, `picture`, ...), so that a template's text is written
once: `{{ heading("Win rates") }} {{ table(tables.wins_table(evaluation)) }}`.
"""

import base64
import functools
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from reports.formats import Cell, Format, between, counted, dig, duration, measured, number, percent, spaced

TEMPLATES = Path(__file__).parent / "templates"
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True)
class Table:
    """Rows of text. The first column is text, the others are numbers unless they are in `words`."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    quiet: tuple[int, ...] = ()
    """Columns in grey, such as the paper's numbers."""
    words: tuple[int, ...] = ()
    """Further columns of text: left-aligned, with line breaks."""
    empty: str = "Not measured in this run."
    """The text in place of a table without rows."""


def listing(rows: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, str, Format]]) -> Table:
    """A row for each of `rows`, and a column for each (title, dotted path of its number in a row, format)."""
    body = [[measured(dig(row, path), form) for _, path, form in columns] for row in rows]
    return Table([title for title, *_ in columns], body)


def side_by_side(
    corner: str, columns: Mapping[str, Mapping[str, Any]], lines: Sequence[tuple[str, str, str, Format]]
) -> Table:
    """A column for each of `columns`, and a row for each (title, note, dotted path of its number, format)."""
    body = [
        [(title, note), *(measured(dig(found, path), form) for found in columns.values())]
        for title, note, path, form in lines
    ]
    return Table([corner, *columns], body if columns else [])


def matrix(
    corner: str, rows: Mapping[Any, Mapping[str, Any]], form: Format = number, title: Callable[[str], str] = str
) -> Table:
    """A row for each of `rows`, and a column for each key that any of them has; `title` gives the column's heading."""
    keys = list(dict.fromkeys(key for row in rows.values() for key in row))
    body = [[name, *(measured(row.get(key), form) for key in keys)] for name, row in rows.items()]
    return Table([corner, *map(title, keys)], body)


@dataclass(frozen=True)
class Page:
    """A report's template, and the names of its files and of the folder of the Markdown file's plots."""

    template: str
    html: str
    markdown: str
    pictures: str

    def write(self, folder: Path, title: str, figures: Mapping[str, Figure | None], **content: Any) -> None:
        """Writes both files and the plots into `folder`; `content` are the template's variables."""
        drawn = {name: png(figure) for name, figure in figures.items() if figure is not None}
        (folder / self.pictures).mkdir(parents=True, exist_ok=True)
        for name, data in drawn.items():
            (folder / self.pictures / f"{name}.png").write_bytes(data)
        linked = {name: f"{self.pictures}/{name}.png" for name in drawn}
        body = render(self.template, "markdown.j2", pictures=linked, **content)
        (folder / self.markdown).write_text(f"# {title}\n\n{body}", encoding="utf-8")
        inline = {name: f"data:image/png;base64,{base64.b64encode(data).decode()}" for name, data in drawn.items()}
        body = render(self.template, "html.j2", pictures=inline, **content)
        page = render("page.html.j2", "html.j2", title=title, body=Markup(body))
        (folder / self.html).write_text(page, encoding="utf-8")


def render(template: str, kit: str, **content: Any) -> str:
    """A template with the macros of `html.j2`, which escapes what is not markup, or of `markdown.j2`.

    An undefined variable is an error. Control characters, which some models sample, are shown as U+FFFD: HTML has no
    place for them, and with them other programs take Markdown for a binary file.
    """
    text = environment(TEMPLATES, kit == "html.j2").get_template(template).render(kit=kit, **content)
    return CONTROL.sub("\ufffd", text)


@functools.cache
def environment(templates: Path, escape: bool) -> Environment:
    """Jinja's environment, kept so that a process compiles each template once."""
    made = Environment(
        loader=FileSystemLoader(templates),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"fenced": fenced, "cell": markdown_cell, "quoted": json.dumps}
    shared = (between, counted, dig, duration, listing, matrix, number, percent, side_by_side, spaced, str)
    made.globals |= {function.__name__: function for function in shared}
    return made


def png(figure: Figure) -> bytes:
    """The plot as a file, on white in any theme."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def fenced(text: str, language: str = "text") -> str:
    """Text as a Markdown code block that it cannot close."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def markdown_cell(cell: Cell) -> str:
    """Text in one line of Markdown, also for a cell of a table."""
    text = cell if isinstance(cell, str) else f"{cell[0]} ({cell[1]})" if cell[1] else cell[0]
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
