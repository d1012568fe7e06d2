"""Quantize weights on all cores of a Linux CPU, to the same bits as MLX does on one."""

import mlx.core as mx

from . import cpu_kernels, kernel_calls

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
KINDS = (mx.float32, mx.float16, mx.bfloat16)  # numbered as in `kernels/quantize.cpp`

Quantized = tuple[mx.array, mx.array, mx.array]  # packed weights, scales, offsets


def quantize_weight(
    weight: mx.array, group_size: int, bits: int, dtype: mx.Dtype | None = None
) -> Quantized:
    """Return `mx.quantize(weight.astype(dtype), group_size, bits)`, by a kernel if possible.

    The kernel computes at once, and needs no copy of the weight in float32.

    Args:
        weight: [..., D]; D is a multiple of `group_size`.
        dtype: of the scales and offsets; None for that of the weight. If the weight has fewer bits,
            it is quantized as it is, which gives the same.
    """
    dtype = weight.dtype if dtype is None else dtype
    if dtype != mx.float32:  # the weight is rounded to it first
        weight = weight.astype(dtype)
    if cpu_kernels.is_used() and weight.dtype in KINDS:
        try:
            return _quantize_by_kernel(weight, group_size, bits, dtype)
        except kernel_calls.Unsupported:
            pass
    return mx.quantize(weight.astype(dtype), group_size, bits)


def _quantize_by_kernel(weight: mx.array, group_size: int, bits: int, dtype: mx.Dtype) -> Quantized:
    """Return the packed weight, scales and offsets, computed now.

    Raises:
        Unsupported: if the kernel cannot compute them.
    """
    *rows, width = weight.shape
    if group_size not in GROUP_SIZES or bits not in BITS or width % group_size:
        raise kernel_calls.Unsupported
    packed = mx.empty((*rows, width * bits // 32), mx.uint32)
    scales, offsets = (mx.empty((*rows, width // group_size)) for _ in range(2))
    numbers = weight if weight.dtype == mx.float32 else mx.view(weight, mx.uint16)
    kind, n_groups = KINDS.index(weight.dtype), weight.size // group_size
    arrays = packed, scales, offsets
    kernel_calls.run("quantize", numbers, kind, n_groups, group_size, bits, *arrays)
    return packed, scales.astype(dtype), offsets.astype(dtype)
