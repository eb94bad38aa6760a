"""Named model sizes."""

from __future__ import annotations

from typing import Any

PREDICTIVE_PRESETS: dict[str, dict[str, Any]] = {
    "c128": {},
    # For slow CPUs.
    "c64": {"channels": 64, "dilations": (1, 2, 4, 8, 16, 32), "width": 32},
    "c32": {"channels": 32, "dilations": (1, 2, 4, 8, 16, 32), "width": 32, "order": 32},
}
"""Sizes of `PredictiveFlow`, named by the channels of its first network."""

PRESETS: dict[str, dict[str, Any]] = {
    # Ping, Peng, Zhao & Song 2020 (arXiv:1912.01219), table 2.
    "h16_c64": {"height": 16, "channels": 64, "layers": 8, "flows": 8},
    "h16_c128": {"height": 16, "channels": 128, "layers": 8, "flows": 8},
    "h64_c64": {"height": 64, "channels": 64, "layers": 8, "flows": 8},
    # For CPUs: faster than real time on two cores.
    "h16_c32": {"height": 16, "channels": 32, "layers": 6, "flows": 6},
}


def height_dilations(height: int, layers: int, kernel: int) -> list[int]:
    """Return the dilation of each layer along the height, such that the receptive field covers all rows.

    The dilations are powers of two with the shortest period that covers all rows, or without repetition if none does:
    1, 1, … for the published heights of 8 and 16, and 1, 2, 4, 8, 16, 1, 2, 4 for 64.

    >>> height_dilations(32, layers=8, kernel=3)
    [1, 2, 4, 1, 2, 4, 1, 2]

    Args:
        height: Number of rows.
        layers: Number of layers.
        kernel: Kernel size along the height.
    """
    for cycle in range(1, layers + 1):
        dilations = [2 ** (layer % cycle) for layer in range(layers)]
        if 1 + (kernel - 1) * sum(dilations) >= height:
            break
    return dilations
