"""Folding of waveforms to rows, and bijections over the rows."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from arflows.core.bijections import Autoregressive, Bijection
from arflows.core.conditioners.wavenet import WaveNet


class Folded(Bijection):
    """Composition of bijections over the rows of a folded waveform.

    Sample t goes to row t mod h of column ⌊t / h⌋; Ping et al. 2020, section 3.1. An incomplete last column is padded
    with zeros; the context must then contain the sample counts (see `WaveNet`) so that the padding stays zero.

    >>> Folded(4, []).fold(torch.arange(6.0)[None])
    tensor([[[0., 4.],
             [1., 5.],
             [2., 0.],
             [3., 0.]]])

    Args:
        height: samples per column, h.
        bijections: bijections over rows, (batch, h, columns), in the order data → latent.
    """

    def __init__(self, height: int, bijections: list[Autoregressive]) -> None:
        super().__init__()
        self.height = height
        self.bijections = nn.ModuleList(bijections)

    @property
    def flows(self) -> list[Autoregressive]:
        """Bijections over rows, in the order data → latent."""
        return list(self.bijections)  # type: ignore[arg-type]

    @property
    def networks(self) -> list[WaveNet]:
        """Conditioners of the bijections."""
        return [flow.conditioner for flow in self.flows]  # type: ignore[misc]

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map waveforms to latents, both (batch, samples)."""
        z, log_derivative = self.transform(x, context)
        return z, log_derivative.sum(1)

    def transform(
        self, x: Float[Tensor, "batch samples"], context: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch samples"], Float[Tensor, "batch samples"]]:
        """Map waveforms to latents, and return the log-derivative of each sample's map."""
        rows = self.fold(x)
        log_derivative = torch.zeros_like(rows)
        for flow in self.flows:
            order, rank = flow.order, flow.rank
            assert order is not None
            assert rank is not None
            mapped, terms = flow.transform(rows.index_select(1, order), context)
            rows = mapped.index_select(1, rank)
            log_derivative = log_derivative + terms.index_select(1, rank)
        return self.unfold(rows, x.shape[1]), self.unfold(log_derivative, x.shape[1])

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map latents to waveforms with the active solver."""
        rows = self.fold(z)
        log_det = rows.new_zeros(z.shape[0])
        for flow in reversed(self.flows):
            rows, term = flow.inverse(rows, context)
            log_det = log_det + term
        return self.unfold(rows, z.shape[1]), log_det

    def fold(self, waveform: Tensor) -> Float[Tensor, "batch rows columns"]:
        """Fold a waveform to rows."""
        padding = -waveform.shape[1] % self.height
        return F.pad(waveform, (0, padding)).unflatten(1, (-1, self.height)).mT

    def unfold(self, rows: Tensor, samples: int) -> Float[Tensor, "batch samples"]:
        """Unfold rows to a waveform of the given number of samples."""
        return rows.mT.flatten(1)[:, :samples]


def rows_reversed(height: int, bipartite: bool) -> Int[Tensor, " height"]:
    """Return the row indices in reverse order, or with each half reversed.

    >>> rows_reversed(6, bipartite=True)
    tensor([2, 1, 0, 5, 4, 3])
    """
    rows = torch.arange(height)
    if not bipartite:
        return rows.flip(0)
    return torch.cat([rows[: height // 2].flip(0), rows[height // 2 :].flip(0)])
