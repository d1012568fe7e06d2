// Attention in float32.

#include "attention.h"

// Computes the attention out [B, L, H, D] of queries [B, L, H, D] to keys and values [B, M, H, D].
extern "C" bool attention(const float *queries, const float *keys, const float *values, float *out,
                          long batch, long length, long n_keys, long n_heads, long width,
                          float scale, long causal, long cores) {
  return try_run([&] {
    const double products = 2.0 * batch * n_heads * length * n_keys * width;
    Attention<FloatProduct> attention(queries, keys, values, out, batch, length, n_keys, n_heads,
                                      width, scale, causal != 0);
    attention.run(cores_for(products, cores));
  });
}
