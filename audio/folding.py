"""Waveforms folded to rows, and the bijections over these."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from arflows.core.bijections import Autoregressive, Bijection
from arflows.core.conditioners.wavenet import WaveNet


class Folded(Bijection):
    """Bijections over the rows of a waveform that is folded column by column.

    Sample t goes to row t mod h of column ⌊t / h⌋; Ping et al. 2020, section 3.1. A last column that is not full is
    filled with zeros, which the context must count (see `WaveNet`) so that they stay zeros.

    Args:
        height: samples of a column, h.
        bijections: over rows, (batch, h, columns), the first nearest to the data.
    """

    def __init__(self, height: int, bijections: list[Autoregressive]) -> None:
        super().__init__()
        self.height = height
        self.bijections = nn.ModuleList(bijections)

    @property
    def flows(self) -> list[Autoregressive]:
        """The bijections over rows."""
        return list(self.bijections)  # type: ignore[arg-type]

    @property
    def networks(self) -> list[WaveNet]:
        """Their conditioners."""
        return [flow.conditioner for flow in self.flows]  # type: ignore[misc]

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Waveform → latents, (batch, samples) both."""
        z, log_derivative = self.transform(x, context)
        return z, log_derivative.sum(1)

    def transform(
        self, x: Float[Tensor, "batch samples"], context: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch samples"], Float[Tensor, "batch samples"]]:
        """Waveform → latents, with the log-derivative sample by sample."""
        rows = self.fold(x)
        log_derivative = torch.zeros_like(rows)
        for flow in self.flows:
            order, rank = flow.order, flow.rank
            assert order is not None
            assert rank is not None
            mapped, more = flow.transform(rows.index_select(1, order), context)
            rows = mapped.index_select(1, rank)
            log_derivative = log_derivative + more.index_select(1, rank)
        return self.unfold(rows, x.shape[1]), self.unfold(log_derivative, x.shape[1])

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latents → waveform, by the solver in force."""
        rows = self.fold(z)
        log_det = rows.new_zeros(len(z))
        for flow in reversed(self.flows):
            rows, more = flow.inverse(rows, context)
            log_det = log_det + more
        return self.unfold(rows, z.shape[1]), log_det

    def fold(self, waveform: Tensor) -> Float[Tensor, "batch rows columns"]:
        """Waveform → rows."""
        missing = -waveform.shape[1] % self.height
        return F.pad(waveform, (0, missing)).unflatten(1, (-1, self.height)).mT

    def unfold(self, rows: Tensor, samples: int) -> Float[Tensor, "batch samples"]:
        """Rows → waveform."""
        return rows.mT.flatten(1)[:, :samples]


def rows_reversed(height: int, bipartite: bool) -> Int[Tensor, " height"]:
    """Rows in reverse, or each half of them in reverse."""
    rows = torch.arange(height)
    if not bipartite:
        return rows.flip(0)
    return torch.cat([rows[: height // 2].flip(0), rows[height // 2 :].flip(0)])
