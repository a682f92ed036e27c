"""Eigenvalues, traces and densities of symmetric operators of any origin, without a model, a loss or a plot."""

from .eigenvalues import Eigenvalues
from .lanczos import LOOSE, Eigenpairs, Which, basis_dtype, lanczos
from .operators import Operator, fold_products, fold_shares, inner, length, local_size
from .slq import Density, slq
from .traces import Trace, fold_stderr, hutchinson, mean_and_stderr, t_interval, trace_of_samples
from .warm_start import TopPair, top_pair
