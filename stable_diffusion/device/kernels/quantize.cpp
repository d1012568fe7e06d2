// Quantization of weights as by `mx.quantize`, to the same bits.

#include "widen.h"

namespace {

enum Kind { FLOAT, HALF, BFLOAT };  // the types of weights, as `cpu_kernels.quantize` numbers them
enum { BLOCK = 32, MAX_GROUP = 128 };  // a group has one to four blocks

// A weight is offset + scale · code.
struct Range {
  float scale, offset;
};

// Copies a group of weights as float32.
INLINE void widen_group(const void *weights, long first, long group, long kind, float *out) {
  const uint16_t *halves = (const uint16_t *)weights + first;
  if (kind == HALF)
    widen_halves(halves, group, out);
  else if (kind == BFLOAT)
    widen_bfloats(halves, group, out);
  else
    std::memcpy(out, (const float *)weights + first, group * sizeof(float));
}

// Returns the range of a group. It is chosen so that 0 and the number farthest from 0 are exact.
INLINE Range find_range(const float *weights, long group, float max_code) {
  Vec low = broadcast(INFINITY), high = broadcast(-INFINITY);
  for (long i = 0; i < group; i += LANES) {
    const Vec x = load(weights + i);
    low = x < low ? x : low;  // a comparison with NaN is false
    high = high < x ? x : high;
  }
  float min = low[0], max = high[0];
  for (int i = 1; i < LANES; i++) min = std::min(min, low[i]), max = std::max(max, high[i]);
  const bool is_negative = std::abs(min) > std::abs(max);
  const float farthest = is_negative ? min : max;
  float scale = std::max((max - min) / max_code, 1e-7f);
  scale = is_negative ? scale : -scale;
  const float code = std::rint(farthest / scale);
  if (code == 0) return {scale, 0};
  return {farthest / code, farthest};
}

// Stores the codes of weights, a byte each.
INLINE void find_codes(const float *weights, Range range, float max_code, uint8_t *codes) {
  int32_t wide[BLOCK];  // the compiler narrows an array faster than a vector
  for (long i = 0; i < BLOCK; i += LANES) {
    Vec x = (load(weights + i) - range.offset) / range.scale;
    x = x > 0 ? x : Vec{};  // also NaN
    x = x < max_code ? x : broadcast(max_code);
    x += 12582912.0f;  // 1.5 · 2^23: rounded to an integer, which is in the lowest bits
    const Ints code = (Ints)x & 255;
    std::memcpy(wide + i, &code, sizeof code);
  }
  for (long i = 0; i < BLOCK; i++) codes[i] = wide[i];
}

// Moves eight codes of `bits` bits together, from bytes to the lowest bits.
INLINE uint64_t pack(uint64_t codes, int bits) {
  const uint64_t second = 0xff00ff00ff00ff00, pair = 0xffff0000ffff0000, four = ~0ull << 32;
  codes = (codes & ~second) | (codes & second) >> (8 - bits);
  codes = (codes & ~pair) | (codes & pair) >> (16 - 2 * bits);
  return (codes & ~four) | (codes & four) >> (32 - 4 * bits);
}

// The arguments of `quantize`.
struct Job {
  const void *weights;
  long kind, n_groups, group;
  uint8_t *packed;
  float *scales, *offsets;
};

template <int bits>
void quantize_all(const Job &job, long cores) {
  const float max_code = (1 << bits) - 1;
  const long step = 512;
  parallel(cores, ceil_div(job.n_groups, step), [&](int part) {
    alignas(32) float wide[MAX_GROUP];
    for (long g = part * step; g < std::min(job.n_groups, (part + 1) * step); g++) {
      widen_group(job.weights, g * job.group, job.group, job.kind, wide);
      const Range range = find_range(wide, job.group, max_code);
      job.scales[g] = range.scale, job.offsets[g] = range.offset;
      uint8_t *to = job.packed + g * job.group / 8 * bits;
      for (long i = 0; i < job.group; i += BLOCK) {
        uint64_t codes[BLOCK / 8];
        find_codes(wide + i, range, max_code, (uint8_t *)codes);
        for (uint64_t eight : codes) {
          eight = pack(eight, bits);
          std::memcpy(to, &eight, bits);
          to += bits;
        }
      }
    }
  });
}

}  // namespace

// Quantizes weights of float32, float16 or bfloat16 (`kind`) in groups of 32, 64 or 128. `packed`
// gets their codes of 2, 3, 4, 5, 6 or 8 bits one after another, the first one in the lowest bits.
extern "C" bool quantize(const void *weights, long kind, long n_groups, long group, long bits,
                         uint8_t *packed, float *scales, float *offsets, long cores) {
  return try_run([&] {
    const Job job = {weights, kind, n_groups, group, packed, scales, offsets};
    if (bits == 2) quantize_all<2>(job, cores);
    if (bits == 3) quantize_all<3>(job, cores);
    if (bits == 4) quantize_all<4>(job, cores);
    if (bits == 5) quantize_all<5>(job, cores);
    if (bits == 6) quantize_all<6>(job, cores);
    if (bits == 8) quantize_all<8>(job, cores);
  });
}
