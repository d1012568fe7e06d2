"""Metal's 3×3 convolution, by Winograd's method on tiles of 6×6 (arXiv:1509.09308).

It stores transforms of its input, in the type of the input, which are up to 45 times as large. In
float16, which ends at 65,504, they overflow if the input exceeds about 1,300.
"""

import mlx.core as mx

from . import backend

# A power of two, so that dividing by it and multiplying the result with it changes no digit,
# except of numbers below 0.001, whose last digits are lost.
INPUT_SCALE = 16


def choose_input_scale(dtype: mx.Dtype) -> int:
    """Return the number to divide the input by, if no norm comes before the convolution."""
    is_metal = backend.find_backend() is backend.Backend.METAL
    return INPUT_SCALE if is_metal and dtype == mx.float16 else 1
