// The norm of rows.
#pragma once

#include "activations.h"

// Computes out = gain · (x - mean) / deviation + offset, all [k].
static inline void layer_norm(const float *x, long k, const float *gain, const float *offset,
                              float eps, float *out) {
  Vec sum = {}, squares = {};
  each(k, x, out, [&](Vec v) { return sum += v, v; });
  float mean = 0;
  for (int i = 0; i < LANES; i++) mean += sum[i] / k;
  for (long i = 0; i < k; i++) out[i] = x[i] - mean;
  each(k, out, out, [&](Vec v) { return squares += v * v, v; });
  float variance = 0;
  for (int i = 0; i < LANES; i++) variance += squares[i] / k;
  const float scale = 1 / std::sqrt(variance + eps);
  each(k, out, out, [&](Vec v, Vec g, Vec o) { return v * scale * g + o; }, gain, offset);
}
