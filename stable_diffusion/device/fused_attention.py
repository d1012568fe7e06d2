"""Which attention each backend computes without storing its scores, one for each query and key.

This is what `use_fallback` says in MLX's `scaled_dot_product_attention.cpp`, for Metal and for
CUDA. Other attention is a product, a softmax and a product, whose scores are stored.
"""

import mlx.core as mx

from . import backend, cpu_kernels
from .backend import Backend

METAL_WIDTHS = (64, 72, 80, 96, 128)  # of heads; 192 and 256 for few queries only
CUDNN_MULTIPLE, CUDNN_MAX_WIDTH = 8, 128
CUDNN_TYPES = (mx.float16, mx.bfloat16)  # from Ampere on

# With fewer keys, padding the heads would take as long as storing the scores: 77 of a text.
MIN_PADDED_KEYS = 257


def is_fused(head_width: int, dtype: mx.Dtype) -> bool:
    """Return whether MLX's own attention stores no scores for heads of this width."""
    match backend.find_backend():
        case Backend.METAL:
            return head_width in METAL_WIDTHS
        case Backend.CUDA:
            is_multiple = head_width % CUDNN_MULTIPLE == 0
            return dtype in CUDNN_TYPES and is_multiple and head_width <= CUDNN_MAX_WIDTH
    return False


def choose_width(head_width: int, n_keys: int) -> int:
    """Return the width to pad heads to with zeros, so that Metal's attention stores no scores."""
    if backend.find_backend() is Backend.METAL and n_keys >= MIN_PADDED_KEYS:
        return min((width for width in METAL_WIDTHS if width >= head_width), default=head_width)
    return head_width


def stores_scores(head_width: int, n_keys: int, dtype: mx.Dtype) -> bool:
    """Return whether `attend` stores the scores of heads of this width, on this machine."""
    if cpu_kernels.is_used():
        return False
    return not is_fused(choose_width(head_width, n_keys), dtype)
