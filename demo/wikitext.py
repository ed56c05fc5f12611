"""Extracts the running text of articles from the demo's MediaWiki dump.

Kept are lines that end like sentences, and headings directly before them. Tables, references, templates, pictures,
categories, formulas and lists are removed. Only markup that the pinned dump contains is handled.
"""

import bz2
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mwparserfromhell
from mwparserfromhell import nodes

SHORTEST_ARTICLE = 500
"""Characters. Shorter pages are stubs and disambiguation pages."""
SHORTEST_PARAGRAPH = 60
HOLE = "\x00"
"""Replaces something that its sentence needs, such as a formula; the paragraph is dropped."""
BROKEN = re.compile(HOLE + r"|<ref|\{\{|\}\}|\[\[|\]\]")
"""Holes, and unclosed markup, which the parser returns as text."""
HEADING = "\x01"
APPENDICES = re.compile(
    r"(see also|references?|sources?|bibliography|further reading|external links|gallery|filmography)", re.IGNORECASE
)
TAGS_WITHOUT_PROSE = ("ref", "table", "gallery", "source")
TEMPLATES_THAT_SHOW = {"lang": 2} | dict.fromkeys(
    ("nowrap", "nihongo", "quote", "small", "smaller", "angbr", "vanchor"), 1
)
"""Templates that show an argument in running text, and its index from 1. All others are dropped."""


def articles(dump: Path) -> Iterator[tuple[str, str]]:
    """Yields (title, text) of each article in a bz2-compressed MediaWiki dump with at least SHORTEST_ARTICLE
    characters of text.
    """
    with bz2.open(dump) as opened:
        for _, element in ElementTree.iterparse(opened):
            if element.tag.rpartition("}")[2] != "page":
                continue
            if element.findtext("{*}ns") == "0" and element.find("{*}redirect") is None:
                text = prose(element.findtext("{*}revision/{*}text") or "")
                if len(text) >= SHORTEST_ARTICLE:
                    yield element.findtext("{*}title", ""), text
            element.clear()


def prose(markup: str) -> str:
    """The paragraphs of an article and their headings, separated by empty lines."""
    kept: list[str] = []
    heading: str | None = None
    appendix_level = 0
    for line in _text(mwparserfromhell.parse(markup)).split("\n"):
        if line.startswith(HEADING):
            level, title = int(line[1]), _tidy(line[2:].replace(HOLE, ""))
            if not appendix_level or level <= appendix_level:
                appendix_level = level if APPENDICES.fullmatch(title) else 0
                heading = title
            continue
        paragraph = _tidy(line)
        ends = re.search("[.!?][\"'\u201d\u2019)]*$", paragraph)
        if len(paragraph) >= SHORTEST_PARAGRAPH and ends and not appendix_level and not BROKEN.search(paragraph):
            kept += [heading, paragraph] if heading else [paragraph]
            heading = None
    return "\n\n".join(kept)


def _text(code: Any) -> str:
    """The text that a reader of the page sees, with headings marked."""
    return "".join(_node_text(node) for node in code.nodes) if code is not None else ""


def _node_text(node: Any) -> str:
    if isinstance(node, nodes.Text):
        return str(node)
    if isinstance(node, nodes.HTMLEntity):
        return str(node.normalize())
    if isinstance(node, nodes.Heading):
        return f"\n{HEADING}{node.level}{_text(node.title).strip()}\n"
    if isinstance(node, nodes.Wikilink):
        is_picture = str(node.title).strip().lower().startswith(("file:", "image:", "category:"))
        return "" if is_picture else _text(node.text or node.title)
    if isinstance(node, nodes.ExternalLink):
        return _text(node.title)
    if isinstance(node, nodes.Template):
        return _template_text(node)
    if isinstance(node, nodes.Tag):
        tag = str(node.tag).strip().lower()
        shown = "" if tag in TAGS_WITHOUT_PROSE else _text(node.contents)
        return {"math": HOLE, "br": " "}.get(tag, shown)
    return ""


def _template_text(template: Any) -> str:
    name = str(template.name).strip().lower()
    positional = [_text(parameter.value).strip() for parameter in template.params if not parameter.showkey]
    if name in ("convert", "cvt") and len(positional) >= 2:
        # {{convert|3|km}} reads "3 km", {{convert|3|to|5|km|mi}} "3 to 5 km".
        unit = 3 if positional[1] in ("-", "\u2013", "to", "and", "by", "x", "or") and len(positional) > 3 else 1
        return " ".join(positional[: unit + 1])
    if name in ("chem", "math", "frac", "sfrac", "mvar", "val", "gaps", "physconst"):
        return HOLE
    place = TEMPLATES_THAT_SHOW.get(name, 0)
    return positional[place - 1] if 0 < place <= len(positional) else ""


def _tidy(line: str) -> str:
    """Removes what the removed markup leaves: double spaces, empty brackets, spaces before a comma."""
    line = re.sub(r"[\u00a0\u2009\u202f\t ]+", " ", line.replace("\u200b", ""))
    line = re.sub(r"__[A-Z]+__", "", line)
    line = re.sub(r"\(\s*[;,:]?\s+", "(", line)
    line = re.sub(r"(\s*[;,:/])+\s*\)", ")", line)
    line = re.sub(r"\s*\(\s*(or|and)?\s*\)", "", line)
    line = re.sub(r"\s+([,.;:!?)])", r"\1", line)
    line = re.sub(r",(?=[,.;])", "", line)
    return re.sub(r" {2,}", " ", line).strip()
