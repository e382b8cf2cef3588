"""Words for people, of texts and numbers that may come from anyone."""


def printable(text: str) -> str:
    r"""Escapes what could act on a terminal, or turn the direction of a text.

    Example:
        >>> printable("a\u202eb\x1b[31m")
        'a\\u202eb\\x1b[31m'
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def number(value: float) -> str:
    """Four digits, and no zeros in the exponent.

    Example:
        >>> number(1e-05), number(0.25)
        ('1e-5', '0.25')
    """
    return f"{value:.4g}".replace("e-0", "e-").replace("e+0", "e+")
