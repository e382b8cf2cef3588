"""Who is in which shard follows from the id and the key, and from nothing else."""

import hashlib
from collections import Counter

import pytest

from lightning_unlearn.errors import ArgumentError
from lightning_unlearn.plugin.data.assignment import KEY, dealt_out, shard_of


class People:
    def __init__(self, user_id):
        self.user_id = user_id

    def __len__(self):
        return len(self.user_id)


def test_it_is_the_keyed_hash_of_the_id():
    digest = hashlib.blake2b(b"alice", key=b"k", digest_size=16).hexdigest()
    assert shard_of("alice", 7, b"k") == int(digest, 16) % 7


def test_it_never_changes():
    # Whoever trained with it must find the same shards after an update.
    assert [shard_of(f"person {i}", 8) for i in range(10)] == PINNED
    assert KEY == b"lightning_unlearn shards"


PINNED = [3, 3, 4, 4, 5, 6, 7, 5, 0, 6]


def test_another_key_deals_anew_and_shards_are_alike_in_size():
    ids = [f"person {i}" for i in range(4000)]
    one = [shard_of(i, 4) for i in ids]
    two = [shard_of(i, 4, b"secret") for i in ids]
    same = sum(a == b for a, b in zip(one, two, strict=True))
    assert 850 < same < 1150  # a quarter, by chance
    assert all(880 < count < 1120 for count in Counter(one).values())


def test_who_else_is_there_does_not_move_anybody():
    ids = [f"person {i % 30}" for i in range(90)]
    all_of_them = dealt_out(People(ids), "user_id", 3, KEY)
    left = [i for i in ids if i != "person 7"]
    without = dealt_out(People(left), "user_id", 3, KEY)
    for j in range(3):
        there = {ids[i] for i in all_of_them[j]} - {"person 7"}
        assert there == {left[i] for i in without[j]}


def test_a_number_and_its_text_are_one_person():
    assert shard_of(7, 100) == shard_of("7", 100)


def test_arguments():
    with pytest.raises(ArgumentError, match="shards to be an integer >= 1, got shar"):
        shard_of("alice", 0)
    with pytest.raises(ArgumentError, match="1 to 64 bytes, got str: keep the one"):
        shard_of("alice", 2, "text")
