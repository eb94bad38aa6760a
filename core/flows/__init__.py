"""Published flows over vectors, by name.

    flow = flows.MAF(features=64, transforms=5, hidden_features=(256, 256))
    flow.log_prob(x); flow.sample(100, solver=Jacobi()); x, log_prob = flow.sample_with_log_prob(100)

Arguments have zuko's names. All flows take ``features`` (size of an example), ``context`` (size of the context, 0 for
none) and ``hidden_features`` (widths of the networks' hidden layers). Their initial density is the standard normal one
(for mixtures, near it); ``flow.initialize(x)`` before training gives it the means and standard deviations of x.
`log_prob` is always the density of the data as given.
"""

from arflows.core.flows.autoregressive import IAF, MADE, MAF, NSF, MADEMoG, MAFMoG
from arflows.core.flows.base import VectorFlow
from arflows.core.flows.coupling import NSFC, RealNVP

__all__ = ["IAF", "MADE", "MAF", "NSF", "NSFC", "MADEMoG", "MAFMoG", "RealNVP", "VectorFlow"]
