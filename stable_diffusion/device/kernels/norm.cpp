// GroupNorm, and functions that are applied to each number.

#include "activations.h"

namespace {

// Count and mean of some numbers, and the sum of their squared distances from the mean.
struct Moments {
  double n = 0, mean = 0, squares = 0;

  // Adds the moments of other numbers.
  void add(double other_n, double other_mean, double other_squares) {
    const double total = n + other_n, distance = other_mean - mean;
    mean += distance * other_n / total;
    squares += other_squares + distance * distance * n * other_n / total;
    n = total;
  }
};

// Adds the pixels [n, C] to the moments of each channel. A few pixels at a time stay in the cache
// between the two passes, and are few enough to be summed in float32.
void add_pixels(const float *x, long n, long channels, Moments *moments) {
  const long step = 32;
  std::vector<float> mean(channels), squares(channels);
  for (long i = 0; i < n; i += step, x += step * channels) {
    const long rows = std::min(step, n - i);
    std::fill(mean.begin(), mean.end(), 0.0f);
    std::fill(squares.begin(), squares.end(), 0.0f);
    for (long r = 0; r < rows; r++)
      for (long c = 0; c < channels; c++) mean[c] += x[r * channels + c];
    for (long c = 0; c < channels; c++) mean[c] /= rows;
    for (long r = 0; r < rows; r++)
      for (long c = 0; c < channels; c++) {
        const float distance = x[r * channels + c] - mean[c];
        squares[c] += distance * distance;
      }
    for (long c = 0; c < channels; c++) moments[c].add(rows, mean[c], squares[c]);
  }
}

}  // namespace

// Computes gain and offset [B, C], so that x · gain + offset is the GroupNorm of x [B, N, C].
extern "C" bool group_norm(const float *x, long batch, long n, long channels, long groups,
                           const float *weight, const float *bias, float eps, float *gain,
                           float *offset, long cores) {
  return try_run([&] {
    const long step = std::min<long>(ceil_div(n, cores), 4096), n_parts = ceil_div(n, step);
    std::vector<Moments> parts(batch * n_parts * channels);
    parallel(cores, batch * n_parts, [&](int i) {
      const long b = i / n_parts, first = i % n_parts * step;
      add_pixels(x + (b * n + first) * channels, std::min(step, n - first), channels,
                 &parts[i * channels]);
    });
    const long width = channels / groups;
    for (long b = 0; b < batch; b++)
      for (long group = 0; group < groups; group++) {
        Moments all;
        for (long part = b * n_parts; part < (b + 1) * n_parts; part++)
          for (long c = group * width; c < (group + 1) * width; c++) {
            const Moments &one = parts[part * channels + c];
            all.add(one.n, one.mean, one.squares);
          }
        const double scale = 1 / std::sqrt(all.squares / all.n + eps);
        for (long c = group * width; c < (group + 1) * width; c++) {
          gain[b * channels + c] = weight[c] * scale;
          offset[b * channels + c] = bias[c] - all.mean * weight[c] * scale;
        }
      }
  });
}

// Computes out = activation(x · gain + offset) for x [B, N, C], gain and offset [B, C].
extern "C" bool normalize(const float *x, long batch, long n, long channels, const float *gain,
                          const float *offset, long activation, float *out, long cores) {
  return try_run([&] {
    const long step = std::max(1L, 65536 / channels), n_parts = ceil_div(n, step);
    parallel(cores, batch * n_parts, [&](int i) {
      const long b = i / n_parts, first = i % n_parts * step, last = std::min(first + step, n);
      for (long r = b * n + first; r < b * n + last; r++)
        normalize_pixel(x + r * channels, channels, gain + b * channels, offset + b * channels,
                        activation, out + r * channels);
    });
  });
}

// Computes out = activation(x) for n numbers.
extern "C" bool activate(const float *x, long n, long activation, float *out, long cores) {
  return try_run([&] {
    const long step = 65536;
    parallel(cores, ceil_div(n, step), [&](int i) {
      const long first = i * step, count = std::min(step, n - first);
      each(count, x + first, out + first, [&](Vec v) { return apply_activation(v, activation); });
    });
  });
}
