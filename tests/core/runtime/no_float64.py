"""Fake device without float64, such as Apple's mps: its tensors refuse the type."""

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

DEVICE = torch.device("mps")


class NoFloat64(torch.Tensor):
    """A tensor of the CPU that acts as one of a device without float64."""

    @property
    def device(self):
        return DEVICE

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        moved = None
        if function is torch.Tensor.cpu:
            moved = torch.device("cpu")
        elif function is torch.Tensor.to:
            targets = [value for value in (*args[1:], kwargs.get("device")) if isinstance(value, (str, torch.device))]
            moved = torch.device(targets[0]) if targets else None
            args = tuple(a for a in args if not isinstance(a, (str, torch.device)))
            kwargs.pop("device", None)
        elif "device" in kwargs and torch.device(kwargs["device"]) == DEVICE:
            kwargs["device"] = "cpu"
        if function is torch.Tensor.to and len(args) == 1 and not kwargs:
            result = args[0]
        else:
            result = super().__torch_function__(function, types, args, kwargs)
        if moved is not None and moved.type == "cpu":
            return result.as_subclass(torch.Tensor)

        def check(value):
            if isinstance(value, torch.Tensor) and value.dtype in (torch.float64, torch.complex128):
                raise TypeError("this device does not support float64")
            return value

        return tree_map(check, result)


class Factories(TorchFunctionMode):
    """While it is active, tensors are made on the device too."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if kwargs.get("device") is not None and torch.device(kwargs["device"]) == DEVICE and not types:
            made = function(*args, **{**kwargs, "device": "cpu"}).as_subclass(NoFloat64)
            return made + 0 if made.dtype == torch.float64 else made  # which is refused
        return function(*args, **kwargs)


def on_device(value):
    """A tensor, or a module with its parameters and buffers, as though on the device."""
    if isinstance(value, nn.Module):
        for module in value.modules():
            for kind in (module._parameters, module._buffers):
                for name, tensor in kind.items():
                    if tensor is not None:
                        kind[name] = tensor.detach().as_subclass(NoFloat64)
        return value
    return value.as_subclass(NoFloat64)
