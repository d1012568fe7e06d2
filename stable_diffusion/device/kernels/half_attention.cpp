// Attention in half precision: products of bfloat16, the softmax in float32.

#include "half_kernels.h"

#ifdef HALF_KERNELS

#include "attention.h"
#include "half_product.h"

// Computes what `attention` does, with rounded queries, keys, values and weights.
extern "C" bool half_attention(const float *queries, const float *keys, const float *values,
                               float *out, long batch, long length, long n_keys, long n_heads,
                               long width, float scale, long causal, long cores) {
  return try_run([&] {
    const double products = 2.0 * batch * n_heads * length * n_keys * width;
    Attention<HalfProduct> attention(queries, keys, values, out, batch, length, n_keys, n_heads,
                                     width, scale, causal != 0);
    attention.run(cores_for(products, cores));
  });
}

#endif
