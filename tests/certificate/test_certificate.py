import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from lightning_unlearn._base.strict_json import canonical_digest as _digest
from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.certificate.verification import verify_text
from lightning_unlearn.errors import ArgumentError, CertificateError, UnlearningError
from lightning_unlearn.guarantee import claims
from lightning_unlearn.guarantee.claims import Bound, Grade, NoiseSource
from lightning_unlearn.guarantee.constants import Constant, Origin
from tests.helpers.certificates import (
    BALL,
    NOTHING,
    constant,
    convex_constants,
    make,
    noise_std,
    part,
)

GOLDEN = sorted(Path(__file__).parent.glob("golden/*.json"))


def test_round_trip_is_exact():
    certificate = make()
    again = Certificate.from_json(certificate.to_json())
    assert again == certificate
    again.verify()


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.name)
def test_old_certificates_still_load_and_verify(path):
    certificate = Certificate.from_json(path.read_text())
    certificate.verify()
    assert certificate.grade.value in path.name


def test_there_is_a_golden_file_of_every_grade():
    assert {g.value for g in Grade} <= {p.name.split(".")[1] for p in GOLDEN}


@pytest.mark.parametrize(
    ("changes", "grade"),
    [
        ({}, "certified"),
        ({"public_parts": ()}, "certified"),
        ({"constants": convex_constants(origin=Origin.ASSUMED)}, "conditional"),
        ({"public_parts": (part(origin=Origin.ASSUMED),)}, "conditional"),
        ({"bound": Bound.NORM_BALL, "constants": BALL}, "vacuous"),
        ({**NOTHING, "noise_by_hand": True}, "none"),
        ({**NOTHING, "noise_source": NoiseSource.SEEDED}, "none"),
        ({**NOTHING, "unscrubbed": ("bn.running_mean",)}, "none"),
    ],
)
def test_only_the_true_grade_verifies(changes, grade):
    make(**{**changes, "grade": Grade(grade)}).verify()
    for other in Grade:
        if other.value != grade and (other is Grade.NONE) == (grade == "none"):
            with pytest.raises(CertificateError, match="states grade="):
                make(**{**changes, "grade": other}).verify()


def test_newton_bound_is_capped_and_then_vacuous():
    def constants(M):
        values = {"hessian_lipschitz": M, "damping": 0.0, "lambda_min": 1.0,
                  "retrained_gradient_norm": 0.0, "residual": 0.0}  # fmt: skip
        enforced = ("damping", "residual")
        listed = [
            constant(Bound.NEWTON_STEP, k, v)
            if k in enforced
            else Constant(name=k, value=v, origin=Origin.ASSUMED, reason="r")
            for k, v in values.items()
        ]
        return (*BALL, *listed)

    large, small = constants(1.0), constants(1e-4)
    assert claims.sensitivity_upper(Bound.NEWTON_STEP, large) == 40.0
    assert claims.sensitivity_upper(Bound.NEWTON_STEP, small) == pytest.approx(0.08)
    make(bound=Bound.NEWTON_STEP, constants=large, grade=Grade.VACUOUS).verify()
    make(bound=Bound.NEWTON_STEP, constants=small, grade=Grade.CONDITIONAL).verify()


def numeric_fields(plain, path=()):
    for key, value in plain.items() if isinstance(plain, dict) else enumerate(plain):
        if isinstance(value, (dict, list)):
            yield from numeric_fields(value, (*path, key))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield (*path, key)


def changed(text, path, factor):
    plain = json.loads(text)
    place = plain
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = (place[path[-1]] or 1) * factor
    return plain


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda p: p.name)
def test_any_number_changed_by_hand_is_found(golden):
    text = golden.read_text()
    paths = list(numeric_fields(json.loads(text)))
    assert len(paths) >= 6
    for path in paths:
        for factor in (2, 0.999999):
            with pytest.raises(CertificateError):
                Certificate.from_json(json.dumps(changed(text, path, factor))).verify()


@pytest.mark.parametrize(
    "name",
    ["epsilon", "delta", "noise_std", "sensitivity", "composed_epsilon"],
)
def test_a_forger_who_recomputes_the_digest_is_found_too(name):
    plain = changed(make().to_json(), (name,), 0.99)
    plain.pop("digest")
    forged = json.dumps({**plain, "digest": _digest(plain)})
    with pytest.raises(CertificateError, match="its constants give"):
        Certificate.from_json(forged).verify()


def test_an_endless_sensitivity_and_a_first_release_below_its_grade_are_found():
    endless = convex_constants(tolerance=1e300, l2=1e-300)
    with pytest.raises(CertificateError, match="sensitivity"):
        dataclasses.replace(make(), constants=endless).verify()
    with pytest.raises(CertificateError, match="composed_grade"):
        make(composed_grade=Grade.VACUOUS).verify()


@pytest.mark.parametrize("origin", [Origin.MEASURED, Origin.ESTIMATED])
def test_noise_never_rests_on_what_was_measured(origin):
    with pytest.raises(CertificateError, match="noise would depend on the data"):
        make(constants=convex_constants(origin=origin), grade=Grade.CERTIFIED).verify()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"release_mus": (-1.0,)}, "expected release_mus"),
        ({"weights_digest": ""}, "that are not empty"),
        ({"releases": 0}, "expected releases"),
    ],
)
def test_impossible_fields(changes, message):
    with pytest.raises((CertificateError, ArgumentError), match=message):
        make(**{"releases": None, **changes}).verify()


def test_numbers_too_large_for_a_float_are_refused():
    text = make().to_json().replace('"n_parameters": 650', '"n_parameters": 1e400')
    with pytest.raises(CertificateError, match="expected finite numbers"):
        Certificate.from_json(text)


def test_deltas_beyond_the_sampler_are_refused():
    with pytest.raises(ArgumentError, match="expected delta >= 1e-12"):
        noise_std(1.0, 1e-13, 1.0)


def test_a_release_beyond_the_announced_budget_does_not_verify():
    make(releases=2, release=1).verify()
    with pytest.raises(CertificateError, match="release 3 of 2 announced"):
        make(releases=2, release=3, composed_epsilon=None).verify()


def test_missing_and_repeated_constants():
    with pytest.raises(CertificateError, match="needs the constants strong_convexity"):
        claims.sensitivity_upper(Bound.STRONGLY_CONVEX, convex_constants()[:1])
    with pytest.raises(CertificateError, match="tolerance is listed twice"):
        claims.sensitivity_upper(Bound.STRONGLY_CONVEX, convex_constants() * 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a certificate as JSON"),
        ("[]", "expected a certificate as a JSON object, got list"),
        ('{"schema": 99}', "expected a certificate of schema 1 to 2, got 99"),
        (
            '{"schema": 1, "epsilon": NaN}',
            "expected finite numbers in a certificate, got NaN",
        ),
        ('{"schema": 1, "schema": 1}', "a field is written twice"),
        ("[" * 100_000, "expected a certificate as JSON"),
    ],
)
def test_malformed_text(text, message):
    with pytest.raises(CertificateError, match=message):
        Certificate.from_json(text)


def test_unknown_and_wrong_fields():
    wrong = (
        ({"extra": 1}, "expected the fields .*'bound'.* in a certificate, got .*extra"),
        ({"n_forget": "fifty"}, "expected n_forget in a certificate to be int, got 'f"),
        ({"n_forget": True}, "expected n_forget in a certificate to be int, got True"),
        ({"epsilon": "1"}, "expected epsilon in a certificate to be float, got '1'"),
        ({"grade": "sure"}, "expected grade in a certificate to be Grade, got 'sure'"),
        ({"constants": 3}, "expected constants in a certificate to be tuple.*, got 3"),
        ({"warnings": [3]}, "expected warnings in a certificate to be str, got 3"),
        ({"reference": "\ud800"}, "expected reference in a certificate to be str"),
        ({"versions": [["torch"]]}, "expected versions in a certificate to be tuple"),
        ({"n_forget": -1}, "malformed certificate: expected n_forget"),
    )
    for change, message in wrong:
        plain = json.loads(make().to_json())
        plain.pop("digest")
        plain.update(change)
        text = json.dumps({**plain, "digest": _digest(plain)})
        with pytest.raises(CertificateError, match=message):
            Certificate.from_json(text)


def test_constants_are_validated_at_birth():
    with pytest.raises(ArgumentError, match="expected mu to be a finite number"):
        Constant(name="mu", value=math.nan, origin=Origin.PROVED, reason="r")
    with pytest.raises(CertificateError, match="mu: say where the value 1.0 comes"):
        Constant(name="mu", value=1.0, origin=Origin.PROVED, reason=" ")
    with pytest.raises(CertificateError, match="name to be an identifier"):
        Constant(name="m u", value=1.0, origin=Origin.PROVED, reason="r")


def test_epsilon_and_grade_must_agree():
    with pytest.raises(CertificateError, match="None exactly for grade none"):
        make(grade=Grade.NONE)
    with pytest.raises(CertificateError, match="None exactly for grade none"):
        make(epsilon=None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().epsilon = 0.1


def test_text_fits_a_screen_and_never_prints_epsilon_alone():
    vacuous = str(make(bound=Bound.NORM_BALL, constants=BALL, grade=Grade.VACUOUS))
    none = str(make(**NOTHING, noise_by_hand=True))
    certified = str(make())
    for text in (vacuous, none, certified):
        assert max(map(len, text.splitlines())) <= 78
        assert len(text.splitlines()) <= 48
    for line in vacuous.splitlines():
        assert "epsilon" not in line or "vacuous" in line.lower()
    assert "epsilon" not in none
    assert "CERTIFIED: indistinguishable from retraining without these 50" in certified


WEIRD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False),
    st.text(), st.lists(st.integers(), max_size=2), st.just({}),
    st.sampled_from([1e200, 1e-320, -1, 2**70, "\ud800", "\x1b[2J", "certified"]),
)  # fmt: skip


def every_place(plain, path=()):
    yield path
    if isinstance(plain, dict):
        for key in plain:
            yield from every_place(plain[key], (*path, key))
    elif isinstance(plain, list):
        for i in range(len(plain)):
            yield from every_place(plain[i], (*path, i))


PLACES = [p for p in every_place(json.loads(make().to_json())) if p]


@settings(max_examples=400)
@given(place=st.sampled_from(PLACES), value=WEIRD, seal=st.booleans())
def test_mutated_certificates_raise_only_named_errors(place, value, seal):
    plain = json.loads(make().to_json())
    target = plain
    for key in place[:-1]:
        target = target[key]
    if target[place[-1]] == value:
        return
    target[place[-1]] = value
    if seal:
        plain.pop("digest", None)
        try:
            plain["digest"] = _digest(plain)
        except ValueError:  # infinity
            return
    text = json.dumps(plain)
    findings = verify_text(text)
    try:
        printed = str(Certificate.from_json(text))
    except UnlearningError:
        assert any(f.holds is False for f in findings)
    else:
        assert all(c.isprintable() or c == "\n" for c in printed)
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not seal or (numeric and place[0] in ("epsilon", "delta", "noise_std")):
        assert any(f.holds is False for f in findings)


@settings(max_examples=200)
@given(st.text(max_size=200))
def test_any_text_raises_only_named_errors(text):
    assert any(f.holds is False for f in verify_text(text))
