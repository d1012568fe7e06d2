// Conversion of numbers of 16 bits to float32.
#pragma once

#include "vectors.h"

#ifdef __F16C__
#include <immintrin.h>
#endif

INLINE float float_from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

INLINE float half_to_float(uint16_t half) {
  const uint32_t bits = (half & 0x7fffu) << 13, sign = (half & 0x8000u) << 16;
  uint32_t wide;
  const float scaled = float_from_bits(bits) * 0x1p112f;  // the exponents' biases differ by 112
  std::memcpy(&wide, &scaled, sizeof wide);
  const bool is_finite = bits < 0x0f800000u;
  return float_from_bits((is_finite ? wide : bits | 0x7f800000u) | sign);
}

INLINE float bfloat_to_float(uint16_t half) { return float_from_bits(uint32_t(half) << 16); }

// Converts n numbers of float16.
INLINE void widen_halves(const uint16_t *halves, long n, float *out) {
  long i = 0;
#ifdef __F16C__
  for (; i + LANES <= n; i += LANES)
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(halves + i))));
#endif
  for (; i < n; i++) out[i] = half_to_float(halves[i]);
}

// Converts n numbers of bfloat16.
INLINE void widen_bfloats(const uint16_t *halves, long n, float *out) {
  for (long i = 0; i < n; i++) out[i] = bfloat_to_float(halves[i]);
}
