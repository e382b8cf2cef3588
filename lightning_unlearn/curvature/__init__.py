"""Hessian- and Gauss-Newton-vector products, their checks, and the spectrum."""

from lightning_unlearn.curvature.products import PRODUCTS as PRODUCTS
from lightning_unlearn.curvature.spectrum import lanczos_ends as lanczos_ends
