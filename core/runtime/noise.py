"""Random numbers that are functions of a seed, the name of a stream and an index.

A `Noise` is an endless sequence of random numbers. Any part of it can be computed separately: the numbers of an example
depend neither on the size of its batch, nor on the number of processes, nor on what was drawn before::

    noise = Noise(seed=0, stream="latents")
    noise.normal(1000, 16, (3, 32, 32))   # latents of examples 1000 … 1015
    noise.uniform(1000, 16)               # one number for each

Streams of different names, and of different seeds, are independent. All numbers are drawn on the CPU, so that every
device gets the same. Where PyTorch draws by itself, it is seeded by a number of such a stream: `seed_of`,
`torch_generator`, `fixed_noise`.

The generator is Philox 4x64-10 (Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011), in
NumPy's implementation.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, Self

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from arflows.core.runtime.processes import batch_rank

Distribution = Literal["normal", "uniform"]

_WORDS = 4
"""64-bit words that Philox computes from one value of its counter."""


class Noise:
    """The sequence of random numbers of one seed and stream.

    Number k is a function of seed, stream name and k. Examples take consecutive stretches of it: an example of shape
    ``(d_1, …, d_n)`` and index i has the numbers from i · d_1 · … · d_n on, in row-major order.

    Args:
        seed: The seed of the whole task, any integer.
        stream: The purpose of the numbers, such as ``"latents"``.
    """

    def __init__(self, seed: int, stream: str) -> None:
        digest = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=16).digest()
        self._key = int.from_bytes(digest, "little")

    def uniform(self, first: int, count: int, shape: tuple[int, ...] = ()) -> Float64[Tensor, "count *shape"]:
        """Uniform numbers in [0, 1) of examples ``first`` … ``first + count − 1``, multiples of 2⁻⁵³.

        Args:
            first: The index of the first example.
            count: The number of examples.
            shape: The shape of an example.
        """
        start, number = first * math.prod(shape), count * math.prod(shape)
        before = start % _WORDS
        generator = np.random.Generator(self._words_from(start - before))
        return torch.from_numpy(generator.random(before + number)[before:].reshape(count, *shape))

    def normal(self, first: int, count: int, shape: tuple[int, ...] = ()) -> Float64[Tensor, "count *shape"]:
        """Standard normal numbers of examples ``first`` … ``first + count − 1``; within ±8.3.

        They are the normal quantiles of the uniform numbers, each moved to the middle of its interval of length 2⁻⁵³.

        Args:
            first: The index of the first example.
            count: The number of examples.
            shape: The shape of an example.
        """
        uniform = self.uniform(first, count, shape)
        # 2u − 1 + 2⁻⁵³ without rounding: an odd multiple of 2⁻⁵³, hence never −1 or 1.
        return uniform.mul_(2).sub_(1).add_(2.0**-53).erfinv_().mul_(math.sqrt(2))

    def draw(
        self, distribution: Distribution, first: int, count: int, shape: tuple[int, ...], dtype: torch.dtype
    ) -> Float[Tensor, "count *shape"]:
        """Numbers of one of the two distributions in a given precision; uniform ones stay below 1.

        Args:
            distribution: Standard normal, or uniform in [0, 1).
            first: The index of the first example.
            count: The number of examples.
            shape: The shape of an example.
            dtype: The precision.
        """
        if distribution == "normal":
            return self.normal(first, count, shape).to(dtype)
        return self.uniform(first, count, shape).to(dtype).clamp_max_(1 - torch.finfo(dtype).eps / 2)

    def seed(self, index: int) -> int:
        """Number ``index`` of the sequence as an integer of 63 bits, which seeds another generator."""
        words = self._words_from(index - index % _WORDS).random_raw(index % _WORDS + 1)
        return int(words[-1]) >> 1

    def _words_from(self, start: int) -> np.random.Philox:
        """The generator in front of word ``start``, a multiple of `_WORDS`."""
        return np.random.Philox(key=self._key).advance(start // _WORDS)


def seed_of(seed: int, stream: str, index: int = 0) -> int:
    """The seed, of 63 bits, of a step's, batch's or example's noise: `Noise.seed` of that stream and index.

    Args:
        seed: The seed of the whole task, any integer.
        stream: The purpose of the numbers.
        index: The index of the step, batch or example.
    """
    return Noise(seed, stream).seed(index)


def torch_generator(seed: int, stream: str, index: int = 0) -> torch.Generator:
    """A generator of PyTorch on the CPU, seeded by `seed_of`.

    Args:
        seed: The seed of the whole task, any integer.
        stream: The purpose of the numbers.
        index: The index of the step, batch or example.
    """
    return torch.Generator().manual_seed(seed_of(seed, stream, index))


@contextmanager
def fixed_noise(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds PyTorch's global generators within the block, and restores their states afterwards.

    Args:
        seed: The seed.
        device: The device drawn on, beside the CPU.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class PerExample(torch.Generator):
    """Source of randomness with separate numbers for every example, on the CPU.

    The latents that a base density draws for an example with it depend on the seed and on the example's index among all
    that are sampled: not on the size of its batch, nor on the process that draws it. For all other purposes it is a
    generator of PyTorch on the CPU that follows from the seed and the index of the first example.

    Args:
        seed: The seed of the whole task.
        first: The index of the first example of the batch.
    """

    def __new__(cls, seed: int, first: int) -> Self:
        """Creates the generator of PyTorch, which takes no seed."""
        return super().__new__(cls)

    def __init__(self, seed: int, first: int) -> None:
        self.manual_seed(seed_of(seed, "batch", first))
        self._seed, self._first = seed, first
        self._draws = 0

    def draw(
        self, distribution: Distribution, count: int, shape: tuple[int, ...], dtype: torch.dtype
    ) -> Float[Tensor, "count *shape"]:
        """Noise of the next ``count`` examples from the first on; every call draws from its own stream.

        Args:
            distribution: Standard normal, or uniform in [0, 1).
            count: The number of examples.
            shape: The shape of an example.
            dtype: The precision.
        """
        noise = Noise(self._seed, f"examples, draw {self._draws}")
        self._draws += 1
        return noise.draw(distribution, self._first, count, shape, dtype)


def noise_rows(draw: Callable[..., Tensor], shape: tuple[int, ...], **options: Any) -> Tensor:
    """Noise of a training batch: this process's rows of the noise that a single process would draw.

    Args:
        draw: `torch.rand` or `torch.randn`.
        shape: The shape of this process's batch, (batch, …).
        **options: More arguments of ``draw``; those that are None are left out, which `torch.export` requires.
    """
    options = {name: value for name, value in options.items() if value is not None}
    shard = batch_rank()
    if shard.count == 1:
        return draw(shape, **options)
    return draw((shape[0] * shard.count, *shape[1:]), **options)[shard.rank :: shard.count]
