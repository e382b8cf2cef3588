"""Linear solvers that see a matrix only through its products."""

from lightning_unlearn.solvers.base import (
    Damped as Damped,
    Operator as Operator,
    Solution as Solution,
    Solver as Solver,
    Status as Status,
)
from lightning_unlearn.solvers.cg import CG as CG
from lightning_unlearn.solvers.dense import Dense as Dense
from lightning_unlearn.solvers.flexible import FlexibleCG as FlexibleCG
from lightning_unlearn.solvers.lissa import LiSSA as LiSSA
from lightning_unlearn.solvers.nystrom import NystromCG as NystromCG
