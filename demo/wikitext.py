"""Extracts the running text of articles from a MediaWiki dump.

Kept are lines that end like sentences, and headings directly before them. Tables, references, templates, pictures,
categories, formulas and lists are removed.
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
    r"(see also|references?|notes?|footnotes|citations?|sources?|bibliography|works cited|further reading|external "
    r"links|gallery"
    r"|notes and references|references and notes|filmography|discography)",
    re.IGNORECASE,
)
LINKS_THAT_SHOW_NO_TEXT = ("file", "image", "category", "media")
LINKS_TO_OTHER_WIKIS = ("wikt", "wiktionary", "s", "wikisource", "commons", "q", "b")
TAGS_WITHOUT_PROSE = (
    "ref",
    "references",
    "table",
    "gallery",
    "timeline",
    "source",
    "syntaxhighlight",
    "pre",
    "imagemap",
    "score",
)
TEMPLATES_THAT_SHOW = {
    "lang": 2,
    "nowrap": 1,
    "nihongo": 1,
    "quote": 1,
    "blockquote": 1,
    "small": 1,
    "smaller": 1,
    "angbr": 1,
    "vanchor": 1,
}
"""Templates that show an argument in running text, and its index from 1. All others are dropped."""


def articles(dump: Path) -> Iterator[tuple[str, str]]:
    """Yields (title, text) of each article in a bz2-compressed MediaWiki dump with at least SHORTEST_ARTICLE
    characters of text.
    """
    with bz2.open(dump) as opened:
        for _, element in ElementTree.iterparse(opened):
            namespace, _, tag = element.tag.rpartition("}")
            if tag != "page":
                continue
            inside = "{*}" if namespace else ""
            if element.findtext(f"{inside}ns", "0") == "0" and element.find(f"{inside}redirect") is None:
                text = prose(element.findtext(f"{inside}revision/{inside}text") or "")
                if len(text) >= SHORTEST_ARTICLE:
                    yield element.findtext(f"{inside}title", ""), text
            element.clear()


def prose(markup: str) -> str:
    """The paragraphs of an article and their headings, separated by empty lines."""
    kept: list[str] = []
    heading: str | None = None
    appendix_level = 0
    for line in _text(mwparserfromhell.parse(markup)).split("\n"):
        if line.startswith(HEADING):
            level, title = int(line[1]), _tidy(line[2:].replace(HOLE, ""))
            if appendix_level and level > appendix_level:
                continue
            appendix_level = level if APPENDICES.fullmatch(title) else 0
            heading = title
            continue
        paragraph = _tidy(line)
        is_prose = (
            len(paragraph) >= SHORTEST_PARAGRAPH and re.search("[.!?][\"'\u201d\u2019)]*$", paragraph) is not None
        )
        if appendix_level or not is_prose or BROKEN.search(paragraph):
            continue
        if heading:
            kept.append(heading)
            heading = None
        kept.append(paragraph)
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
        prefix, colon, rest = str(node.title).partition(":")
        if colon and prefix.strip().lower() in LINKS_THAT_SHOW_NO_TEXT:
            return ""
        other = colon and prefix.strip().lower() in LINKS_TO_OTHER_WIKIS
        return _text(node.text) if node.text else rest if other else _text(node.title)
    if isinstance(node, nodes.ExternalLink):
        return _text(node.title)
    if isinstance(node, nodes.Template):
        return _template_text(node)
    if isinstance(node, nodes.Tag):
        tag = str(node.tag).strip().lower()
        if tag in TAGS_WITHOUT_PROSE:
            return ""
        if tag in ("math", "chem"):
            return HOLE
        return " " if tag == "br" else _text(node.contents)
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
