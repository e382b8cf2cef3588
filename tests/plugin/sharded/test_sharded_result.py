"""What the result of a request to shards says is no more than its certificates do."""

from dataclasses import replace

import pytest

from lightning_unlearn.guarantee.claims import Grade
from tests.plugin.sharded.test_sharded_classifier import fitted, one_of


@pytest.mark.parametrize(
    ("grade", "epsilon"),
    [(Grade.EXACT, 0), (Grade.CONDITIONAL, 0), (Grade.NONE, None)],
)
def test_it_is_worth_the_least_of_its_certificates(grade, epsilon):
    net, dataset = fitted()
    people = [one_of(net, dataset, j) for j in (0, 2)]
    result = net.unlearn(people, by="user_id")
    assert (result.touched, result.grade) == ((0, 2), Grade.EXACT)
    two = result.results[2]
    stated = {} if epsilon == 0 else {"epsilon": None, "delta": None}
    stated |= {} if epsilon == 0 else {"release_mus": (), "composed_epsilon": None}
    own = replace(two.certificate, grade=grade, composed_grade=None, **stated)
    less = replace(two, certificate=own)
    result = replace(result, results={0: result.results[0], 2: less})
    assert (result.grade, result.epsilon, result.delta) == (grade, epsilon, epsilon)
    first = str(result).splitlines()[0]
    assert first.startswith(f"{grade.name}: 2 of 3 shards")
    assert ("see the certificate of shard 2" in first) == (grade is not Grade.EXACT)
