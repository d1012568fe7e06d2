// Conversion to float32 of weights that are stored in fewer bits.

#include "widen.h"
#include "unpack.h"

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

// Converts weights [rows, columns] of `bits` bits, see `Packed`.
extern "C" bool dequantize(const uint32_t *packed, long rows, long columns, long bits, long group,
                           const float *scales, const float *offsets, float *out, long cores) {
  return try_run([&] {
    const Packed weights{packed, rows, columns, bits, group, scales, offsets};
    weights.each_group(
        cores, [&](long first, long g, float *) { weights.unpack(first, g, out + first); });
  });
}
