// 3×3 convolutions in float32: by Winograd's method if there are enough pixels.

#include "convolution.h"
#include "linear.h"

namespace {

// The points 0, ±1 and ±2, and the transform of weights along one side, see `Transforms`.
struct WholePoints {
  static constexpr float NEAR = 1, FAR = 2, BOTH = 2;

  template <int S, int T>
  INLINE void transform_weight(const Vec *g, Vec *u) {
    const Vec ends = (g[0] + g[2 * S]) * (-1.0f / 6), middle = g[S] * (1.0f / 6);
    const Vec even = g[0] * (1.0f / 24) + g[2 * S] * (1.0f / 6), odd = g[S] * (1.0f / 12);
    u[0] = g[0] * 0.25f;
    u[T] = ends - middle;
    u[2 * T] = ends + middle;
    u[3 * T] = even + odd;
    u[4 * T] = even - odd;
    u[5 * T] = g[2 * S];
  }
};

// Computes the convolution as a direct sum.
void convolve(const Convolution<float> &c, int cores) {
  const long pixels = c.out_height * c.out_width, k = 9 * c.channels;
  auto fill = [&](long i, float *row) {
    const long b = i / pixels, y = i % pixels / c.out_width, x = i % c.out_width;
    for (int tap = 0; tap < 9; tap++, row += c.channels)
      if (const float *from = c.pixel(b, y, x, tap / 3, tap % 3))
        c.normalize(from, b, 0, c.channels, row);
      else
        std::fill_n(row, c.channels, 0.0f);
  };
  for (long b = 0; b < c.batch; b++) {
    const long n = c.bias_stride ? pixels : c.batch * pixels, size = b * pixels * c.n_outputs;
    const std::vector<Output<FloatProduct>> outputs{
        {c.weight, c.bias + b * c.bias_stride, c.out + size}};
    Linear product(n, k, c.n_outputs, outputs, c.residual ? c.residual + size : nullptr, false,
                   [&](long i, float *row) { fill(b * pixels + i, row); });
    product.run(cores_for(1.0 * n * k * c.n_outputs, cores));
    if (!c.bias_stride) break;
  }
}

}  // namespace

// Computes out [B, h, w, O] = convolution of activation(x · gain + offset), + bias, + residual.
//
// gain, offset and residual may be null. With stride 1 the result has the size of x, upsampled by
// `factor`; with stride 2, half of it. `before`: rows of padding above and columns to the left.
extern "C" bool conv3x3(const float *x, long batch, long height, long width, long channels,
                        const float *gain, const float *offset, long activation, long factor,
                        long stride, long before, const float *weight, long n_outputs,
                        const float *bias, long bias_per_picture, const float *residual, float *out,
                        long out_height, long out_width, long cores) {
  return try_run([&] {
    const Convolution<float> c{x, gain, offset, weight, bias, residual, out, batch, height, width,
                        channels, out_height, out_width, n_outputs, bias_per_picture ? n_outputs : 0,
                        activation, factor, stride, before};
    const Winograd<FloatProduct, WholePoints> by_tiles(c);
    if (by_tiles.is_faster())
      by_tiles.run(cores_for(4.0 * batch * out_height * out_width * channels * n_outputs, cores));
    else
      convolve(c, cores);
  });
}
