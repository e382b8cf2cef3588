import pytest

from lightning_unlearn import CG, Dense, FlexibleCG, LiSSA, NystromCG, prepare
from lightning_unlearn.guarantee.claims import Grade
from tests.helpers.nets import (
    MLP,
    HeadNet,
    digits,
    fitted,
)

FORGET = [0, 5, 77]


SOLVERS = {
    "auto": "auto",
    "flexible": FlexibleCG(),
    "nystrom": NystromCG(),
    "cg": CG(rtol=1e-3),
    "dense": Dense(),
    "lissa": LiSSA(scale=15.0, steps=1500, runs=1, batch_size=0),
}


@pytest.mark.parametrize("prepared", [False, True], ids=["cold", "prepared"])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("make", [HeadNet, MLP])
def test_no_way_to_solve_changes_a_claim(make, solver, prepared):
    # The grade, and the sensitivity with all it rests on, follow from the options.
    expected = {
        HeadNet: (Grade.CERTIFIED, 2 * 1e-4 / 1e-2, ("tolerance", "strong_convexity")),
        MLP: (Grade.VACUOUS, 2 * 5.0, ("max_norm",)),
    }
    options = {"solver": SOLVERS[solver], "l2": 1e-2, "tolerance": 1e-4}
    if make is MLP:
        options |= {"max_norm": 5.0, "accept_noise": True, "damping": 3.0}
    _, fit_trainer, _, _ = fitted(make(), digits(300), max_epochs=1, **options)
    if prepared:
        prepare(fit_trainer)
    certificate = fit_trainer.unlearn(FORGET).certificate
    grade, sensitivity, names = expected[make]
    assert certificate.grade is grade
    assert certificate.sensitivity == pytest.approx(sensitivity, rel=1e-12)
    constants = {c.name: c.value for c in certificate.constants}
    assert [constants[name] for name in names] == [
        {"tolerance": 1e-4, "strong_convexity": 1e-2, "max_norm": 5.0}[n] for n in names
    ]
    certificate.verify()
