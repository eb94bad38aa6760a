"""Invertible maps with tractable log-determinants, one file for each family."""

from arflows.core.bijections.autoregressive import Autoregressive
from arflows.core.bijections.base import Bijection
from arflows.core.bijections.chain import Chain, Inverse, recompute
from arflows.core.bijections.coupling import Coupling
from arflows.core.bijections.elementwise import (
    Affine,
    Elementwise,
    ElementwiseChain,
    LocationScale,
    Pointwise,
    TanhAffine,
)
from arflows.core.bijections.johnson import JohnsonSU
from arflows.core.bijections.linear import Flatten, InvertibleConv1x1, NormalizedConv1x1, Permutation, Squeeze
from arflows.core.bijections.logit import Logit
from arflows.core.bijections.masks import ChannelMask, CheckerboardMask, ColumnMask, Mask
from arflows.core.bijections.mixture import GaussianMixture, LogisticMixture, MixtureCDF
from arflows.core.bijections.multiscale import Multiscale
from arflows.core.bijections.normalization import (
    ActNorm,
    BatchNorm,
    InitializedFromData,
    Standardize,
    initialize,
    mark_initialized,
)
from arflows.core.bijections.piecewise import PiecewiseLinearCDF
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
    "ColumnMask",
    "Coupling",
    "Elementwise",
    "ElementwiseChain",
    "Flatten",
    "GaussianMixture",
    "InitializedFromData",
    "Inverse",
    "InvertibleConv1x1",
    "JohnsonSU",
    "LocationScale",
    "LogisticMixture",
    "Logit",
    "Mask",
    "MixtureCDF",
    "Multiscale",
    "NormalizedConv1x1",
    "Permutation",
    "PiecewiseLinearCDF",
    "Pointwise",
    "RationalQuadraticSpline",
    "Squeeze",
    "Standardize",
    "TanhAffine",
    "initialize",
    "mark_initialized",
    "recompute",
]
