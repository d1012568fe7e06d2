// Eight numbers at a time, by GCC's vector extension for AVX2, AVX-512, NEON and others.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "parallel.h"

#define INLINE static inline __attribute__((always_inline))

typedef float Vec __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(32), aligned(4), may_alias));

enum { LANES = 8 };

INLINE Vec load(const float *from) { return *(const Vec *)from; }
INLINE void store(float *to, Vec x) { *(Vec *)to = x; }
// Loads and stores the first n of eight numbers.
INLINE Vec load_some(const float *from, long n) {
  if (n == LANES) return load(from);
  Vec x = {};
  std::memcpy(&x, from, n * sizeof(float));
  return x;
}
INLINE void store_some(float *to, Vec x, long n) {
  if (n == LANES) return store(to, x);
  std::memcpy(to, &x, n * sizeof(float));
}

INLINE Vec broadcast(float x) { return Vec{} + x; }
// Returns the larger one; b if one of them is not a number.
template <class V>
INLINE V maximum(V a, V b) {
#ifdef __AVX__  // GCC 12 compiles the comparison to two instructions
  if constexpr (sizeof(V) == 32) return (V)__builtin_ia32_maxps256(a, b);
#endif
  return a > b ? a : b;
}

// Returns 2^x for x <= 0 as 2^n · 2^f with f in [-1/2, 1/2]; at least 2^-126. NaN stays NaN.
template <class V>
INLINE V exp2_below(V x) {
  typedef decltype(x > x) Integers;  // as many
  x = maximum(V{} - 126.0f, x);
  const float round = 12583039.0f;  // 1.5 · 2^23 + 127: a sum with it is rounded to an integer
  V shifted = x + round, f = x - (shifted - round);
  V p = V{} + 0.00015345812f;
  p = p * f + 0.0013399931f;
  p = p * f + 0.009618489f;
  p = p * f + 0.055503286f;
  p = p * f + 0.24022646f;
  p = p * f + 0.6931472f;
  p = p * f + 1.0f;
  return p * (V)((Integers)shifted << 23);  // its lowest bits are n + 127, the exponent of 2^n
}

static const float LOG2_E = 1.44269504f;

// Returns e^x for x <= 0.
INLINE Vec exp_below(Vec x) { return exp2_below(x * LOG2_E); }

// Returns x times the logistic function of gain · x.
INLINE Vec silu(Vec x, float gain = 1.0f) {
  Vec e = exp_below(x < 0 ? gain * x : -gain * x);
  return x * ((x < 0 ? e : broadcast(1.0f)) / (1.0f + e));
}

// Returns x times the normal distribution function of x, which is computed as
// 1/2 + x P(x²) / Q(x²) with the coefficients of tools/fit_gelu.py.
INLINE Vec gelu(Vec x) {
  const float limit = 5.5f;
  Vec y = x > limit ? broadcast(limit) : x < -limit ? broadcast(-limit) : x, s = y * y;
  Vec p = broadcast(2.22159355e-8f), q = broadcast(1.19539943e-6f);
  p = p * s + 6.53075743e-6f;
  q = q * s + 7.86106445e-5f;
  p = p * s + 1.82859154e-4f;
  q = q * s + 1.96243991e-3f;
  p = p * s + 4.76162252e-3f;
  q = q * s + 2.93987454e-2f;
  p = p * s + 3.51424136e-2f;
  q = q * s + 2.54752554e-1f;
  p = p * s + 3.98941985e-1f;
  q = q * s + 1.0f;
  return x * (0.5f + y * (p / q));
}

// Transposes 8×8 numbers.
INLINE void transpose(Vec *rows) {
  Vec t[8], u[8];
  for (int i = 0; i < 4; i++) {
    Vec a = rows[2 * i], b = rows[2 * i + 1];
    t[2 * i] = __builtin_shuffle(a, b, Ints{0, 8, 1, 9, 4, 12, 5, 13});
    t[2 * i + 1] = __builtin_shuffle(a, b, Ints{2, 10, 3, 11, 6, 14, 7, 15});
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; j++) {
      Vec a = t[i + j], b = t[i + j + 2];
      u[i + 2 * j] = __builtin_shuffle(a, b, Ints{0, 1, 8, 9, 4, 5, 12, 13});
      u[i + 2 * j + 1] = __builtin_shuffle(a, b, Ints{2, 3, 10, 11, 6, 7, 14, 15});
    }
  for (int i = 0; i < 4; i++) {
    rows[i] = __builtin_shuffle(u[i], u[i + 4], Ints{0, 1, 2, 3, 8, 9, 10, 11});
    rows[i + 4] = __builtin_shuffle(u[i], u[i + 4], Ints{4, 5, 6, 7, 12, 13, 14, 15});
  }
}

// Memory for n numbers, aligned, not initialized.
struct Buffer {
  float *data;
  explicit Buffer(long n) : data((float *)std::aligned_alloc(64, (4 * n + 127) / 64 * 64)) {
    if (!data) throw std::bad_alloc();
  }
  ~Buffer() { std::free(data); }
  Buffer(const Buffer &) = delete;
  operator float *() const { return data; }
};

// Runs a kernel; returns false if there was too little memory.
template <class Kernel>
static bool try_run(Kernel kernel) {
  try {
    kernel();
    return true;
  } catch (const std::bad_alloc &) {
    return false;
  }
}

INLINE long ceil_div(long a, long b) { return (a + b - 1) / b; }
