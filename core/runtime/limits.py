"""Limits on building a model from an untrusted config.

A config of a few bytes can ask for a model of any size. Its arguments are first compared with the annotations of the
constructor. While the constructor then runs, every tensor is measured before memory is allocated for it, and modules,
tensors and computing time are counted: a model may be about as large as the file of its weights, no larger.
"""

import inspect
import math
import reprlib
import threading
import time
import types
import typing
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from arflows.core.runtime.errors import UserError
from arflows.core.runtime.signatures import default_arguments

LARGEST_SIZE = 1_000_000
"""Largest whole number among the arguments of a model."""

SPARE_BYTES = 64 << 20
"""Bytes that tensors may take beyond those of the weights: masks and tables that are not saved."""

LONGEST_SHAPE = 16
"""Longest list that is taken for a shape, not for data, among the arguments of a tensor function."""

SECONDS, SECONDS_PER_GIGABYTE = 3.0, 30.0
"""Computing time allowed for building a model, and in addition for each gigabyte of its weights."""


@dataclass(frozen=True)
class Header:
    """Summary of a file of weights, read without the weights.

    Attributes:
        path: The file.
        tensors: Number of tensors.
        numbers: Number of values in them.
        bytes: Memory that a model with such tensors takes, in single precision or wider.
    """

    path: Path
    tensors: int
    numbers: int
    bytes: int

    @classmethod
    def read(cls, path: Path) -> "Header":
        """Read the header of a safetensors file.

        Raises:
            UserError: If the file is missing, damaged or truncated.
        """
        if not path.is_file():
            raise UserError(f"{path} is missing: copy the model folder again, whole")
        tensors = numbers = size = 0
        try:
            with safe_open(path, framework="pt") as file:
                for name in sorted(file.keys()):
                    part = file.get_slice(name)
                    count = math.prod(part.get_shape())
                    wide = part.get_dtype() in ("F64", "I64", "U64", "C64")
                    tensors, numbers, size = tensors + 1, numbers + count, size + count * (8 if wide else 4)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged or truncated ({error}): copy the model folder again") from error
        return cls(path, tensors, numbers, size)


# ------------------------------------------------------------------------------------------------------- arguments


def check_arguments(kind: type, arguments: Mapping[str, Any]) -> None:
    """Make sure that values read from JSON can be the arguments of a class, by its constructor's annotations.

    Whole numbers must lie between 0 and `LARGEST_SIZE`, unless the argument's own default is negative; other numbers
    must be finite.

    Args:
        kind: The class.
        arguments: The values by name.

    Raises:
        UserError: If an argument is unknown, missing, of another type or out of range; the sentence names it.
    """
    parameters = _parameters(kind)
    if unknown := [name for name in arguments if name not in parameters]:
        raise UserError(
            f"this model is of another domain or of a newer version, for a {kind.__name__} here has no "
            f"{', '.join(unknown)} but {', '.join(parameters)}: use it with the verbs of its own domain"
        )
    for name, value in arguments.items():
        hint, default = parameters[name]
        lowest = min(0, default) if isinstance(default, int | float) else 0
        if not _fits(value, hint, lowest):
            raise UserError(f"{name} must be {_described(hint, lowest)}, got {reprlib.repr(value)}")
    required = [name for name, (_, default) in parameters.items() if default is inspect.Parameter.empty]
    if missing := [name for name in required if name not in arguments]:
        raise UserError(f"the argument {missing[0]} is missing")


def _parameters(kind: type) -> dict[str, tuple[Any, Any]]:
    """Annotation and default of each argument, including those that a constructor passes on as ``**kwargs``."""
    found: dict[str, tuple[Any, Any]] = {}
    for parent in kind.__mro__:
        if "__init__" not in vars(parent):
            continue
        constructor = vars(parent)["__init__"]
        hints, more = typing.get_type_hints(constructor), False
        for parameter in list(inspect.signature(constructor).parameters.values())[1:]:
            if parameter.kind is parameter.VAR_KEYWORD:
                more = True
            elif parameter.kind is not parameter.VAR_POSITIONAL:
                inherited = parameter.default if not found or parameter.default is not parameter.empty else None
                found.setdefault(parameter.name, (hints.get(parameter.name, Any), inherited))
        if not more:
            break
    return {name: each for name, each in found.items() if name in default_arguments(kind)}


def _fits(value: Any, hint: Any, lowest: float) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, each, lowest) for each in inner)
    if origin is typing.Literal:
        return any(type(value) is type(each) and value == each for each in inner)
    if hint in (None, type(None)):
        return value is None
    if hint in (bool, str):
        return isinstance(value, hint)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= LARGEST_SIZE
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
    if isinstance(origin or hint, type) and issubclass(origin or hint, Mapping):
        return isinstance(value, dict) and all(_fits(each, Any, lowest) for each in value.values())
    if isinstance(origin or hint, type) and issubclass(origin or hint, Sequence):
        if not isinstance(value, list | tuple):
            return False
        if origin is tuple and inner and inner[-1] is not Ellipsis:
            return len(value) == len(inner) and all(map(_fits, value, inner, [lowest] * len(inner)))
        return all(_fits(each, inner[0] if inner else Any, lowest) for each in value)
    if isinstance(value, dict):
        return all(_fits(each, hint, lowest) for each in value.values())
    if isinstance(value, list | tuple):
        return all(_fits(each, hint, lowest) for each in value)
    if isinstance(value, float):
        return abs(value) < math.inf
    return not isinstance(value, int) or abs(value) <= LARGEST_SIZE


def _described(hint: Any, lowest: float) -> str:
    origin, inner = typing.get_origin(hint), [each for each in typing.get_args(hint) if each is not Ellipsis]
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_described(each, lowest) for each in inner)
    if origin is typing.Literal:
        return " or ".join(map(repr, inner))
    if isinstance(origin, type) and issubclass(origin, Sequence):
        each = " or ".join(dict.fromkeys(_described(part, lowest) for part in inner))
        return f"a list, each value {each}"
    words = {
        None: "null",
        type(None): "null",
        bool: "true or false",
        str: "a text",
        int: f"a whole number from {lowest:.0f} to {LARGEST_SIZE:,}",
        float: "a finite number",
    }
    return words.get(hint, f"settings without numbers beyond {LARGEST_SIZE:,}")


# ------------------------------------------------------------------------------------------------------- building


class TooLarge(Exception):
    """A model is larger than the file of its weights."""


@contextmanager
def limited_to(header: Header) -> Iterator[None]:
    """Stop building a model in the block if it becomes larger than its weights.

    Counts what this thread builds.

    Raises:
        TooLarge: At the tensor, module or time that exceeds a limit, before memory is allocated.
    """
    allowance = _Allowance(header)
    handles = [
        hooks.register_module_parameter_registration_hook(allowance.register),
        hooks.register_module_buffer_registration_hook(allowance.register),
        hooks.register_module_module_registration_hook(allowance.register),
    ]
    try:
        with allowance:
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Allowance(TorchFunctionMode):
    """Measures the results of tensor functions on the meta device, which takes no memory, before they are computed."""

    def __init__(self, header: Header) -> None:
        super().__init__()
        self.most_bytes = header.bytes + SPARE_BYTES
        self.registrations = 2_000 + 40 * header.tensors
        self.deadline = time.thread_time() + SECONDS + SECONDS_PER_GIGABYTE * header.bytes / 1e9
        self.thread = threading.get_ident()
        self.bytes = 0
        self.known: set[int] = set()

    def __torch_function__(
        self, function: Callable[..., Any], kinds: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        self._look_at_the_clock()
        if 8 * _largest_result(function, args, kwargs) > self.most_bytes:
            for tensor in tree_leaves(_measured(function, args, kwargs)):
                if isinstance(tensor, Tensor) and tensor.numel() * tensor.element_size() > self.most_bytes:
                    raise TooLarge
        return function(*args, **kwargs)

    def register(self, module: nn.Module, name: str, value: nn.Module | Tensor | None) -> None:
        """Count a part of a module, and the memory of tensors for as long as they live.

        Args:
            module: Module that receives the part.
            name: Name of the part in the module.
            value: Parameter, buffer or submodule.
        """
        if threading.get_ident() != self.thread:
            return
        self._look_at_the_clock()
        self.registrations -= 1
        if isinstance(value, Tensor) and id(value) not in self.known:
            size = value.numel() * value.element_size()
            self.known.add(id(value))
            self.bytes += size
            weakref.finalize(value, self._release, id(value), size)
        if self.bytes > self.most_bytes or self.registrations < 0:
            raise TooLarge

    def _release(self, identity: int, size: int) -> None:
        self.known.discard(identity)
        self.bytes -= size

    def _look_at_the_clock(self) -> None:
        if time.thread_time() > self.deadline:
            raise TooLarge


def _largest_result(function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> int:
    """Upper bound of the number of values in the result of a function, from the sizes of its arguments."""
    if function.__name__.endswith("_"):  # in place, or an attribute
        return 0
    most = math.prod(_sizes(args)) * math.prod(_sizes(list(kwargs.values())))
    return most**2 if function is torch.eye else most


def _sizes(values: Sequence[Any]) -> Iterator[int]:
    for value in values:
        if isinstance(value, Tensor):
            yield max(1, value.numel())
        elif isinstance(value, list | tuple) and len(value) > LONGEST_SHAPE:
            yield len(value)  # data
        elif isinstance(value, list | tuple):
            yield from _sizes(value)
        elif isinstance(value, int | float) and abs(value) < math.inf:
            yield max(1, math.ceil(abs(value)))


def _measured(function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    """Result of a function on the meta device; None if it fails there."""

    def on_meta(value: Any) -> Any:
        return value.to("meta") if isinstance(value, Tensor) else value

    if kwargs.get("device") is not None:
        kwargs = {**kwargs, "device": "meta"}
    try:
        with torch.no_grad(), torch.device("meta"):
            return function(*tree_map(on_meta, args), **tree_map(on_meta, kwargs))
    except Exception:  # it depends on values, or will fail on the real tensors too
        return None
