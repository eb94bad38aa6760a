"""Loops of many small kernels, captured once as a CUDA graph and replayed."""

from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

Loop = Callable[[Tensor, Tensor | None], tuple[Tensor, ...]]

# One captured graph a module, for the shapes it was last called with.
_captured: WeakKeyDictionary[nn.Module, "_Graph"] = WeakKeyDictionary()


class _Graph:
    """A loop captured on inputs of one shape."""

    def __init__(self, key: tuple[object, ...], loop: Loop, x: Tensor, context: Tensor | None) -> None:
        self.key = key
        self.x = x.clone()
        self.context = None if context is None else context.clone()
        side = torch.cuda.Stream(x.device)
        side.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(side):  # libraries set themselves up at their first use, which a capture cannot hold
            loop(self.x, self.context)
        torch.cuda.current_stream(x.device).wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.outputs = loop(self.x, self.context)

    def replay(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
        self.x.copy_(x)
        if self.context is not None and context is not None:
            self.context.copy_(context)
        self.graph.replay()
        return tuple(output.clone() for output in self.outputs)


def replayed(module: nn.Module, loop: Loop, x: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
    """Runs ``loop(x, context)`` on a CUDA device by replaying its graph, captured when the shapes are new.

    The loop must have static shapes and no synchronisation. It reads the parameters of ``module`` where they lie, so
    training goes on to count; parameters that moved lead to a new capture.
    """
    state = [*module.parameters(), *module.buffers()]
    key = (
        tuple(x.shape),
        x.dtype,
        x.device,
        None if context is None else (tuple(context.shape), context.dtype),
        tuple(tensor.data_ptr() for tensor in state),
    )
    graph = _captured.get(module)
    if graph is None or graph.key != key:
        _captured.pop(module, None)  # frees its memory before the next takes some
        graph = _captured[module] = _Graph(key, loop, x, context)
    return graph.replay(x, context)
