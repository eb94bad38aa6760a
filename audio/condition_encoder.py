"""Encoder of mel spectrogram and speaker to features of each column of a waveform."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from arflows.audio.representation import Condition, MelSpec


class ConditionEncoder(nn.Module):
    """Mel spectrogram and speaker → features of each column.

    The mel spectrogram passes a convolution over the frames, then linear interpolation from frame centres to column
    centres. The speaker's embedding is added.

    >>> encoder = ConditionEncoder(MelSpec(bands=5), features=8, conditional=True, speakers=0)
    >>> encoder(Condition(torch.zeros(2, 5, 4)), columns=64, height=16).shape
    torch.Size([2, 8, 64])

    Args:
        spec: settings of the mel spectrograms.
        features: number of features of a column.
        conditional: True if mel spectrograms are given.
        speakers: number of speakers; 0 for none.
    """

    def __init__(self, spec: MelSpec, features: int, conditional: bool, speakers: int) -> None:
        super().__init__()
        self.spec = spec
        self.frames = nn.Conv1d(spec.bands, features, 3, padding=1) if conditional else None
        self.speakers = nn.Embedding(speakers, features) if speakers else None

    def forward(
        self, condition: Condition, columns: int, height: int, lengths: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch features columns"]:
        """Compute the features of each column.

        Args:
            condition: mel spectrogram and speaker.
            columns: number of columns.
            height: samples per column.
            lengths: samples of each waveform, (batch,); frames past its end are treated like those past the border.
        """
        features: Tensor | None = None
        if self.frames is not None:
            assert condition.mel is not None
            frames = None if lengths is None else ((lengths - 1) // self.spec.hop + 1)[:, None]
            features = self._interpolated(self._frame_features(condition.mel, frames), columns, height, frames)
        if self.speakers is not None:
            voice = self.speakers(condition.speaker)[:, :, None]
            features = voice.expand(-1, -1, columns) if features is None else features + voice
        assert features is not None
        return features

    def _frame_features(self, mel: Tensor, frames: Tensor | None) -> Float[Tensor, "batch features frames"]:
        assert self.frames is not None
        spans = 0.5 * math.log(1 / self.spec.floor, math.e if self.spec.log_base == "e" else 10)
        centred = mel.to(self.frames.weight.dtype) / spans + 1  # from −1 for silence to about 1
        if frames is not None:
            centred = centred * (torch.arange(mel.shape[2], device=mel.device) < frames)[:, None]
        return F.leaky_relu(self.frames(centred), 0.4)

    def _interpolated(
        self, features: Tensor, columns: int, height: int, frames: Tensor | None
    ) -> Float[Tensor, "batch features columns"]:
        # Position of each column's centre relative to that of the first frame, in half samples: integers, so that the
        # features do not depend on where an excerpt of a spectrogram begins.
        position = (2 * torch.arange(columns, device=features.device) + 1) * height - self.spec.hop
        last = torch.full((1, 1), features.shape[2], device=features.device) if frames is None else frames
        last = last - 1
        position = torch.minimum(position.clamp_min(0), 2 * self.spec.hop * last)  # (batch or 1, columns)
        left = position // (2 * self.spec.hop)
        right = torch.minimum(left + 1, last)
        fraction = (position - 2 * self.spec.hop * left).to(features.dtype)[:, None] / (2 * self.spec.hop)
        if frames is None:
            return torch.lerp(features[:, :, left[0]], features[:, :, right[0]], fraction)
        features = features.expand(frames.shape[0], -1, -1)
        width = features.shape[1]
        before, after = (features.gather(2, index[:, None].expand(-1, width, -1)) for index in (left, right))
        return torch.lerp(before, after, fraction)
