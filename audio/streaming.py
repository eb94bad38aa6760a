"""Synthesis of speech while its mel spectrogram is still arriving."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from arflows.audio.representation import Condition
from arflows.core.inversion import in_sequence
from arflows.core.runtime.errors import UserError

if TYPE_CHECKING:
    from arflows.audio.model import WaveFlow
    from arflows.audio.speech_flow import SpeechFlow

LATENT_BLOCK = 1024
"""Samples whose latents are drawn from one generator."""


def latents(batch: int, start: int, stop: int, seed: int) -> Float[Tensor, "batch samples"]:
    """Standard normal latents of samples ``start`` … ``stop`` − 1: functions of the seed and of where the sample is.

    Args:
        batch: how many waveforms.
        start: first sample.
        stop: the sample after the last.
        seed: of all latents, 0 or more.
    """
    first = start // LATENT_BLOCK
    drawn = [
        np.random.Generator(np.random.Philox(key=[seed, block])).standard_normal((batch, LATENT_BLOCK))
        for block in range(first, max(-(-stop // LATENT_BLOCK), first + 1))
    ]
    place = first * LATENT_BLOCK
    return torch.from_numpy(np.concatenate(drawn, 1)[:, start - place : stop - place]).float()


def check(flow: SpeechFlow, speaker: Tensor | None, seed: int) -> None:
    """Makes sure that a model streams, and for that speaker.

    Raises:
        UserError: if not.
    """
    if not flow.conditional:
        raise UserError("this model was trained without mel spectrograms: there is nothing to stream, use sample")
    if (speaker is not None) != (flow.speakers > 0):
        which = "is conditional on" if flow.speakers else "was trained without"
        raise UserError(f"this model {which} speaker: {'give it' if flow.speakers else 'leave it out'}")
    if seed < 0:
        raise UserError(f"seed={seed} must be at least 0")


def check_chunk(flow: SpeechFlow, chunk: Tensor, batch: int | None) -> None:
    """Makes sure that a chunk of mel spectrograms fits the model, and those before it, ``batch`` of them.

    Raises:
        UserError: if not.
    """
    if chunk.ndim != 3 or chunk.shape[1] != flow.spec.bands:
        raise UserError(
            f"a chunk of the mel spectrogram must be (batch, {flow.spec.bands}, frames), got "
            f"{tuple(chunk.shape)}: compute it with the model's settings"
        )
    if batch is not None and len(chunk) != batch:
        raise UserError(f"chunks of {batch} mel spectrograms are followed by one of {len(chunk)}")


def stream(
    flow: WaveFlow,
    mel_chunks: Iterable[Float[Tensor, "batch bands frames"]],
    speaker: Int[Tensor, " batch"] | None = None,
    temperature: float = 1.0,
    seed: int = 0,
    block: int = 64,
    margin: int = 16,
) -> Iterator[Float[Tensor, "batch samples"]]:
    """Synthesises waveforms chunk by chunk; what comes out does not depend on how the frames are cut into chunks.

    The waveform is `WaveFlow.decode` of `latents` times the temperature, given all frames. A flow of causal width gives
    exactly that, up to rounding, as soon as two more frames are known: each layer keeps the columns it still needs.

    A flow that looks to both sides would have to wait for the end, since every sample depends on all others within
    `reach`, though ever more weakly. It synthesises blocks of frames, each with a margin of frames on both sides that
    is thrown away. With a margin of at least `reach` this is exact too; with less, blocks differ from the whole
    waveform by what the frames beyond the margin contribute. Of a trained model of 6 flows of 6 layers, whose reach is
    357 frames, samples differed by 3e-4 at most with a margin of 4 frames, by 2e-6 with 8, by rounding with 16.

    Args:
        flow: the model.
        mel_chunks: log-mel spectrograms, one after the other, of any numbers of frames.
        speaker: number of the speaker of each waveform.
        temperature: multiplies the latents' standard deviation.
        seed: of the latents.
        block: frames synthesised at once, for a flow that is not of causal width.
        margin: frames synthesised with them on both sides.

    Yields:
        The samples that follow; together as many as the frames' hops.

    Raises:
        UserError: for a model without mel spectrograms, or chunks that do not fit it or each other.
    """
    check(flow, speaker, seed)
    if not temperature > 0:
        raise UserError(f"temperature must be greater than 0, got {temperature}")
    if block < 1 or margin < 0:
        raise UserError(f"block={block} and margin={margin} must be at least 1 and 0")
    synthesis: _Synthesis
    if flow.causal_width:
        synthesis = _Continued(flow, speaker, temperature, seed)
    else:
        synthesis = _Blocks(flow, speaker, temperature, seed, block, margin)
    for chunk in mel_chunks:
        synthesis.take(chunk)
        yield from synthesis.ready(ended=False)
    yield from synthesis.ready(ended=True)


def reach(flow: WaveFlow) -> int:
    """How many frames before and after a sample's own can have a part in it, when a waveform is generated.

    A row depends on the rows before it as far as the convolutions are wide, these on the rows before them as far again.
    """
    columns = (flow.height - 1) * sum(
        max(layer.margins) for network in flow.bijection.networks for layer in network.stack
    )
    return math.ceil(columns * flow.height / flow.spec.hop) + 2  # the encoder's convolution and interpolation


class _Synthesis(ABC):
    """A waveform in the making: the frames that are still needed, and how many came before."""

    def __init__(self, flow: WaveFlow, speaker: Tensor | None, temperature: float, seed: int) -> None:
        self.flow, self.speaker, self.temperature, self.seed = flow, speaker, temperature, seed
        self.step = math.lcm(flow.spec.hop, flow.height) // flow.spec.hop  # frames that fill whole columns
        self.first = 0
        self.mel: Tensor | None = None

    @abstractmethod
    def ready(self, ended: bool) -> Iterator[Tensor]:
        """Synthesises what the frames so far allow; all that is left when they have ended."""

    @property
    def count(self) -> int:
        """Frames so far."""
        return self.first + (0 if self.mel is None else self.mel.shape[2])

    def take(self, chunk: Tensor) -> None:
        """Adds frames."""
        check_chunk(self.flow, chunk, None if self.mel is None else len(self.mel))
        chunk = chunk.to(self.flow.device)
        self.mel = chunk if self.mel is None else torch.cat([self.mel, chunk], 2)

    def window(self, start: int, stop: int) -> Tensor:
        """Frames ``start`` … ``stop`` − 1."""
        assert self.mel is not None
        return self.mel[:, :, start - self.first : stop - self.first]

    def forget(self, frame: int) -> None:
        """Lets go of the frames before one, as far as whole columns go."""
        start = max(frame // self.step * self.step, self.first)
        self.mel, self.first = self.window(start, self.count), start

    def draw(self, start: int, stop: int) -> Tensor:
        """Latents of samples."""
        assert self.mel is not None
        z = latents(len(self.mel), start, stop, self.seed)
        return self.temperature * z.to(self.mel.device, self.flow.base.origin.dtype)


class _Blocks(_Synthesis):
    """Blocks with margins, at places that do not depend on the chunks."""

    def __init__(
        self, flow: WaveFlow, speaker: Tensor | None, temperature: float, seed: int, block: int, margin: int
    ) -> None:
        super().__init__(flow, speaker, temperature, seed)
        self.block, self.margin = (-(-frames // self.step) * self.step for frames in (block, margin))
        self.done = 0  # frames

    @torch.no_grad()
    def ready(self, ended: bool) -> Iterator[Tensor]:
        """Synthesises the blocks of which all frames and their margins are known."""
        hop = self.flow.spec.hop
        while self.done < self.count and (ended or self.done + self.block + self.margin <= self.count):
            start, stop = max(self.done - self.margin, 0), min(self.done + self.block + self.margin, self.count)
            condition = Condition(self.window(start, stop), self.speaker)
            waveform = self.flow.decode(self.draw(start * hop, stop * hop), condition)
            end = min(self.done + self.block, self.count)
            yield waveform[:, (self.done - start) * hop : (end - start) * hop]
            self.done = end
            self.forget(max(end - self.margin, 0))


class _Continued(_Synthesis):
    """Columns that go on where those before them ended."""

    def __init__(self, flow: WaveFlow, speaker: Tensor | None, temperature: float, seed: int) -> None:
        super().__init__(flow, speaker, temperature, seed)
        self.done = 0  # columns
        self.memories: list[list[Tensor]] = []

    @torch.no_grad()
    def ready(self, ended: bool) -> Iterator[Tensor]:
        """Synthesises the columns whose features are known."""
        if not self.count:
            return
        height, hop = self.flow.height, self.flow.spec.hop
        # Sample t lies (t + ½) / hop − ½ frames in. Its features are interpolated up to the next frame, whose features
        # are those of a convolution that sees one more.
        known = math.ceil(((self.count - 1.5) * hop + 0.5) / height) - 1
        columns = -(-self.count * hop // height) if ended else known
        if columns <= self.done:
            return
        self.forget(max(math.floor((self.done * height + 0.5) / hop - 0.5) - 2, 0))
        assert self.mel is not None
        offset = self.first * hop // height
        features = self.flow.column_features(Condition(self.mel, self.speaker), columns - offset)
        assert features is not None
        samples = min(columns * height, self.count * hop) - self.done * height
        z = self.draw(self.done * height, self.done * height + samples)
        context = self.flow.counted(features[..., self.done - offset :], z)
        self.done = columns
        yield self._continue(z, context)

    def _continue(self, z: Tensor, context: Tensor | None) -> Tensor:
        folded = self.flow.bijection
        rows = folded.fold(z)
        if not self.memories:
            self.memories = [network.memory(rows) for network in folded.networks]
        parts = list(zip(folded.flows, folded.networks, self.memories, strict=True))
        for bijection, network, memory in reversed(parts):
            assert bijection.order is not None
            assert bijection.rank is not None
            arranged = rows.index_select(1, bijection.order)
            at_work = network.stream(arranged, context, memory)
            rows, _ = in_sequence(at_work, bijection.elementwise, arranged)
            rows = rows.index_select(1, bijection.rank)
        return folded.unfold(rows, z.shape[1])
