"""Mappings are put back as they were, whatever their class makes of what they hold."""

from collections import Counter, OrderedDict, defaultdict

import pytest

from lightning_unlearn.plugin.plain_state import PlainState


class Makes(OrderedDict):
    """As transformers' table of activations: a new object at every look."""

    def __getitem__(self, key):
        return super().__getitem__(key)()


class Holder:
    def __init__(self, table):
        self.table = table


@pytest.mark.parametrize(
    "table",
    [
        Makes(a=list, b=dict),
        OrderedDict(a=int, b=str),
        {"a": int, "b": str},
        Counter(a=1, b=2),
        defaultdict(int, a=1, b=2),
    ],
    ids=lambda table: type(table).__name__,
)
def test_a_mapping_is_left_alone_by_a_look_and_put_back_after_a_change(table):
    before = list(dict.items(table))
    state = PlainState(holder=Holder(table))
    assert state.changed() == state.put_back() == []
    assert list(dict.items(table)) == before
    table["new"] = table.pop("a")
    assert state.changed()
    assert state.put_back() == []
    assert list(dict.items(table)) == before
    assert list(table) == [key for key, _ in before]
