"""Linear solvers that see a matrix only through its products."""

from lightning_unlearn.solvers.base import Damped as Damped
from lightning_unlearn.solvers.base import Operator as Operator
from lightning_unlearn.solvers.base import Solution as Solution
from lightning_unlearn.solvers.base import Solver as Solver
from lightning_unlearn.solvers.base import Status as Status
from lightning_unlearn.solvers.cg import CG as CG
from lightning_unlearn.solvers.dense import Dense as Dense
from lightning_unlearn.solvers.flexible import FlexibleCG as FlexibleCG
from lightning_unlearn.solvers.lissa import LiSSA as LiSSA
from lightning_unlearn.solvers.nystrom import NystromCG as NystromCG
