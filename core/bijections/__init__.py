"""Invertible maps with tractable log-determinants, one file for each family."""

from arflows.core.bijections.autoregressive import Autoregressive
from arflows.core.bijections.base import Bijection, Chain, Inverse
from arflows.core.bijections.coupling import Coupling
from arflows.core.bijections.elementwise import Affine, Elementwise, LocationScale, Pointwise, TanhAffine
from arflows.core.bijections.linear import InvertibleConv1x1, NormalizedConv1x1, Permutation, Squeeze
from arflows.core.bijections.logit import Logit
from arflows.core.bijections.masks import ChannelMask, CheckerboardMask, Mask
from arflows.core.bijections.multiscale import Multiscale
from arflows.core.bijections.normalization import ActNorm, BatchNorm, initialize
from arflows.core.bijections.spline import RationalQuadraticSpline

__all__ = [
    "ActNorm",
    "Affine",
    "Autoregressive",
    "BatchNorm",
    "Bijection",
    "Chain",
    "ChannelMask",
    "CheckerboardMask",
    "Coupling",
    "Elementwise",
    "Inverse",
    "InvertibleConv1x1",
    "LocationScale",
    "Logit",
    "Mask",
    "Multiscale",
    "NormalizedConv1x1",
    "Permutation",
    "Pointwise",
    "RationalQuadraticSpline",
    "Squeeze",
    "TanhAffine",
    "initialize",
]
