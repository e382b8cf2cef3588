"""All that is wrong, said at once: nobody should mend one thing to hear of the next."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from lightning_unlearn.errors import UnlearningError

_ITEM = re.compile(r"\n  \d+\. ")


def separate(text: str) -> tuple[str, ...]:
    """The messages of which `Problems.text` is made."""
    first, *others = _ITEM.split(text)
    return tuple(others) or (first,)


class Problems:
    """Errors of checks that do not depend on each other."""

    def __init__(self) -> None:
        self.found: list[UnlearningError] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """A block whose error is kept for `check`."""
        try:
            yield
        except UnlearningError as error:
            self.found.append(error)

    @property
    def text(self) -> str:
        """Every message once; numbered, if there are several."""
        messages = list(dict.fromkeys(str(error) for error in self.found))
        if len(messages) == 1:
            return messages[0]
        lines = (f"\n  {i}. {text}" for i, text in enumerate(messages, start=1))
        return f"expected no problem, got {len(messages)}:" + "".join(lines)

    def check(self) -> None:
        """Raise one error for all that was noted, of the first one's kind."""
        if len(self.found) == 1:
            raise self.found[0]
        if self.found:
            raise type(self.found[0])(self.text) from self.found[0]
