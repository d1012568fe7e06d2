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

// A matrix in memory: number (r, k) at data[r * row + k * column].
struct Matrix {
  const float *data;
  long row, column;
};

// Starts loading n numbers, which are `offset` numbers after `from`, into the cache. They need not
// exist: a processor ignores addresses that it may not read.
template <class Number>
INLINE void prefetch(const Number *from, long offset, long n) {
  const long line = 64;  // bytes
  const uintptr_t first = (uintptr_t)from + offset * sizeof(Number);
  for (long i = 0; i < n * (long)sizeof(Number); i += line)
    __builtin_prefetch((const void *)(first + i));
}

// If FETCH, loads the panel that follows in memory, which will be needed soon, into the cache.
template <int R, bool FETCH = false>
INLINE void multiply_rows(Matrix a, const float *panel, long k, float *out, long stride, bool add) {
  Wide sums[R][2] = {};
  const float *rows = a.data;
  for (long i = 0; i < k; i++, rows += a.column, panel += PANEL) {
    if (FETCH) prefetch(panel, k * PANEL, PANEL);
    Wide left = *(const Wide *)panel, right = *(const Wide *)(panel + WIDTH);
    for (int r = 0; r < R; r++) {
      float x = rows[r * a.row];
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
INLINE void multiply_few(int rows, Matrix a, const float *panel, long k, float *out, long stride,
                         bool add) {
  if constexpr (R > 0) {
    if (rows == R) return multiply_rows<R>(a, panel, k, out, stride, add);
    multiply_few<R - 1>(rows, a, panel, k, out, stride, add);
  }
}

// Computes out[r][PANEL] = the sum over k of a(r, k) panel[k] for `rows` rows, or adds it to out.
// fetch: whether the panel that follows this one is multiplied next. If panels are small, so that
// two of them and the rows stay in the first-level cache, loading it meanwhile saves a wait.
static __attribute__((noinline)) void multiply(int rows, Matrix a, const float *panel, long k,
                                               float *out, long stride, bool add,
                                               bool fetch = false) {
  if (fetch && rows >= ROWS) {
    multiply_rows<ROWS, true>(a, panel, k, out, stride, add);
    rows -= ROWS, a.data += ROWS * a.row, out += ROWS * stride;
  }
  for (; rows >= ROWS; rows -= ROWS, a.data += ROWS * a.row, out += ROWS * stride)
    multiply_rows<ROWS>(a, panel, k, out, stride, add);
  multiply_few<ROWS - 1>(rows, a, panel, k, out, stride, add);
}

// How `Linear` and `Winograd` multiply in float32. `HalfProduct` has the same members.
struct FloatProduct {
  typedef float Weight;
  typedef float Factor;    // what a panel holds for each row
  typedef Buffer Factors;  // memory for them
  enum { NUMBERS = 1 };    // in a factor, which are next to each other along k
  enum { PANEL = ::PANEL };

  // Multiplies rows of numbers, each of which begins `row` after the one before; see `multiply`.
  static void multiply(int rows, const Weight *weights, long row, const Factor *panel, long k,
                       float *out, long stride, bool add, bool fetch = false) {
    ::multiply(rows, {weights, row, 1}, panel, k, out, stride, add, fetch);
  }
  static Vec load_weights(const Weight *from) { return load(from); }
  static void store_weights(Weight *to, Vec x) { store(to, x); }

  // Writes a factor of eight rows of a panel: NUMBERS vectors, one after the other along k.
  static void store_factor(Factor *panel, const Vec *numbers) { store(panel, *numbers); }
};

// Returns one core if the work takes only a few microseconds: waking threads would take longer.
INLINE int cores_for(double products, int cores) { return products < 1e6 ? 1 : cores; }
