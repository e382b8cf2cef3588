"""What a notebook shows of an object: HTML without scripts, on dark and light pages.

Colours are those of the page around it: nothing here sets one but a grey that can be
told from black and from white. Every text is escaped here, and nowhere else.
"""

import html
from collections.abc import Iterable, Sequence

from lightning_unlearn._base.text import printable

_LINE = "1px solid rgba(128, 128, 128, 0.4)"
_CELL = (
    "padding: 0.15em 0.8em 0.15em 0; text-align: {align}; vertical-align: top; "
    f"border: none; border-bottom: {_LINE}; background: transparent; color: inherit; "
    "max-width: 60ch; white-space: normal"
)


def box(headline: str, *parts: str) -> str:
    """A headline and what stands below it.

    Args:
        headline: Plain text.
        parts: HTML that functions of this file made.

    Example:
        >>> "&lt;b&gt;" in box("<b>", listed(["a & b"]))
        True
    """
    style = "color: inherit; background: transparent; max-width: 100ch"
    return (
        f'<div style="{style}"><p style="margin: 0.4em 0"><strong>{escaped(headline)}'
        f"</strong></p>{''.join(parts)}</div>"
    )


def table(
    rows: Iterable[Sequence[str]], head: Sequence[str] = (), ends: int = 1
) -> str:
    """Plain texts in columns.

    Args:
        rows: Of one length.
        head: Names of the columns, or none.
        ends: How many of the first columns are words; if there is a head, numbers are
            set to the right in the others.
    """

    def line(cells: Sequence[str], tag: str) -> str:
        made = []
        for i, cell in enumerate(cells):
            style = _CELL.format(align="right" if head and i >= ends else "left")
            made.append(f'<{tag} style="{style}">{escaped(cell)}</{tag}>')
        return f'<tr style="background: transparent">{"".join(made)}</tr>'

    top = f"<thead>{line(head, 'th')}</thead>" if head else ""
    body = "".join(line(cells, "td") for cells in rows)
    style = "border-collapse: collapse; margin: 0.4em 0; color: inherit"
    return f'<table style="{style}">{top}<tbody>{body}</tbody></table>'


def listed(texts: Iterable[str]) -> str:
    """Plain texts as points; nothing if there are none."""
    points = "".join(f"<li>{escaped(text)}</li>" for text in texts)
    return f'<ul style="margin: 0.4em 0">{points}</ul>' if points else ""


def folded(title: str, *parts: str) -> str:
    """HTML of this file that opens when its title is clicked; nothing for nothing."""
    inside = "".join(parts)
    if not inside:
        return ""
    return f"<details><summary>{escaped(title)}</summary>{inside}</details>"


def escaped(text: str) -> str:
    """A text that anyone may have written, as HTML shows it."""
    return html.escape(printable(text))
