"""Loops of many small kernels, captured once as a CUDA graph and replayed."""

import weakref
from collections.abc import Callable, Iterator
from threading import local
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_PLAIN = (bool, int, float, complex, str, torch.dtype, torch.device)

Loop = Callable[[Tensor, Tensor | None], tuple[Tensor, ...]]


class _Captured(local):
    """Graphs of one thread, one for each module, because a replay writes into the buffers of its graph."""

    def __init__(self) -> None:
        self.graphs: WeakKeyDictionary[nn.Module, _Graph] = WeakKeyDictionary()


_captured = _Captured()


class _Graph:
    """A loop captured on inputs of one shape."""

    def __init__(self, key: list[object], loop: Loop, x: Tensor, context: Tensor | None) -> None:
        self.key = key
        self.x = x.clone()
        self.context = None if context is None else context.clone()
        side = torch.cuda.Stream(x.device)
        side.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(side):  # libraries initialise themselves at their first use, which a capture cannot hold
            loop(self.x, self.context)
        torch.cuda.current_stream(x.device).wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        # Other threads may go on working with CUDA while this one captures.
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.outputs = loop(self.x, self.context)

    def replay(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
        self.x.copy_(x)
        if self.context is not None and context is not None:
            self.context.copy_(context)
        self.graph.replay()
        return tuple(output.clone() for output in self.outputs)


def replayed(module: nn.Module, loop: Loop, x: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
    """Run ``loop(x, context)`` on a CUDA device by replaying its graph.

    The loop is captured at its first use in a thread, and again when the shapes, the stream, or anything else that
    decides what it computes has changed: autocast, the precision of products, training mode, parameters that moved, and
    the attributes of the modules, such as a guidance weight. New values of parameters in place need no capture.

    Args:
        module: The module whose loop it is; the loop may depend on no other state.
        loop: A function of static shapes without synchronisation.
        x: The batch.
        context: The context, or None.
    """
    key = [*_settings(x, context), *_state(module)]
    graph = _captured.graphs.get(module)
    if graph is None or not _same(graph.key, key):
        _captured.graphs.pop(module, None)  # frees its memory before the next takes some
        graph = _captured.graphs[module] = _Graph(key, loop, x, context)
    return graph.replay(x, context)


def _settings(x: Tensor, context: Tensor | None) -> Iterator[object]:
    """The inputs' form, and the modes of PyTorch that decide which kernels run."""
    for tensor in (x, context):
        yield None if tensor is None else (tuple(tensor.shape), tensor.dtype, tensor.device)
    yield torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else None
    yield torch.is_autocast_enabled(x.device.type), torch.get_autocast_dtype(x.device.type)
    yield torch.are_deterministic_algorithms_enabled()
    yield torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.fp32_precision


def _state(module: nn.Module) -> Iterator[object]:
    """State of a module and its submodules: parameters and buffers by address, other attributes by value."""
    for part in module.modules():
        yield type(part)
        for name, value in vars(part).items():
            if name in ("_parameters", "_buffers"):
                yield from (_entry(tensor) for tensor in value.values())
            elif name != "_modules":  # its modules are visited separately
                yield name
                yield _entry(value)


def _entry(value: Any) -> object:
    """A value to compare by `_same`, which does not change with the original, nor keeps a module alive."""
    if isinstance(value, Tensor):
        return value.data_ptr(), tuple(value.shape), value.stride(), value.dtype, value.device
    if isinstance(value, (list, tuple)):
        return type(value), tuple(map(_entry, value))
    if isinstance(value, dict):
        return dict, tuple((key, _entry(each)) for key, each in value.items())
    if isinstance(value, _PLAIN):
        return value
    try:
        return weakref.ref(value)  # the same object as long as the value lives
    except TypeError:
        return value


def _same(before: object, now: object) -> bool:
    """True if two entries are equal: plain values by comparison, all other objects by identity."""
    if isinstance(before, (list, tuple)):
        return type(before) is type(now) and len(before) == len(now) and all(map(_same, before, now))
    if isinstance(before, _PLAIN):
        return type(before) is type(now) and before == now
    return before is now
