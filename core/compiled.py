"""Loops that numba compiles at their first use, a second or two each, kept on disk."""

from collections.abc import Callable
from typing import Any, TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., Any])

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "nsz"}}
"""Sums keep their order and numbers that are not numbers stay none."""


def compiled(function: Function) -> Function:
    """The function, compiled for the types it is called with."""
    try:
        return numba.njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # no folder that compiled code could be kept in may be written
        return numba.njit(**OPTIONS)(function)
