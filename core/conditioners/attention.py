"""Attention that can be transformed."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from arflows.core.runtime.torch_compat import is_transformed


def attention(
    query: Float[Tensor, "batch heads tokens head"],
    key: Float[Tensor, "batch heads seen head"],
    value: Float[Tensor, "batch heads seen head"],
    mask: Tensor | None = None,
    causal: bool = False,
) -> Float[Tensor, "batch heads tokens head"]:
    """Compute `scaled_dot_product_attention`, under transforms of torch.func by plain operations.

    PyTorch's fused kernels have neither forward-mode nor second derivatives.

    Args:
        query: queries.
        key: keys of the tokens that may be attended to.
        value: values of these tokens.
        mask: true where a query may attend to a key; None for everywhere.
        causal: let each token attend to itself and those before it only.

    >>> import torch
    >>> tokens = torch.randn(2, 1, 5, 4)
    >>> attention(tokens, tokens, tokens, causal=True).shape
    torch.Size([2, 1, 5, 4])
    """
    if not is_transformed():
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
