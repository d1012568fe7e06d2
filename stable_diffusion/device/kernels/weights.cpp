// Conversion to float32 of weights that are stored in fewer bits.

#include "halves.h"

// Converts n numbers of float16, or of bfloat16.
extern "C" bool widen(const uint16_t *halves, long n, long is_bfloat, float *out, long cores) {
  return try_run([&] {
    const long step = 65536;
    parallel(cores, ceil_div(n, step), [&](int part) {
      const long first = part * step, count = std::min(step, n - first);
      (is_bfloat ? widen_bfloats : widen_halves)(halves + first, count, out + first);
    });
  });
}

// Converts weights [rows, columns] of `bits` bits, packed as by `mx.quantize`: a sequence of bits,
// the lowest ones first. So a word has 32 / bits weights, or with 6 bits three bytes have four.
// Each `group` of them has a scale and an offset.
extern "C" bool dequantize(const uint32_t *packed, long rows, long columns, long bits, long group,
                           const float *scales, const float *offsets, float *out, long cores) {
  return try_run([&] {
    const long per_word = 32 / bits, n_groups = columns / group, step = 16;
    const uint32_t mask = (1u << bits) - 1;
    parallel(cores, ceil_div(rows, step), [&](int part) {
      for (long r = part * step; r < std::min(rows, (part + 1) * step); r++)
        for (long g = 0; g < n_groups; g++) {
          const float scale = scales[r * n_groups + g], offset = offsets[r * n_groups + g];
          const long first = r * columns + g * group;
          float *to = out + first;
          if (bits == 6) {
            const uint8_t *bytes = (const uint8_t *)packed + first / 4 * 3;
            for (long i = 0; i < group; i += 4, bytes += 3) {
              const uint32_t four = bytes[0] | bytes[1] << 8 | bytes[2] << 16;
              for (long j = 0; j < 4; j++) *to++ = float(four >> (6 * j) & mask) * scale + offset;
            }
            continue;
          }
          const uint32_t *words = packed + first / per_word;
          for (long i = 0; i < group; i += per_word, words++)
            for (long j = 0; j < per_word; j++)
              *to++ = float(*words >> (j * bits) & mask) * scale + offset;
        }
    });
  });
}
