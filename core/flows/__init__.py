"""Published flows over vectors, by name.

    flow = flows.MAF(features=64, transforms=5, hidden_features=(256, 256))
    flow.log_prob(x); flow.sample(100, solver=Jacobi()); x, log_prob = flow.sample_with_log_prob(100)

Arguments have zuko's names. All flows take ``features`` (size of an example), ``context`` (size of what the density is
conditioned on, 0 for nothing) and ``hidden_features`` (widths of the networks' hidden layers). They start as the
standard normal density (those with mixtures near it); ``flow.initialize(x)`` before training makes it the one with the
means and standard deviations of x. `log_prob` is always that of the data as given.
"""

from arflows.core.flows.autoregressive import IAF, MADE, MAF, NSF, MADEMoG, MAFMoG
from arflows.core.flows.base import VectorFlow
from arflows.core.flows.coupling import NSFC, RealNVP

__all__ = ["IAF", "MADE", "MAF", "NSF", "NSFC", "MADEMoG", "MAFMoG", "RealNVP", "VectorFlow"]
