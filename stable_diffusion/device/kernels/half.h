// Numbers of bfloat16, the upper half of a float32: 8 bits of exponent, 7 of mantissa.
//
// The kernels of half precision, `half_*.cpp`, round what they multiply to bfloat16, and keep sums,
// norms and softmax in float32. They are compiled if the processor multiplies bfloat16.
#pragma once

#include "activations.h"
#include "half_kernels.h"

#ifdef HALF_BY_PROCESSOR
#include <immintrin.h>
#endif

// Two neighbouring numbers of a sum, the first one in the lower bits, as the processor's
// instructions take them.
typedef uint32_t Pair __attribute__((aligned(2), may_alias));
typedef uint32_t Pairs __attribute__((vector_size(32), aligned(4), may_alias));

INLINE void store(uint32_t *to, Pairs x) { *(Pairs *)to = x; }

// Rounds to bfloat16, in the upper bits, to the nearest or, between two, the even one. The lower
// bits may hold anything.
INLINE Pairs round_bits(Vec x) {
  const Pairs bits = (Pairs)x;
  return x == x ? bits + 0x7fff + (bits >> 16 & 1) : bits | 0x400000;  // NaN stays NaN
}

// Returns pairs of eight first and eight second numbers.
INLINE Pairs make_pairs(Vec first, Vec second) {
#ifdef HALF_BY_PROCESSOR
  const __m128i low = (__m128i)_mm256_cvtneps_pbh((__m256)first);
  const __m128i high = (__m128i)_mm256_cvtneps_pbh((__m256)second);
  return (Pairs)_mm256_set_m128i(_mm_unpackhi_epi16(low, high), _mm_unpacklo_epi16(low, high));
#else
  return round_bits(first) >> 16 | (round_bits(second) & 0xffff0000u);
#endif
}

// Rounds n numbers, which are next to each other; a missing last one is zero.
INLINE void round_row(const float *x, long n, uint32_t *pairs) {
  for (long i = 0; i < n; i += 2 * LANES) {
    Vec a = load_some(x + i, std::min<long>(LANES, n - i)), b = {};
    if (n - i > LANES) b = load_some(x + i + LANES, std::min<long>(LANES, n - i - LANES));
    const Pairs rounded = make_pairs(__builtin_shuffle(a, b, Ints{0, 2, 4, 6, 8, 10, 12, 14}),
                                     __builtin_shuffle(a, b, Ints{1, 3, 5, 7, 9, 11, 13, 15}));
    const long n_some = std::min<long>(LANES, (n - i + 1) / 2);
    if (n_some == LANES)
      store(pairs + i / 2, rounded);
    else
      std::memcpy(pairs + i / 2, &rounded, n_some * sizeof(uint32_t));
  }
}

// Returns eight numbers of bfloat16 as float32.
INLINE Vec load_halves(const uint16_t *from) {
  typedef uint16_t Halves __attribute__((vector_size(16), aligned(2), may_alias));
  return (Vec)(__builtin_convertvector(*(const Halves *)from, Pairs) << 16);
}

// Rounds eight numbers to bfloat16.
INLINE void store_halves(uint16_t *to, Vec x) {
  typedef uint16_t Halves __attribute__((vector_size(16), aligned(2), may_alias));
#ifdef HALF_BY_PROCESSOR
  *(Halves *)to = (Halves)_mm256_cvtneps_pbh((__m256)x);
#else
  *(Halves *)to = __builtin_convertvector(round_bits(x) >> 16, Halves);
#endif
}

// Rounds n numbers to bfloat16.
INLINE void round_halves(const float *x, long n, uint16_t *to) {
  for (; n >= LANES; n -= LANES, x += LANES, to += LANES) store_halves(to, load(x));
  uint16_t last[LANES];
  store_halves(last, load_some(x, n));
  std::memcpy(to, last, n * sizeof(uint16_t));
}

// Memory for n pairs, aligned, not initialized.
struct PairBuffer {
  Buffer numbers;
  explicit PairBuffer(long n) : numbers(n) {}
  operator uint32_t *() const { return (uint32_t *)numbers.data; }
};
