// Fully connected layers in half precision, and their weights.

#include "half_product.h"
#include "layer_norm.h"
#include "linear.h"
#include "unpack.h"

// Returns 2 if the processor multiplies tiles of bfloat16, 1 if it multiplies vectors of them, 0 if
// the kernels of half precision are missing.
extern "C" long half_products() { return choose_half_products(); }

#ifdef HALF_KERNELS

// Computes what `linear` does, with weights and rows in bfloat16. K is even.
extern "C" bool half_linear(const float *x, long n, long k, long n_outputs, long n_weights,
                            const uint16_t *const *weights, const float *const *biases,
                            float *const *outs, const float *gain, const float *offset,
                            long is_layer_norm, float eps, long picture, const float *residual,
                            long gated, long cores) {
  return try_run([&] {
    std::vector<Output<HalfProduct>> outputs;
    for (int i = 0; i < n_weights; i++) outputs.push_back({weights[i], biases[i], outs[i]});
    auto fill = [=](long i, uint32_t *row) {
      const float *from = x + i * k;
      if (!gain) return round_row(from, k, row);
      Buffer normalized(k);
      const long b = i / picture * k;
      if (is_layer_norm)
        layer_norm(from, k, gain, offset, eps, normalized);
      else
        normalize_pixel(from, k, gain + b, offset + b, NONE, normalized);
      round_row(normalized, k, row);
    };
    Linear product(n, k, n_outputs, outputs, residual, gated != 0, fill);
    product.run(cores_for(1.0 * n * k * n_outputs * n_weights, cores));
  });
}

// Computes what `dequantize` does, in bfloat16.
extern "C" bool half_dequantize(const uint32_t *packed, long rows, long columns, long bits,
                                long group, const float *scales, const float *offsets,
                                uint16_t *out, long cores) {
  return try_run([&] {
    const Packed weights{packed, rows, columns, bits, group, scales, offsets};
    weights.each_group(cores, [&](long first, long g, float *numbers) {
      weights.unpack(first, g, numbers);
      round_halves(numbers, group, out + first);
    });
  });
}

#endif
