"""WaveFlow: an autoregressive flow over waveforms, conditioned on mel spectrograms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from arflows.audio.condition_encoder import ConditionEncoder
from arflows.audio.folding import Folded, rows_reversed
from arflows.audio.parts import Continuation, Window
from arflows.audio.presets import PRESETS, height_dilations
from arflows.audio.representation import Condition, MelSpec
from arflows.audio.speech_flow import SpeechFlow
from arflows.core.bijections import Affine, Autoregressive
from arflows.core.conditioners.wavenet import WaveNet
from arflows.core.runtime.errors import UserError

WIDTH_CYCLE = 8
"""Period in layers of the dilations along the width, which are powers of two."""


class WaveFlow(SpeechFlow):
    """Autoregressive flow over the rows of a folded waveform with samples in [−1, 1].

    Ping, Peng, Zhao & Song, "WaveFlow", 2020 (arXiv:1912.01219). A waveform is folded to columns of ``height``
    consecutive samples; row i holds the i-th samples of all columns. Each flow maps a sample affinely, with parameters
    that a `WaveNet` computes from the rows generated before. Rows are reversed between flows; in the second half of the
    flows each half of the rows is reversed separately (bipartite). The last column may be incomplete.

    >>> flow = WaveFlow({"bands": 5}, height=4, channels=4, layers=2, flows=2)
    >>> flow.log_prob(torch.zeros(2, 512), mel=torch.zeros(2, 5, 2)).shape
    torch.Size([2])

    Args:
        spec: settings of the mel spectrograms, as for `MelSpec`; None for its defaults.
        conditional: True if mel spectrograms are given; otherwise only the sample rate of ``spec`` is used.
        speakers: number of speakers; 0 for a model without.
        height: samples per column, h, and number of generation steps. A height equal to the length of the waveform
            gives a WaveNet over single samples.
        channels: channels of the WaveNets.
        layers: layers of each WaveNet.
        flows: number of flows.
        kernel: kernel size of the convolutions, along height and width.
        causal_width: use convolutions that are causal along the width, so that synthesis can be streamed exactly.

    Raises:
        UserError: if the height is below 2.
    """

    presets = PRESETS

    def __init__(
        self,
        spec: Mapping[str, Any] | None = None,
        conditional: bool = True,
        speakers: int = 0,
        height: int = 16,
        channels: int = 64,
        layers: int = 8,
        flows: int = 8,
        kernel: tuple[int, int] = (3, 3),
        causal_width: bool = False,
    ) -> None:
        mel_spec = MelSpec.from_dict(spec or {})
        if height < 2:
            raise UserError(f"height={height} must be at least 2: with one row no sample depends on another")
        features = (mel_spec.bands if conditional else channels) if conditional or speakers else 0
        kernel = (int(kernel[0]), int(kernel[1]))
        down = height_dilations(height, layers, kernel[0])
        dilations = [(down[layer], 2 ** (layer % WIDTH_CYCLE)) for layer in range(layers)]
        reversals = [rows_reversed(height, bipartite=number >= flows // 2) for number in range(flows)]
        order = torch.arange(height)
        bijections = []
        for reversal in reversals:
            network = WaveNet(channels, dilations, kernel, features, causal_width, order)
            bijections.append(Autoregressive(Affine(), network, order))
            order = order[reversal]
        super().__init__(mel_spec, conditional, speakers)
        self.bijection: Folded = Folded(height, bijections)
        self.height = height
        self.causal_width = causal_width
        self.encoder = ConditionEncoder(mel_spec, features, conditional, speakers) if features else None

    # --------------------------------------------------------------------------------- synthesis and its parts

    def _generate(
        self, z: Float[Tensor, "batch samples"], condition: Condition, lengths: Tensor | None
    ) -> tuple[Float[Tensor, "batch samples"], Float[Tensor, " batch"]]:
        """Map latents to waveforms, and return the log-determinant of this direction."""
        batch, samples = z.shape
        if z.is_cuda:
            self.check(condition, batch, samples, lengths)
            z, condition, lengths = self.widened(z, condition, lengths)
        waveform, log_det = super()._generate(z, condition, lengths)
        return waveform[:, :samples], log_det

    def widened(
        self, z: Float[Tensor, "batch samples"], condition: Condition, lengths: Tensor | None
    ) -> tuple[Tensor, Condition, Tensor]:
        """Pad latents and mel spectrograms to one of eight widths per octave.

        On CUDA, generation is captured as a graph for each shape; with few widths most lengths reuse a captured graph.

        Args:
            z: latents.
            condition: mel spectrograms and speakers.
            lengths: samples of each waveform; None if all are full.

        Returns:
            Padded latents and condition, and the lengths without padding.
        """
        batch, samples = z.shape
        columns = -(-samples // self.height)
        step = 1 << max(columns.bit_length() - 4, 0)
        wide = -(-columns // step) * step * self.height
        lengths = torch.full((batch,), samples, device=z.device) if lengths is None else lengths
        mel = condition.mel
        if mel is not None:
            mel = F.pad(mel, (0, self.spec.frames(wide) - mel.shape[2]))
        return F.pad(z, (0, wide - samples)), Condition(mel, condition.speaker), lengths

    def windows(self, start: int, stop: int, samples: int, context: Any) -> tuple[Window, Window]:
        """Return windows of whole columns around a gap; see `SpeechFlow.windows`."""
        # Latents that depend on the gap lie within one receptive field of it, and depend on samples within two.
        reach = sum(layer.margins[0] for network in self.bijection.networks for layer in network.stack)
        return (
            self._window(start, stop, samples, context, 2 * reach),
            self._window(start, stop, samples, context, reach // len(self.bijection.networks)),
        )

    def _window(self, start: int, stop: int, samples: int, context: Tensor | None, margin: int) -> Window:
        left = max(0, start // self.height - margin)
        right = min(-(-stop // self.height) + margin, -(-samples // self.height))
        part = None if context is None else context[..., left:right]
        return Window(left * self.height, min(right * self.height, samples), part)

    def continuation(self) -> Continuation | None:
        """Return synthesis column by column, if the flow has causal width."""
        return _ColumnByColumn(self) if self.causal_width else None

    def reach(self) -> int:
        """Return the number of mel frames on either side of a sample that can affect its synthesis.

        A row depends on earlier rows within the width of the receptive field, and this width adds up over the rows.
        """
        width = sum(max(layer.margins) for network in self.bijection.networks for layer in network.stack)
        columns = (self.height - 1) * width
        return math.ceil(columns * self.height / self.spec.hop) + 2  # + the encoder's convolution and interpolation

    # ------------------------------------------------------------------------------------------------ conditions

    def _context(
        self, waveform: Float[Tensor, "batch samples"], condition: Condition, lengths: Tensor | None
    ) -> Float[Tensor, "batch features *rows columns"] | None:
        """Return the features of each column, or of each sample; see `WaveNet`."""
        features = self.column_features(condition, -(-waveform.shape[1] // self.height), lengths)
        return self.counted(features, waveform, lengths)

    def column_features(
        self, condition: Condition, columns: int, lengths: Tensor | None = None
    ) -> Float[Tensor, "batch features *rows columns"] | None:
        """Compute the features of each column, or of each sample if a column is longer than a frame.

        Args:
            condition: mel spectrograms and speakers.
            columns: number of columns.
            lengths: samples of each waveform; None if all are full.
        """
        if self.encoder is None:
            return None
        if not self.conditional or self.height <= self.spec.hop:
            return self.encoder(condition, columns, self.height, lengths)
        return self.encoder(condition, columns * self.height, 1, lengths).unflatten(2, (columns, self.height)).mT

    def counted(
        self, features: Tensor | None, waveform: Float[Tensor, "batch samples"], lengths: Tensor | None = None
    ) -> Float[Tensor, "batch features *rows columns"] | None:
        """Append the number of samples in each column to the features, unless all columns are full.

        Args:
            features: features of columns or samples; None for none.
            waveform: samples or latents, of which only the shape matters.
            lengths: samples of each waveform; None if all are full.
        """
        batch, samples = waveform.shape
        if features is not None:
            # Full precision even if the encoder ran under autocast, which would round the counts.
            features = features.expand(batch, *features.shape[1:]).to(waveform.dtype)
        if lengths is None:
            if samples % self.height == 0:
                return features
            lengths = torch.full((batch,), samples, device=waveform.device)
        starts = torch.arange(0, samples, self.height, device=waveform.device)
        inside = (lengths[:, None] - starts).clamp(0, self.height)[:, None]
        if features is None:
            return inside.to(waveform.dtype)
        if features.ndim == 4:
            inside = inside[:, :, None].expand(-1, -1, self.height, -1)
        return torch.cat([features, inside.to(features.dtype)], 1)


class _ColumnByColumn:
    """Incremental synthesis by a flow of causal width, with a cache of past columns for each layer."""

    def __init__(self, flow: WaveFlow) -> None:
        self.flow = flow
        self.done = 0  # columns
        self.memories: list[list[Tensor]] = []

    def known(self, frames: int, ended: bool) -> int:
        """Return the number of samples, in whole columns, whose features depend on the first ``frames`` frames only."""
        height, hop = self.flow.height, self.flow.spec.hop
        # Sample t is at frame (t + ½) / hop − ½. Its features are interpolated with those of the next frame, which a
        # convolution computes from one frame more.
        whole = math.ceil(((frames - 1.5) * hop + 0.5) / height) - 1
        return frames * hop if ended else max(whole * height, 0)

    def needed(self, sample: int) -> int:
        """Return the first frame that this sample and later ones depend on."""
        return max(math.floor((sample + 0.5) / self.flow.spec.hop - 0.5) - 2, 0)

    def extend(
        self, z: Float[Tensor, "batch samples"], condition: Condition, first: int
    ) -> Float[Tensor, "batch samples"]:
        """Synthesise the next samples; see `Continuation`."""
        flow, folded = self.flow, self.flow.bijection
        offset = first * flow.spec.hop // flow.height
        done, columns = self.done, self.done - (-z.shape[1] // flow.height)
        features = flow.column_features(condition, columns - offset)
        assert features is not None
        context = flow.counted(features[..., done - offset :], z)
        self.done = columns
        rows = folded.fold(z)
        if not self.memories:
            self.memories = [network.memory(rows) for network in folded.networks]
        parts = list(zip(folded.flows, folded.networks, self.memories, strict=True))
        for bijection, network, memory in reversed(parts):
            assert bijection.order is not None
            assert bijection.rank is not None
            arranged = rows.index_select(1, bijection.order)
            stream = network.stream(arranged, context, memory)
            rows, _ = stream.generate(bijection.elementwise, arranged)
            rows = rows.index_select(1, bijection.rank)
        return folded.unfold(rows, z.shape[1])
