"""Draw the text of a model card as HTML that fetches nothing and runs nothing."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_core import StateCore
from markdown_it.token import Token

MARKS = ("heading", "list", "table", "fence", "blockquote", "hr", "emphasis", "backticks", "escape", "newline")
DEEPEST = 6  # HTML has no heading below h6


def card(markdown: str) -> str:
    """Return a model card as HTML: headings, paragraphs, lists, tables, bold and code; all else is text.

    Every text of it is escaped; it has no links and no images, so that nothing in it can be fetched.
    """
    return str(_parser().render(markdown))


@cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("zero").enable(list(MARKS))
    parser.core.ruler.push("fit_page", _fit_page)
    parser.add_render_rule("table_open", _open_table)
    parser.add_render_rule("table_close", _close_table)
    return parser


def _fit_page(state: StateCore) -> None:
    """Put the card's headings below the page's two levels; drop styles, which the page's policy refuses."""
    for token in state.tokens:
        if token.type.startswith("heading"):
            token.tag = f"h{min(int(token.tag[1:]) + 2, DEEPEST)}"
        token.attrs.pop("style", None)


def _open_table(renderer: RendererHTML, tokens: Sequence[Token], index: int, options: Any, _: object) -> str:
    region = '<div class="scroll" tabindex="0" role="region" aria-label="Figures">'
    return region + renderer.renderToken(tokens, index, options, {})


def _close_table(renderer: RendererHTML, tokens: Sequence[Token], index: int, options: Any, _: object) -> str:
    return renderer.renderToken(tokens, index, options, {}) + "</div>\n"
