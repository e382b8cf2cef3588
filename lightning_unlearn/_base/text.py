"""Words for people, of texts and numbers that may come from anyone."""

import textwrap
from collections.abc import Collection, Sequence

_WIDTH = 78


def printable(text: str) -> str:
    r"""Escapes what could act on a terminal, or turn the direction of a text.

    Example:
        >>> printable("a\u202eb\x1b[31m")
        'a\\u202eb\\x1b[31m'
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def is_unicode(text: str) -> bool:
    r"""Whether a text can be written down: it has no lone surrogate.

    Example:
        >>> is_unicode("caf\u00e9"), is_unicode("caf\udce9")
        (True, False)
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def one_line(error: Exception, plain: tuple[type[Exception], ...], hint: str) -> str:
    """An error as one line; with its kind and a hint unless its text says enough.

    Args:
        error: The error.
        plain: Kinds whose text says enough.
        hint: How to see more.

    Example:
        >>> one_line(ValueError("two  words"), (), "--debug")
        'ValueError: two words (--debug)'
    """
    text = printable(" ".join(str(error).split()))
    if isinstance(error, plain):
        return text
    return f"{type(error).__name__}: {text} ({hint})"


def number(value: float) -> str:
    """Four digits, and no zeros in the exponent.

    Example:
        >>> number(1e-05), number(0.25)
        ('1e-5', '0.25')
    """
    return f"{value:.4g}".replace("e-0", "e-").replace("e+0", "e+")


def some(items: Sequence[object], most: int = 5) -> str:
    """The first few of a list, for a message.

    Example:
        >>> some(["a", "b"]), some(range(7), most=2)
        ('a, b', '0, 1 and 5 more')
    """
    shown = ", ".join(map(str, items[:most]))
    return shown + (f" and {len(items) - most} more" if len(items) > most else "")


def columns(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Lines in which the cells of equally long rows stand under each other.

    Args:
        rows: The head first, if there is one.
        right: Columns that are set to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def point(text: str, indent: int) -> list[str]:
    """Lines of one point of a list, for a terminal; names and paths stay whole.

    Example:
        >>> point("freeze it before training", 2)
        ['  - freeze it before training']
    """
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=" " * indent + "- ",
        subsequent_indent=" " * (indent + 2),
        break_on_hyphens=False,
        break_long_words=False,
    )


def positions_text(positions: Sequence[int], most: int = 10) -> str:
    """Positions in words, the first of them if they are many.

    Example:
        >>> positions_text([3]), positions_text(range(5), most=2)
        ('position 3', 'positions 0, 1 and 3 more')
    """
    return f"position{'s' if len(positions) > 1 else ''} {some(positions, most)}"
