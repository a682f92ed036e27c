"""The Hessian of a network's loss: products, traces, eigenvalues, densities, and finite differences beside them."""

from .estimates import density, eigenvalues_of, top_eigenvalues, trace
from .finite_differences import ScaleCurvature, curvature_at_scale
from .hessian import GGN, Hessian
from .scaled import Scaled
