// Functions that are applied to each number.
#pragma once

#include "vectors.h"

// The same numbers as in `cpu_kernels.Activation`.
enum Activation { NONE, SILU, GELU, QUICK_GELU };

INLINE Vec apply_activation(Vec x, int activation) {
  switch (activation) {
    case SILU: return silu(x);
    case GELU: return gelu(x);
    case QUICK_GELU: return silu(x, 1.702f);
    default: return x;
  }
}

// Computes out[i] = function(x[i], more[i] …) for i < n, eight at a time, padded with zeros.
template <class Function, class... More>
INLINE void each(long n, const float *x, float *out, Function function, const More *...more) {
  long i = 0;
  for (; i + LANES <= n; i += LANES) store(out + i, function(load(x + i), load(more + i)...));
  if (i < n)
    store_some(out + i, function(load_some(x + i, n - i), load_some(more + i, n - i)...), n - i);
}

// Computes out = activation(x · gain + offset), all [channels]; copies x if gain is null.
INLINE void normalize_pixel(const float *x, long channels, const float *gain, const float *offset,
                            int activation, float *out) {
  if (!gain)
    std::memcpy(out, x, channels * sizeof(float));
  else if (activation == NONE)
    each(channels, x, out, [](Vec v, Vec g, Vec o) { return v * g + o; }, gain, offset);
  else
    each(
        channels, x, out,
        [=](Vec v, Vec g, Vec o) { return apply_activation(v * g + o, activation); }, gain, offset);
}
