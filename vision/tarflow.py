"""TarFlow: transformer autoregressive flows over the patches of an image."""

import math
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn

from arflows.core.bases import StandardNormal
from arflows.core.bijections import Autoregressive, Bijection, Chain, LocationScale
from arflows.core.conditioners import CausalTransformer, Guided
from arflows.core.dequantization import GaussianDequantizer
from arflows.core.flow import evaluating
from arflows.core.inversion import Solver, use_solver
from arflows.core.runtime.errors import UserError
from arflows.vision.image_flow import ImageFlow, image_spec


class TarFlow(ImageFlow):
    """TarFlow: blocks of causal transformers that run over an image's patches back and forth.

    Zhai et al., "Normalizing flows are capable generative models", 2024 (arXiv:2412.06329). Patches are tokens; each
    block is an autoregressive flow whose transformer gives mean and log-scale of all values of a token from the tokens
    before it, and every other block runs over them in the opposite order. Pixels enter scaled to [−1, 1]. Ours: the
    first token is transformed too, and log-scales are bounded by 5.

    Without noise, pixels are dequantised uniformly, and `log_prob` is a lower bound as for every `ImageFlow`. With
    noise, the model is trained on noisy images, as in the paper, for better samples: `log_prob` is then their
    **density** with pixels in grey levels, and no bound on the probability of discrete images. `likelihood` is "bound"
    or "density" accordingly.

    Args:
        image_size: height and width, or one number for both.
        channels: 1 for grey images, 3 for colour.
        patch_size: height and width of a patch.
        blocks: autoregressive flows T, each with a transformer of its own.
        layers: layers K of each transformer.
        width: hidden features of the transformers.
        heads: heads of their attention.
        classes: number or names of the classes of a class-conditional model; 0 for an unconditional one.
        noise: standard deviation of Gaussian noise on pixels in [−1, 1]; 0 for uniform dequantisation.
        label_dropout: share of the training images whose class is withheld, so that `sample` can be guided.
        bits: bits of a pixel value, 1 to 16.

    Raises:
        UserError: if the patches do not tile the image, or a setting is out of range.

    >>> flow = TarFlow(8, 1, patch_size=4, blocks=2, layers=1, width=8, heads=1, classes=["cat", "dog"]).eval()
    >>> flow.sample(2, flow.class_number("dog")).shape
    torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        image_size: int | Sequence[int] = 64,
        channels: int = 3,
        patch_size: int = 4,
        blocks: int = 8,
        layers: int = 8,
        width: int = 768,
        heads: int = 12,
        classes: int | Sequence[str] = 0,
        noise: float = 0.0,
        label_dropout: float = 0.1,
        bits: int = 8,
    ) -> None:
        spec = image_spec(image_size, channels, bits)
        if patch_size < 1 or spec.height % patch_size or spec.width % patch_size:
            raise UserError(
                f"patch_size={patch_size} does not tile images of {spec.height}×{spec.width} pixels: use a divisor"
            )
        if noise < 0:
            raise UserError(f"noise={noise} is a standard deviation: use 0 or more")
        if not 0 <= label_dropout < 1:
            raise UserError(f"label_dropout={label_dropout} is a share: use a number from 0 up to, not including, 1")
        patches = Patches(spec.shape, patch_size)
        context_features = width if classes else 0
        try:
            flows = [
                Autoregressive(
                    LocationScale(),
                    CausalTransformer(
                        patches.count,
                        patches.size,
                        LocationScale.parameter_count,
                        width,
                        layers,
                        heads,
                        context_features,
                    ),
                    torch.arange(patches.count).flip(0) if number % 2 else None,
                )
                for number in range(blocks)
            ]
        except ValueError as error:
            raise UserError(str(error)) from error
        bijection = Patchwise(patches, Chain(*flows))
        # Half of the noise, since pixels enter the bijection as numbers in [0, 1].
        dequantizer = GaussianDequantizer(noise / 2, spec.levels) if noise else None
        size = (spec.height, spec.width)
        super().__init__(spec, bijection, StandardNormal((spec.dims,)), size, classes, dequantizer=dequantizer)
        if classes:
            self.context_encoder = ClassEmbedding(self.classes, context_features, label_dropout)
        self.noise = noise
        self._guided: tuple[float, Patchwise] | None = None

    def sample(
        self,
        count: int,
        labels: Int[Tensor, " count"] | int | None = None,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        solver: Solver | None = None,
        guidance: float = 0.0,
        denoise: bool = False,
    ) -> Integer[Tensor, "count channels height width"]:
        """Draws images.

        Args:
            count: how many.
            labels: a class for each image or one for all; a class-conditional model without labels draws them evenly.
            temperature: multiplies the standard deviation of the latents.
            generator: source of randomness; a CPU generator gives the same latents on every device.
            solver: how the transformers are inverted; None for the active solver, `Sequential` by default.
            guidance: weight w of classifier-free guidance, by which every mean and log-scale is moved away from that
                without a class: θ + w (θ − θ_∅). The images are more typical of their class; they are no longer
                distributed as `log_prob` says.
            denoise: remove the noise that the model was trained with from the images, see `denoised`.

        Raises:
            UserError: for guidance of a model without classes, or denoising by a model without noise.
        """
        labels = self.labels_for(count, labels, generator)
        with torch.no_grad(), evaluating(self):
            z, context = self._latents(count, labels, temperature, generator)
            bijection = self.bijection
            if guidance:
                context = self._with_and_without(labels)
                bijection = self._guided_by(guidance)
            with nullcontext() if solver is None else use_solver(solver):
                y, _ = bijection.inverse(z, context)
        assert self.dequantizer is not None
        return self.dequantizer.quantize(self.denoised(y, labels) if denoise else y)

    def sample_with_log_prob(
        self,
        count: int,
        labels: Int[Tensor, " count"] | int | None = None,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        solver: Solver | None = None,
        guidance: float = 0.0,
        denoise: bool = False,
    ) -> tuple[Integer[Tensor, "count channels height width"], Float[Tensor, " count"]]:
        """Draws images, guided or not, and computes `log_prob` of each; see `sample`."""
        labels = self.labels_for(count, labels, generator)
        images = self.sample(
            count,
            labels,
            temperature=temperature,
            generator=generator,
            solver=solver,
            guidance=guidance,
            denoise=denoise,
        )
        with torch.no_grad(), evaluating(self):
            return images, self.log_prob(images, labels)

    def denoised(
        self, y: Float[Tensor, "batch channels height width"], labels: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch channels height width"]:
        """Posterior mean of the images without noise given y: y + σ² ∇_y log p(y), Tweedie's formula.

        Zhai et al. 2024 (arXiv:2412.06329) on score-based denoising.

        Args:
            y: noisy images, pixels in [0, 1].
            labels: their classes, for a class-conditional model.

        Raises:
            UserError: if the model was trained without noise.
        """
        if not self.noise:
            raise UserError("this model was trained without noise, there is none to take out: leave denoise out")
        with torch.enable_grad(), evaluating(self):
            y = y.detach().requires_grad_()
            context = self._encode_context(labels)
            z, log_det = self.bijection(y, context)
            (score,) = torch.autograd.grad((self.base.log_prob(z, context) + log_det).sum(), y)
        return (y + (self.noise / 2) ** 2 * score).detach()

    def _guided_by(self, weight: float) -> "Patchwise":
        """The bijection under guidance; kept, since a CUDA graph may be bound to it."""
        if self._guided is None or self._guided[0] != weight:
            assert isinstance(self.bijection, Patchwise)
            self._guided = weight, self.bijection.guided(weight)
        return self._guided[1]

    def _with_and_without(self, labels: Int[Tensor, " batch"] | None) -> Float[Tensor, "batch both"]:
        """Vectors of the labels, each followed by the vector of no class: the context of guided flows."""
        if not isinstance(self.context_encoder, ClassEmbedding) or labels is None:
            raise UserError("guidance needs a model with classes: this one was trained without, leave guidance at 0")
        none = torch.full_like(labels, self.context_encoder.none)
        return torch.cat([self.context_encoder(labels), self.context_encoder(none)], 1)


class Patches(nn.Module):
    """Splits images into square patches, row by row, and joins them.

    Attributes:
        count: patches of an image.
        size: numbers in a patch.

    Args:
        shape: channels, height and width of an image.
        side: height and width of a patch, which divides those of the image.

    >>> patches = Patches((3, 4, 6), side=2)
    >>> patches.count, patches.size
    (6, 12)
    >>> patches(torch.zeros(5, 3, 4, 6)).shape
    torch.Size([5, 6, 12])
    """

    def __init__(self, shape: tuple[int, int, int], side: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.side = side
        self.channels, self.rows, self.columns = channels, height // side, width // side
        self.count = self.rows * self.columns
        self.size = channels * side**2

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch count size"]:
        """Images → patches."""
        grid = images.unflatten(3, (self.columns, self.side)).unflatten(2, (self.rows, self.side))
        return grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def joined(self, patches: Float[Tensor, "batch count size"]) -> Float[Tensor, "batch channels height width"]:
        """Patches → images."""
        grid = patches.unflatten(2, (self.channels, self.side, self.side)).unflatten(1, (self.rows, self.columns))
        return grid.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


class Patchwise(Bijection):
    """A chain of autoregressive flows over the patches of an image; pixels of [0, 1] enter it scaled to [−1, 1].

    Args:
        patches: how to cut the image.
        flows: bijections of (patches, numbers of a patch).
    """

    def __init__(self, patches: Patches, flows: Chain) -> None:
        super().__init__()
        self.patches = patches
        self.flows = flows

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Image → latent vector."""
        z, log_det = self.flows(self.patches(2 * x - 1), context)
        return z.flatten(1), log_det + self._log_scaling

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent vector → image."""
        x, log_det = self.flows.inverse(z.unflatten(1, (self.patches.count, self.patches.size)), context)
        return (self.patches.joined(x) + 1) / 2, log_det - self._log_scaling

    @property
    def _log_scaling(self) -> float:
        return self.patches.count * self.patches.size * math.log(2)

    def guided(self, weight: float) -> "Patchwise":
        """The same flows, their parameters guided; see `Guided` for the context they take."""
        flows = []
        for flow in self.flows:
            assert isinstance(flow, Autoregressive)
            flows.append(Autoregressive(flow.elementwise, Guided(flow.conditioner, weight), flow.order))
        return Patchwise(self.patches, Chain(*flows))

    def latent_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        """A vector."""
        return (self.patches.count * self.patches.size,)


class ClassEmbedding(nn.Module):
    """Class labels → vectors, with label dropout in training for classifier-free guidance.

    Ho & Salimans 2022 (arXiv:2207.12598), algorithm 1.

    Args:
        classes: number of classes.
        features: size of the vectors.
        dropout: probability that a label is withheld in training.
    """

    def __init__(self, classes: int, features: int, dropout: float) -> None:
        super().__init__()
        self.none = classes
        self.dropout = dropout
        self.vectors = nn.Embedding(classes + 1, features)

    def forward(self, labels: Int[Tensor, " batch"]) -> Float[Tensor, "batch features"]:
        """The labels' vectors."""
        if self.training and self.dropout:
            labels = labels.masked_fill(torch.rand(labels.shape, device=labels.device) < self.dropout, self.none)
        return self.vectors(labels)
