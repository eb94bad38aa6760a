"""List of the flows for images.

Importing this module imports all of them, which `ImageFlow.from_pretrained` needs to find them by name.
"""

from arflows.vision.flowpp import FlowPlusPlus
from arflows.vision.glow import Glow
from arflows.vision.image_flow import ImageFlow
from arflows.vision.maf import MADE, MAF
from arflows.vision.realnvp import RealNVP
from arflows.vision.tarflow import TarFlow

__all__ = ["MADE", "MAF", "FlowPlusPlus", "Glow", "ImageFlow", "RealNVP", "TarFlow"]
