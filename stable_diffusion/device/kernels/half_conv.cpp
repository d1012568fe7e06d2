// 3×3 convolutions in half precision.
//
// Winograd's method rounds transformed numbers, and its transforms enlarge these errors. With the
// usual points 0, ±1 and ±2 the result of F(4×4, 3×3) has a relative L2 error of 2.5e-2; with 0,
// ±2/3 and ±3/2 it has 1.1e-2 (near the least of all 0, ±a and ±b). The direct sum has 2.4e-3, but
// four times as many products.

#include "half_kernels.h"

#ifdef HALF_KERNELS

#include "convolution.h"
#include "half_product.h"
#include "linear.h"

namespace {

// The points 0, ±2/3 and ±3/2, and the transform of weights along one side, see `Transforms`.
struct HalfPoints {
  static constexpr float NEAR = 2.0f / 3, FAR = 3.0f / 2, BOTH = 1;
  static constexpr float NEAR2 = NEAR * NEAR, FAR2 = FAR * FAR;

  template <int S, int T>
  INLINE void transform_weight(const Vec *g, Vec *u) {
    // Of the polynomial g at each point, divided by the product of its distances from the others.
    constexpr float near = 1 / (2 * NEAR2 * (NEAR2 - FAR2)), far = 1 / (2 * FAR2 * (FAR2 - NEAR2));
    Vec even = near * g[0] + near * NEAR2 * g[2 * S], odd = near * NEAR * g[S];
    u[0] = g[0];
    u[T] = even + odd;
    u[2 * T] = even - odd;
    even = far * g[0] + far * FAR2 * g[2 * S], odd = far * FAR * g[S];
    u[3 * T] = even + odd;
    u[4 * T] = even - odd;
    u[5 * T] = g[2 * S];
  }
};

// Some output rows of some pictures: `n` rows each, from row `top` on.
struct Part {
  long picture, n_pictures, top, n;
};

// Convolves a part. Its input is normalized and rounded once, then read nine times.
void convolve_part(const Convolution<uint16_t> &c, const Part &part, int cores) {
  const long n_pairs = c.channels / 2, pixels = part.n * c.out_width;
  const long last = part.top + part.n - 1, end = (last * c.stride + 2 - c.before) / c.factor + 1;
  const long first_row = std::max(0L, (part.top * c.stride - c.before) / c.factor);
  const long n_rows = std::min(end, c.height) - first_row;
  PairBuffer rounded(part.n_pictures * n_rows * c.width * n_pairs);
  const int used = cores_for(9.0 * part.n_pictures * pixels * c.channels * c.n_outputs, cores);
  parallel(used, part.n_pictures * n_rows, [&](int i) {
    const long b = part.picture + i / n_rows, y = first_row + i % n_rows;
    Buffer pixel(c.channels);
    for (long j = 0; j < c.width; j++) {
      c.normalize(c.x + ((b * c.height + y) * c.width + j) * c.channels, b, 0, c.channels, pixel);
      round_row(pixel, c.channels, rounded + (i * c.width + j) * n_pairs);
    }
  });
  auto fill = [&](long i, uint32_t *row) {
    const long b = i / pixels, y = part.top + i % pixels / c.out_width, x = i % c.out_width;
    for (int tap = 0; tap < 9; tap++, row += n_pairs) {
      const long at = c.input(y, tap / 3, c.height), j = c.input(x, tap % 3, c.width);
      if (at < 0 || j < 0)
        std::fill_n(row, n_pairs, 0u);
      else
        std::copy_n(rounded + ((b * n_rows + at - first_row) * c.width + j) * n_pairs, n_pairs, row);
    }
  };
  const long at = (part.picture * c.out_height + part.top) * c.out_width * c.n_outputs;
  const std::vector<Output<HalfProduct>> outputs{
      {c.weight, c.bias + part.picture * c.bias_stride, c.out + at}};
  Linear product(part.n_pictures * pixels, 9 * c.channels, c.n_outputs, outputs,
                 c.residual ? c.residual + at : nullptr, false, fill);
  product.run(used);
}

// Computes the convolution as a direct sum.
void convolve(const Convolution<uint16_t> &c, int cores) {
  const long most = 4 << 20;  // pairs of the rounded input
  const long picture = c.height * c.width * c.channels / 2;
  if (picture > most) {  // some rows of a picture at a time
    const long n = std::max(1L, c.out_height * most / picture);
    for (long b = 0; b < c.batch; b++)
      for (long top = 0; top < c.out_height; top += n)
        convolve_part(c, {b, 1, top, std::min(n, c.out_height - top)}, cores);
    return;
  }
  const long n = c.bias_stride ? 1 : std::min(c.batch, most / picture);
  for (long b = 0; b < c.batch; b += n)
    convolve_part(c, {b, std::min(n, c.batch - b), 0, c.out_height}, cores);
}

}  // namespace

// Computes what `conv3x3` does, with weights and pixels in bfloat16. The channels are even.
extern "C" bool half_conv3x3(const float *x, long batch, long height, long width, long channels,
                             const float *gain, const float *offset, long activation, long factor,
                             long stride, long before, const uint16_t *weight, long n_outputs,
                             const float *bias, long bias_per_picture, const float *residual,
                             float *out, long out_height, long out_width, long cores) {
  return try_run([&] {
    const Convolution<uint16_t> c{x, gain, offset, weight, bias, residual, out, batch, height, width,
                        channels, out_height, out_width, n_outputs, bias_per_picture ? n_outputs : 0,
                        activation, factor, stride, before};
    const Winograd<HalfProduct, HalfPoints> by_tiles(c);
    // Tiles of AMX multiply so fast that the transforms would take longer than the products that
    // they save.
    if (choose_half_products() == 1 && by_tiles.is_faster())
      by_tiles.run(cores_for(4.0 * batch * out_height * out_width * channels * n_outputs, cores));
    else
      convolve(c, cores);
  });
}

#endif
