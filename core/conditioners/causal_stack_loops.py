"""What a `CausalStack` does between its products, on CPUs: each in one compiled pass over memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from arflows.core.runtime.numba_loops import compiled
from arflows.core.runtime.numba_math import exp_minus_twice, narrow, wide
from arflows.core.runtime.threads import in_shares

_GROUPS = 8
"""A thread takes no fewer groups of steps."""


def gate(
    gates: Float[Tensor, "rows 2*channels"],
    added: Float[Tensor, "groups batch 2*channels"],
    out: Float[Tensor, "rows channels"],
) -> None:
    """Writes 2 tanh(a) σ(2b), where (a, b) are gates + added; rows are steps times the batch, steps before batch."""
    _in_shares(_gate, gates, added, out)


def gate_backward(
    gates: Float[Tensor, "rows 2*channels"],
    added: Float[Tensor, "groups batch 2*channels"],
    of_out: Float[Tensor, "rows channels"],
    out: Float[Tensor, "rows channels"],
    of_gates: Float[Tensor, "rows 2*channels"],
    of_added: Float[Tensor, "groups batch 2*channels"],
) -> None:
    """From the gradient of what `gate` wrote: writes that once more, its gates' gradient, and adds to that of added."""
    _in_shares(_gate_backward, gates, added, of_out, out, of_gates, of_added)


def _in_shares(loop: Any, *tensors: Tensor) -> None:
    one = np.float64(1) if tensors[0].dtype == torch.float64 else np.float32(1)
    arrays = [
        tensor.view(torch.int16).numpy().view(np.uint16) if tensor.dtype == torch.bfloat16 else tensor.numpy()
        for tensor in (tensor.detach() for tensor in tensors)
    ]
    in_shares(loop, tensors[1].shape[0], _GROUPS, one, *arrays)


@compiled
def _gate(share: int, start: int, stop: int, one: Any, gates: Any, added: Any, out: Any) -> None:
    channels, batch = np.uintp(out.shape[1]), added.shape[1]
    repeat = len(gates) // (len(added) * batch)
    for group in range(start, stop):
        for step in range(repeat):
            for example in range(batch):
                row = (group * repeat + step) * batch + example
                own, more, into = gates[row], added[group, example], out[row]
                for channel in range(channels):
                    e = exp_minus_twice(wide(own[channel]) + wide(more[channel]))
                    f = exp_minus_twice(wide(own[channels + channel]) + wide(more[channels + channel]))
                    into[channel] = narrow((one + one) * (one - e) / ((one + e) * (one + f)), own[channel])


@compiled
def _gate_backward(
    share: int, start: int, stop: int, one: Any, gates: Any, added: Any, of_out: Any, out: Any, of_gates: Any,
    of_added: Any,
) -> None:  # fmt: skip
    channels, batch = np.uintp(out.shape[1]), added.shape[1]
    repeat = len(gates) // (len(added) * batch)
    for group in range(start, stop):
        for step in range(repeat):
            for example in range(batch):
                row = (group * repeat + step) * batch + example
                own, more, given, again = gates[row], added[group, example], of_out[row], out[row]
                into, total = of_gates[row], of_added[group, example]
                for channel in range(channels):
                    e = exp_minus_twice(wide(own[channel]) + wide(more[channel]))
                    f = exp_minus_twice(wide(own[channels + channel]) + wide(more[channels + channel]))
                    once = one / ((one + e) * (one + f))
                    tanh, twice = (one - e) * (one + f) * once, (one + one) * (one + e) * once
                    again[channel] = narrow(tanh * twice, own[channel])
                    scaled = wide(given[channel]) * twice
                    of_signal, of_gate = scaled * (one - tanh * tanh), scaled * tanh * (one + one - twice)
                    into[channel] = narrow(of_signal, own[channel])
                    into[channels + channel] = narrow(of_gate, own[channel])
                    total[channel] += of_signal
                    total[channels + channel] += of_gate
