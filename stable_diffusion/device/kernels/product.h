// The matrix product that all kernels use.
//
// One matrix comes in panels: PANEL of its rows side by side, [k][PANEL]. The other one is read
// directly, ROWS rows at a time: each of its numbers is multiplied with a row of the panel, and the
// sums stay in registers.
#pragma once

#include "vectors.h"

#if defined(__AVX512F__) || defined(WIDE)  // WIDE: for tests on other processors
enum { WIDTH = 16, ROWS = 12 };
#else
enum { WIDTH = 8, ROWS = 6 };
#endif
enum { PANEL = 2 * WIDTH };

typedef float Wide __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

// Computes R rows, each of which begins `row` after the one before.
template <int R>
INLINE void multiply_rows(const float *rows, long row, const float *panel, long k, float *out,
                          long stride, bool add) {
  Wide sums[R][2] = {};
  for (long i = 0; i < k; i++, rows++, panel += PANEL) {
    Wide left = *(const Wide *)panel, right = *(const Wide *)(panel + WIDTH);
    for (int r = 0; r < R; r++) {
      float x = rows[r * row];
      sums[r][0] += x * left;
      sums[r][1] += x * right;
    }
  }
  for (int r = 0; r < R; r++)
    for (int half = 0; half < 2; half++) {
      Wide *to = (Wide *)(out + r * stride + half * WIDTH);
      *to = add ? *to + sums[r][half] : sums[r][half];
    }
}

template <int R>
INLINE void multiply_few(int n, const float *rows, long row, const float *panel, long k, float *out,
                         long stride, bool add) {
  if constexpr (R > 0) {
    if (n == R) return multiply_rows<R>(rows, row, panel, k, out, stride, add);
    multiply_few<R - 1>(n, rows, row, panel, k, out, stride, add);
  }
}

// Computes out[r][PANEL] = the sum over k of rows[r][k] panel[k] for n rows, or adds it to out.
static __attribute__((noinline)) void multiply(int n, const float *rows, long row,
                                               const float *panel, long k, float *out, long stride,
                                               bool add) {
  for (; n >= 2 * ROWS || n == ROWS; n -= ROWS, rows += ROWS * row, out += ROWS * stride)
    multiply_rows<ROWS>(rows, row, panel, k, out, stride, add);
  if (n > ROWS) {  // two halves: the products of very few rows would wait for each other
    const int half = n / 2;
    multiply_few<ROWS>(half, rows, row, panel, k, out, stride, add);
    n -= half, rows += half * row, out += half * stride;
  }
  multiply_few<ROWS>(n, rows, row, panel, k, out, stride, add);
}

// How `Linear` and `Winograd` multiply in float32. `HalfProduct` has the same members.
struct FloatProduct {
  typedef float Weight;
  typedef float Factor;    // what a panel holds for each row
  typedef Buffer Factors;  // memory for them
  enum { NUMBERS = 1 };    // in a factor, which are next to each other along k
  enum { PANEL = ::PANEL };

  // Multiplies rows of numbers, each of which begins `row` after the one before; see `multiply`.
  static void multiply(int n, const Weight *rows, long row, const Factor *panel, long k, float *out,
                       long stride, bool add) {
    ::multiply(n, rows, row, panel, k, out, stride, add);
  }
  static Vec load_weights(const Weight *from) { return load(from); }
  static void store_weights(Weight *to, Vec x) { store(to, x); }

  // Writes n numbers of a row as factors.
  static void pack_row(const float *from, long n, Factor *to) {
    std::memcpy(to, from, n * sizeof(float));
  }
  // Returns the factors of eight rows, from NUMBERS numbers of each.
  static Vec join(const Vec *numbers) { return numbers[0]; }
};

// Returns one core if the work takes only a few microseconds: waking threads would take longer.
INLINE int cores_for(double products, int cores) { return products < 1e6 ? 1 : cores; }
