// Fully connected layers, with the norm before and the residual after them.

#include "layer_norm.h"
#include "linear.h"

// Computes outs[i] [N, O] = norm(x [N, K]) · weights[i]ᵀ + biases[i] + residual.
//
// Biases and residual may be null. gain and offset: null without a norm; [K] each of a layer norm;
// [B, K] each of a group norm, with `picture` rows for each picture. gated: see `Linear`.
extern "C" bool linear(const float *x, long n, long k, long n_outputs, long n_weights,
                       const float *const *weights, const float *const *biases, float *const *outs,
                       const float *gain, const float *offset, long is_layer_norm, float eps,
                       long picture, const float *residual, long gated, long cores) {
  return try_run([&] {
    std::vector<Output<FloatProduct>> outputs;
    for (int i = 0; i < n_weights; i++) outputs.push_back({weights[i], biases[i], outs[i]});
    auto fill = [=](long i, float *row) {
      const float *from = x + i * k;
      if (gain && is_layer_norm) return layer_norm(from, k, gain, offset, eps, row);
      const long b = gain ? i / picture * k : 0;
      normalize_pixel(from, k, gain ? gain + b : gain, offset + b, NONE, row);
    };
    Linear product(n, k, n_outputs, outputs, residual, gated != 0, fill);
    product.run(cores_for(1.0 * n * k * n_outputs * n_weights, cores));
  });
}
