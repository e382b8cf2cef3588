"""The callback's options: validated at birth, before any data is seen."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from functools import update_wrapper
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec

from lightning_unlearn._base import validate
from lightning_unlearn._base.files import is_remote
from lightning_unlearn._base.text import is_unicode
from lightning_unlearn.errors import ArgumentError, SetupError
from lightning_unlearn.guarantee.claims import Terms
from lightning_unlearn.guarantee.gaussian import check_delta
from lightning_unlearn.guarantee.kinds import (
    Guarantee,
    NewtonStep,
    NormBall,
    PrivateTraining,
    StronglyConvex,
)
from lightning_unlearn.solvers.base import Solver
from lightning_unlearn.step.network.products import PRODUCTS

Curvature = Literal["hessian", "hessian_forward", "gauss_newton", "central_difference"]
_EXCLUDING = ("exclusions=", "exclusions_key=")
_NAMES = {"prepared": "rows.store", "state_file": "solve.state"}  # as in the examples
Precision = Literal["auto", "float32", "float64"]


@dataclass(frozen=True)
class Options:
    """Those of `UnlearningCallback`, which documents each; written here once."""

    epsilon: float = 1.0
    delta: float = 1e-5
    _: KW_ONLY
    max_norm: float | None = None
    damping: float | Literal["auto"] = "auto"
    guarantee: Guarantee | Literal["auto"] = "auto"
    solver: Solver | Literal["auto"] = "auto"
    curvature: Curvature = "hessian"
    l2: float | Literal["auto"] = "auto"
    tolerance: float | Literal["auto"] = "auto"
    releases: int | None = None
    noise_std: float | None = None
    accept_noise: bool = False
    solve_precision: Precision = "auto"
    batch_size: int | None = None
    graph_memory: int | Literal["auto"] = "auto"
    low_memory: bool | Literal["auto"] = "auto"
    ledger: str | Path | None = None
    ledger_indices: bool = False
    log_gradient: bool = False
    prepared: str | Path | None = None
    state_file: str | Path | None = None
    state_every: int = 10
    noise_seed: int | None = None
    retrain: Callable[[Any], Any] | None = field(
        default=None, compare=False, repr=False
    )
    stages: str | Path | None = None
    exclusions: str | Path | None = None
    exclusions_key: str | Path | None = None
    exclude_by: str | None = None
    private: PrivateTraining | None = None
    cover_served: int | None = None

    def __post_init__(self) -> None:
        validate.positive(epsilon=self.epsilon)
        if self.tolerance != "auto":
            validate.positive(tolerance=self.tolerance)
        validate.one_of((True, False), accept_noise=self.accept_noise)
        check_delta(self.delta)
        if self.max_norm is not None:
            validate.positive(max_norm=self.max_norm)
        if self.damping != "auto":
            validate.non_negative(damping=self.damping)
        if self.l2 != "auto":
            validate.non_negative(l2=self.l2)
        if self.releases is not None:
            validate.count(releases=self.releases)
        if self.noise_std is not None:
            validate.non_negative(noise_std=self.noise_std)
        if self.batch_size is not None:
            validate.count(batch_size=self.batch_size)
        if self.graph_memory != "auto":
            validate.count(minimum=0, graph_memory=self.graph_memory)
        validate.count(state_every=self.state_every)
        if self.noise_seed is not None:
            validate.count(minimum=0, noise_seed=self.noise_seed)
        validate.one_of(PRODUCTS, curvature=self.curvature)
        validate.one_of((True, False, "auto"), low_memory=self.low_memory)
        validate.one_of(
            ("auto", "float32", "float64"), solve_precision=self.solve_precision
        )
        if self.solver != "auto" and not hasattr(self.solver, "solve"):
            raise ArgumentError(
                "expected solver to be 'auto', FlexibleCG(...), NystromCG(...), "
                f"CG(...), LiSSA(...) or Dense(...), got {self.solver!r}"
            )
        if self.retrain is not None and not callable(self.retrain):
            raise ArgumentError(
                "expected retrain to be a function that makes a training, got "
                f"{type(self.retrain).__name__}: def make_training(data): ... return "
                "trainer, module, loader"
            )
        if self.private is not None:
            self._check_private()
        if self.cover_served is not None:
            self._check_cover()
        known = (StronglyConvex, NormBall, NewtonStep)
        if self.guarantee != "auto" and not isinstance(self.guarantee, known):
            raise ArgumentError(
                "expected guarantee to be 'auto', StronglyConvex(...), NormBall() or "
                f"NewtonStep(...), got {self.guarantee!r}"
            )
        alone = (self.exclusions is None) != (self.exclusions_key is None)
        if alone or (self.exclude_by is not None and self.exclusions is None):
            raise ArgumentError(
                "expected exclusions= and exclusions_key= together, and exclude_by= "
                f"with them, got {self.exclusions!r}, {self.exclusions_key!r} and "
                f"{self.exclude_by!r}: lightning-unlearn exclusions new LIST "
                "--key-file KEY makes both files"
            )

        # Wherever the process goes later. Some are one file by whatever link.
        linked = ("ledger", "exclusions")
        for name in (*linked, "exclusions_key", "prepared", "state_file", "stages"):
            path = getattr(self, name)
            if path is not None:
                if is_remote(path):
                    raise ArgumentError(
                        f"expected {name}= on a disk of this machine, got {path}: it "
                        "is locked, renamed and linked, which no remote store can do"
                    )
                if name in _NAMES and Path(path).is_dir():
                    raise ArgumentError(
                        f"expected {name}= to be a file, got the folder {path}: name a "
                        f"file in it, {name}={Path(path) / _NAMES[name]}"
                    )
                own = Path(path).resolve() if name in linked else Path(path).absolute()
                object.__setattr__(self, name, own)

    def _check_private(self) -> None:
        given = {
            "max_norm": self.max_norm,
            "noise_std": self.noise_std,
            "noise_seed": self.noise_seed,
            "releases": self.releases,
        }
        other = [f"{name}=" for name, value in given.items() if value is not None]
        if not isinstance(self.private, PrivateTraining) or other:
            raise ArgumentError(
                "expected private=PrivateTraining(...) without "
                f"{', '.join(f'{name}=' for name in given)}, got {self.private!r} with "
                f"{', '.join(other) or 'none of them'}: a private training has its own "
                "noise, and a request adds none"
            )

    def _check_cover(self) -> None:
        validate.count(cover_served=self.cover_served)
        if self.releases is None or self.releases < 2:
            raise ArgumentError(
                "expected releases= of at least 2 with cover_served=, got "
                f"{self.releases}: the trained head is the first release, each request "
                "makes one more, and the noise of all is scaled for their number"
            )
        given = {
            "noise_std": self.noise_std,
            "noise_seed": self.noise_seed,
            "private": self.private,
            "max_norm": self.max_norm,
        }
        other = [f"{name}=" for name, value in given.items() if value is not None]
        if not isinstance(self.guarantee, StronglyConvex) and self.guarantee != "auto":
            other.append("guarantee=")
        if other:
            raise ArgumentError(
                f"expected cover_served= without {', '.join(other)}, got both: the "
                "noise of every head that is served follows from epsilon, delta and "
                "releases, and from nothing else"
            )

    @property
    def ledger_path(self) -> Path | None:
        """The ledger's file."""
        return None if self.ledger is None else Path(self.ledger)

    @property
    def prepared_path(self) -> Path | None:
        """The file of what `prepare` stores."""
        return None if self.prepared is None else Path(self.prepared)

    @property
    def stages_path(self) -> Path | None:
        """The folder of what stages ended with."""
        return None if self.stages is None else Path(self.stages)

    @property
    def exclusion_paths(self) -> tuple[Path, Path] | None:
        """The exclusion list and its key."""
        if self.exclusions is None or self.exclusions_key is None:
            return None
        return Path(self.exclusions), Path(self.exclusions_key)

    @property
    def state_path(self) -> Path | None:
        """The file of where a solve stands."""
        return None if self.state_file is None else Path(self.state_file)

    def check_paths(
        self, save_to: Path | None, ckpt_path: str | None, resume_from: Path | None
    ) -> None:
        """Raise `SetupError` if a secret file, which is deleted, is another one too."""
        others = {
            "save_to=": save_to,
            "ledger=": self.ledger_path,
            "ckpt_path=": ckpt_path,
            "prepared=": self.prepared_path,
            **dict(zip(_EXCLUDING, self.exclusion_paths or (), strict=False)),
        }
        secret = {
            "prepared=": self.prepared_path,
            "state_file=": self.state_path or resume_from,
        }
        paths = {**others, **secret}
        for name, path in paths.items():
            if not is_unicode(str(path)):
                raise SetupError(
                    f"expected a path of valid Unicode for {name}, got {str(path)!a}: "
                    "records could not be read again; choose another name or folder"
                )
        for name, own in secret.items():
            if own and not own.parent.is_dir():
                raise SetupError(
                    f"expected the folder of {name}{own} to exist, got none at "
                    f"{own.parent}: create it"
                )
            for other, path in others.items():
                same = own and path and Path(path).resolve() == own.resolve()
                if same and name != other:
                    raise SetupError(
                        f"expected a file of its own for {name}, got {own}, which is "
                        f"{other} too: it would be deleted after the request"
                    )

    @property
    def terms(self) -> Terms:
        """What was agreed before the data was seen."""
        return Terms(
            epsilon=self.epsilon,
            delta=self.delta,
            noise_std=self.noise_std,
            seeded=self.noise_seed is not None,
            releases=self.releases,
        )


# Named where a call does not fit.
Options.__init__.__qualname__ = "UnlearningCallback.__init__"

_Parameters = ParamSpec("_Parameters")


def with_parameters_of(
    like: Callable[_Parameters, object],
) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, _Parameters], None]]:
    """Give an ``__init__`` the parameters of a class, for people and for programs."""

    def decorate(init: Callable[..., None]) -> Any:
        own = init.__doc__
        decorated: Any = update_wrapper(init, like.__init__)
        decorated.__doc__ = own
        return decorated

    return decorate
