"""The report as one HTML page that needs no network: the Markdown's own tables, and figures between them.

The page's only script is named by its hash in the content security policy, so that no string of a record can run.
"""

import base64
import hashlib
import html
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tracking import report
from tracking.figures import Parts, Section, escaped, sections
from tracking.records import Record

ASSETS = Path(__file__).parent / "assets"
LONG = 28  # letters of a cell that may not become a narrow column
FOLDED = tuple(report.KINDS[kind] for kind in report.TRAINING)
OUR_TAGS = re.compile(r'</?code>|</a>|<a id="run-\d+">')  # the HTML that `report` writes into its Markdown


def write(
    markdown: str, records: Sequence[Record], parts: Mapping[str, Parts], targets: Mapping[str, Any], path: Path
) -> Path:
    """Write the page `path` whole: `markdown`, as `report.write` makes it of these records, with its figures."""
    figures = sections(records, parts, report.Published.of(targets))
    text = page(markdown, figures)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    return path


def page(markdown: str, figures: Sequence[Section]) -> str:
    """The whole page: some figures before the tables, the others between them and what stands behind the numbers."""
    renderer = _renderer()

    def rendered(tokens: Sequence[Token]) -> str:
        return renderer.renderer.render(tokens, renderer.options, {})

    head, *chapters = _chapters(renderer.parse(markdown))
    tables: list[tuple[str, str, str]] = []
    behind: list[tuple[str, str, str]] = []
    for number, chapter in enumerate(chapters):
        heading = chapter[1]
        chapter[0].attrSet("id", f"part-{number}")
        part = f"part-{number}", _plain(heading), rendered(_folded(chapter, heading.content == report.BEHIND))
        (behind if behind or heading.content in (report.COST, report.BEHIND) else tables).append(part)
    drawn = [(f"figures-{number}", one.title, _drawn(number, one)) for number, one in enumerate(figures)]
    first = [part for part, section in zip(drawn, figures, strict=True) if section.first]
    others = [part for part in drawn if part not in first]
    parts = [*first, *tables, *others, *behind]
    contents = "".join(f'<a href="#{name}">{html.escape(title)}</a>' for name, title, _ in parts)
    inside = "\n".join(text for *_, text in parts)
    title = _plain(head[1]) if head else ""
    return _around(f"<header>{rendered(head)}</header>\n<nav>{contents}</nav>\n<main>{inside}</main>", title)


def _drawn(number: int, section: Section) -> str:
    parts = [f'<h2 id="figures-{number}">{escaped(section.title)}</h2>', _grid(section.figures)]
    if section.more:
        summary = f"<summary>{escaped(section.folded)} ({len(section.more)})</summary>"
        parts.append(f"<details>{summary}{_grid(section.more)}</details>")
    return "".join(parts)


def _grid(figures: Sequence[str]) -> str:
    return f'<div class="figures">{"".join(figures)}</div>' if figures else ""


def _chapters(tokens: Sequence[Token]) -> list[list[Token]]:
    """What stands before the first heading of the second level, then each such heading with what follows it."""
    chapters: list[list[Token]] = [[]]
    for token in tokens:
        if token.type == "heading_open" and token.tag == "h2":
            chapters.append([])
        chapters[-1].append(token)
    return chapters


def _folded(tokens: Sequence[Token], behind: bool) -> list[Token]:
    """The tokens, what few will read folded away under its heading: losses of training, what is behind each number."""
    made: list[Token] = []
    fold = False
    for number, token in enumerate(tokens):
        of_part = token.tag == "h3"
        if of_part and token.type == "heading_open":
            made += [Token("fold_close", "details", -1)] * fold
            fold = behind or tokens[number + 1].content in FOLDED
            made += [Token("fold_open", "details", 1), Token("summary_open", "summary", 1)] * fold
        made.append(token)
        if of_part and token.type == "heading_close":
            made += [Token("summary_close", "summary", -1)] * fold
    return made + [Token("fold_close", "details", -1)] * fold


def _plain(inline: Token) -> str:
    return "".join(child.content for child in inline.children or () if child.type != "html_inline")


def _renderer() -> MarkdownIt:
    renderer = MarkdownIt("commonmark", {"html": True}).enable("table")
    wide = {"table_open": '<div class="scroll" tabindex="0"><table>\n', "table_close": "</table></div>\n"}
    for name, tag in wide.items():
        renderer.add_render_rule(name, lambda self, tokens, idx, options, env, tag=tag: tag)
    renderer.add_render_rule("td_open", _cell)
    for name in ("html_inline", "html_block"):
        renderer.add_render_rule(name, _only_ours)
    return renderer


def _cell(self: Any, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
    """A table's cell; one of many words gets room."""
    if len(tokens[idx + 1].content) > LONG:
        tokens[idx].attrSet("class", "long")
    return self.renderToken(tokens, idx, options, env)


def _only_ours(self: Any, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
    content = tokens[idx].content
    return content if OUR_TAGS.fullmatch(content) else html.escape(content)


def _around(body: str, title: str) -> str:
    style, *scripts = ((ASSETS / name).read_text(encoding="utf-8") for name in ("page.css", "player.js", "page.js"))
    script = "\n".join(scripts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{html.escape(title)}</title><style>{style}</style></head>'
        f"<body>\n{body}\n<script>{script}</script></body></html>\n"
    )
