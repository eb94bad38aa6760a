"""Base class of flows for images: integer pixels, padding to sizes that can be halved, classes."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn
from torch.nn import functional as F

from arflows.core.bases import Base
from arflows.core.bijections import Bijection
from arflows.core.dequantization import Dequantizer, UniformDequantizer
from arflows.core.flow import BijectiveFlow, require_tensor
from arflows.core.inversion import Solver
from arflows.core.runtime.errors import UserError, match_names
from arflows.core.runtime.pretrained import Pretrained
from arflows.vision.representation import ImageSpec


class ImageFlow(BijectiveFlow, Pretrained):
    """Flow over images of integers, padded where its scales need a larger size.

    Pixels are dequantised, so `log_prob` is a lower bound of the log-probability of the discrete image. An image
    smaller than ``padded_size`` is padded with zeros on all sides; the probability of image and padding together is a
    lower bound of that of the image, and bits per dimension count only the image's own pixels.

    Args:
        spec: the images' size and channels.
        bijection: from pixels in [0, 1], (channels, *padded_size), to a latent vector.
        base: density of the latent vector.
        padded_size: height and width that the bijection takes.
        classes: number or names of the classes of a class-conditional model; 0 for an unconditional one.
        context_features: size of the class embedding that the bijection takes as its context.
        dequantizer: of images of ``padded_size`` in ``spec.levels``; None for uniform noise.

    Attributes:
        classes: number of classes; 0 for an unconditional model.
        class_names: names of the classes in the order of their numbers; None if they are not known.
    """

    def __init__(
        self,
        spec: ImageSpec,
        bijection: Bijection,
        base: Base,
        padded_size: tuple[int, int],
        classes: int | Sequence[str] = 0,
        context_features: int = 0,
        dequantizer: Dequantizer | None = None,
    ) -> None:
        named = not isinstance(classes, int)
        count = classes if isinstance(classes, int) else len(classes)
        embedding = nn.Embedding(count, context_features) if count and context_features else None
        framed = FramedDequantizer(dequantizer or UniformDequantizer(spec.levels), spec, padded_size)
        super().__init__(base, bijection, framed, embedding)
        self.spec = spec
        self.classes = count
        self.class_names: tuple[str, ...] | None = None
        if named and count:
            self.name_classes(classes)  # type: ignore[arg-type]

    def name_classes(self, names: Sequence[str]) -> None:
        """Gives the classes their names, which are saved with the model.

        Args:
            names: one for each class, in the order of their numbers.

        Raises:
            UserError: if there are more or fewer names than classes, or two are equal.
        """
        if len(names) != self.classes or len(set(names)) != len(names):
            raise UserError(f"the model has {self.classes} classes: give as many different names, got {list(names)}")
        self.class_names = tuple(names)
        self._arguments["classes"] = list(names)

    def class_number(self, name: str) -> int:
        """Returns the number of a class.

        Args:
            name: its name; the number itself too, where no class has a number for its name.

        Raises:
            UserError: if the model has no such class.
        """
        if not self.classes:
            raise UserError("this model was trained without classes: leave the label out")
        numbers = [str(number) for number in range(self.classes)]
        if self.class_names is None:
            return match_names("class", [name], numbers, "the label")[0]
        if name in numbers and not any(known.lstrip("+-").isdigit() for known in self.class_names):
            return int(name)
        return match_names("class", [name], self.class_names, "the label")[0]

    @property
    def dims(self) -> int:
        """Number of pixel values of an image, without padding."""
        return self.spec.dims

    def log_prob(
        self, images: Integer[Tensor, "batch channels height width"], labels: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, " batch"]:
        """Lower bound of the log-probability of each discrete image, in nats, with new noise at every call.

        Args:
            images: whole numbers from 0 to 2^bits − 1: uint8, or a wider type where the model has more than 8 bits.
            labels: their classes, for a class-conditional model.

        Raises:
            UserError: if the images' size, channels or type are not the model's, or labels are missing or superfluous.
        """
        require_tensor("images", images)
        self.spec.check(images)
        self._check_labels(labels, images.shape[0])
        return super().log_prob(images, labels)

    def encode(
        self, images: Integer[Tensor, "batch channels height width"], labels: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch latent"]:
        """Images → latent vectors, from the middles of the pixels' cells."""
        require_tensor("images", images)
        self.spec.check(images)
        self._check_labels(labels, images.shape[0])
        return super().encode(images, labels)

    def decode(
        self, z: Float[Tensor, "batch latent"], labels: Int[Tensor, " batch"] | None = None
    ) -> Integer[Tensor, "batch channels height width"]:
        """Latent vectors → images."""
        self._check_labels(labels, z.shape[0])
        return super().decode(z, labels)

    def sample(
        self,
        count: int,
        labels: Int[Tensor, " count"] | int | None = None,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        solver: Solver | None = None,
    ) -> Integer[Tensor, "count channels height width"]:
        """Draws images.

        Args:
            count: how many.
            labels: a class for each image or one for all; a class-conditional model without labels draws them evenly.
            temperature: multiplies the standard deviation of the latents.
            generator: source of randomness; a CPU generator gives the same latents on every device.
            solver: how autoregressive parts are inverted; None for the active solver, `Sequential` by default.
        """
        labels = self.labels_for(count, labels, generator)
        return super().sample(count, labels, temperature=temperature, generator=generator, solver=solver)

    def sample_with_log_prob(
        self,
        count: int,
        labels: Int[Tensor, " count"] | int | None = None,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        solver: Solver | None = None,
    ) -> tuple[Integer[Tensor, "count channels height width"], Float[Tensor, " count"]]:
        """Draw images and return `log_prob` of each; see `sample`."""
        labels = self.labels_for(count, labels, generator)
        return super().sample_with_log_prob(count, labels, temperature=temperature, generator=generator, solver=solver)

    def labels_for(
        self, count: int, labels: Int[Tensor, " count"] | int | None, generator: torch.Generator | None = None
    ) -> Int[Tensor, " count"] | None:
        """One class for each of ``count`` images: those given, one for all, or drawn evenly; None if unconditional."""
        if isinstance(labels, int):
            labels = torch.full((count,), labels)
        elif labels is None and self.classes:
            labels = torch.randint(self.classes, (count,), generator=generator)
        if labels is None:
            return None
        self._check_labels(labels, count)
        return labels.to(self.device)

    def _check_labels(self, labels: Tensor | None, count: int) -> None:
        if self.classes and labels is None:
            raise UserError(f"this model is conditional on {self.classes} classes: give a label for each image")
        if labels is not None and not self.classes:
            raise UserError("this model was trained without classes: leave the labels out")
        if labels is not None:
            require_tensor("labels", labels)
        if labels is not None and labels.shape != (count,):
            raise UserError(f"expected one label for each of {count} images, got shape {tuple(labels.shape)}")
        if labels is None or not count or torch.compiler.is_compiling():
            return
        lowest, highest = (int(bound) for bound in labels.aminmax())
        if lowest < 0 or highest >= self.classes:
            raise UserError(f"labels run from {lowest} to {highest}: give class numbers from 0 to {self.classes - 1}")


class FramedDequantizer(Dequantizer):
    """Dequantisation of zero-padded images; `quantize` removes the padding."""

    def __init__(self, dequantizer: Dequantizer, spec: ImageSpec, padded_size: tuple[int, int]) -> None:
        super().__init__(dequantizer.levels)
        self.inner = dequantizer
        self.noise = dequantizer.noise
        self.likelihood = dequantizer.likelihood
        rows, columns = padded_size[0] - spec.height, padded_size[1] - spec.width
        self.top, self.left = rows // 2, columns // 2
        self.height, self.width = spec.height, spec.width
        self.frame = (self.left, columns - self.left, self.top, rows - self.top)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor | float]:
        """Pads and dequantises."""
        return self.inner(self._in_frame(x), generator)

    def midpoint(self, x: Tensor) -> Tensor:
        """Pads, and maps each pixel to the middle of its cell."""
        return super().midpoint(self._in_frame(x))

    def quantize(self, y: Tensor) -> Tensor:
        """Rounds down to integers, and removes the padding."""
        inner = y[..., self.top : self.top + self.height, self.left : self.left + self.width]
        return super().quantize(inner)

    def _in_frame(self, x: Tensor) -> Tensor:
        return F.pad(x, self.frame) if any(self.frame) else x


def image_spec(image_size: int | Sequence[int], channels: int, bits: int = 8) -> ImageSpec:
    """The spec of images of one size, given as a number or as (height, width).

    Raises:
        UserError: if a size is not positive, or the bits are not 1 to 16.

    >>> image_spec(32, 3).shape, image_spec((12, 20), 1).shape
    ((3, 32, 32), (1, 12, 20))
    """
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or min(*size, channels) < 1:
        raise UserError(
            f"image_size={image_size} and channels={channels}: give one or two sizes and channels from 1 up"
        )
    if not 1 <= bits <= 16:
        raise UserError(f"bits={bits}: pixels have 1 to 16 bits")
    return ImageSpec(*size, channels, bits)


def framed_size(spec: ImageSpec, halvings: int, setting: str) -> tuple[int, int]:
    """The least size, no smaller than the image's, that can be halved ``halvings`` times.

    Raises:
        UserError: if the padding would have to be as large as the image.

    >>> framed_size(ImageSpec(28, 30, 1), halvings=2, setting="scales")
    (28, 32)
    """
    size = min(spec.height, spec.width)
    most = (2 * size - 1).bit_length() - 1
    if not 1 <= halvings <= most:
        mend = f"use 1 to {most}" if most else "use larger images"
        raise UserError(f"{setting}={halvings} does not fit images of {spec.height}×{spec.width} pixels: {mend}")
    unit = 1 << halvings
    return -(-spec.height // unit) * unit, -(-spec.width // unit) * unit
