"""The report as one HTML page that needs no network: the Markdown's own tables, and figures between them.

The page's only script is named by its hash in the content security policy, so that no string of a record can run.
"""

import base64
import hashlib
import html
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tracking import report
from tracking.figures import Parts, Section, escaped, sections
from tracking.records import Record

ASSETS = Path(__file__).parent / "assets"
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
    """The whole page; figures stand before what stands behind the numbers."""
    renderer = _renderer()
    tokens = renderer.parse(markdown)
    headings = [token for token in tokens if token.type == "heading_open" and token.tag == "h2"]
    for number, token in enumerate(headings):
        token.attrSet("id", f"part-{number}")
    titles = [(f"part-{n}", _plain(tokens[tokens.index(token) + 1])) for n, token in enumerate(headings)]
    cut = next((n for n, token in enumerate(tokens) if token in headings and _behind(tokens[n + 1])), len(tokens))
    rendered = [renderer.renderer.render(some, renderer.options, {}) for some in (tokens[:cut], tokens[cut:])]
    links = [(f"figures-{n}", section.title) for n, section in enumerate(figures)]
    before = sum(1 for token in tokens[:cut] if token in headings)
    contents = "".join(f'<a href="#{a}">{html.escape(b)}</a>' for a, b in titles[:before] + links + titles[before:])
    title = _plain(tokens[1]) if tokens else ""
    body = f"<nav>{contents}</nav>{rendered[0]}{''.join(_sections(figures))}{rendered[1]}"
    return _around(body, title)


def _sections(figures: Sequence[Section]) -> Iterable[str]:
    for number, section in enumerate(figures):
        inside = "".join(section.figures)
        yield f'<h2 id="figures-{number}">{escaped(section.title)}</h2><div class="figures">{inside}</div>'


def _behind(heading: Token) -> bool:
    return heading.content == report.BEHIND


def _plain(inline: Token) -> str:
    return "".join(child.content for child in inline.children or () if child.type != "html_inline")


def _renderer() -> MarkdownIt:
    renderer = MarkdownIt("commonmark", {"html": True}).enable("table")
    wide = {"table_open": '<div class="scroll" tabindex="0"><table>\n', "table_close": "</table></div>\n"}
    for name, tag in wide.items():
        renderer.add_render_rule(name, lambda self, tokens, idx, options, env, tag=tag: tag)
    for name in ("html_inline", "html_block"):
        renderer.add_render_rule(name, _only_ours)
    return renderer


def _only_ours(self: Any, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
    content = tokens[idx].content
    return content if OUR_TAGS.fullmatch(content) else html.escape(content)


def _around(body: str, title: str) -> str:
    style, script = ((ASSETS / name).read_text(encoding="utf-8") for name in ("page.css", "player.js"))
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
