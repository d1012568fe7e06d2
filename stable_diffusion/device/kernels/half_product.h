// The matrix product of the kernels of half precision: factors in bfloat16, sums in float32.
//
// One matrix comes in panels: HALF_PANEL of its rows side by side, [k/2][HALF_PANEL] pairs. The
// other one is read directly, row by row. This is what `vdpbf16ps` (AVX-512 BF16) takes, and also
// `tdpbf16ps` (AMX), so both get the same panels.
#pragma once

#include "half.h"
#include "product.h"

#ifdef HALF_TILES
#include <sys/syscall.h>
#include <unistd.h>
#endif

enum { HALF_PANEL = 32, HALF_WIDTH = 16, HALF_ROWS = 12 };

typedef float HalfSums __attribute__((vector_size(4 * HALF_WIDTH), aligned(4), may_alias));
typedef uint32_t HalfPairs __attribute__((vector_size(4 * HALF_WIDTH), aligned(4), may_alias));

// A matrix of bfloat16: number (r, k) at data[r * row + k].
struct HalfMatrix {
  const uint16_t *data;
  long row;
};

// Returns sums + x · y for the second and the first numbers of pairs, in the order of `vdpbf16ps`.
INLINE HalfSums add_products(HalfSums sums, HalfPairs x, HalfPairs y) {
#ifdef HALF_BY_PROCESSOR
  return (HalfSums)_mm512_dpbf16_ps((__m512)sums, (__m512bh)x, (__m512bh)y);
#else
  sums += (HalfSums)(x & 0xffff0000u) * (HalfSums)(y & 0xffff0000u);
  return sums + (HalfSums)(x << 16) * (HalfSums)(y << 16);
#endif
}

template <int R>
INLINE void multiply_half_rows(HalfMatrix a, const uint32_t *panel, long n_pairs, float *out,
                               long stride, bool add) {
  HalfSums sums[R][2] = {};
  for (long i = 0; i < n_pairs; i++, panel += HALF_PANEL) {
    const HalfPairs left = *(const HalfPairs *)panel;
    const HalfPairs right = *(const HalfPairs *)(panel + HALF_WIDTH);
    for (int r = 0; r < R; r++) {
      const HalfPairs x = HalfPairs{} + *(const Pair *)(a.data + r * a.row + 2 * i);
      sums[r][0] = add_products(sums[r][0], x, left);
      sums[r][1] = add_products(sums[r][1], x, right);
    }
  }
  for (int r = 0; r < R; r++)
    for (int half = 0; half < 2; half++) {
      HalfSums *to = (HalfSums *)(out + r * stride + half * HALF_WIDTH);
      *to = add ? *to + sums[r][half] : sums[r][half];
    }
}

template <int R>
INLINE void multiply_half_few(int rows, HalfMatrix a, const uint32_t *panel, long n_pairs,
                              float *out, long stride, bool add) {
  if constexpr (R > 0) {
    if (rows == R) return multiply_half_rows<R>(a, panel, n_pairs, out, stride, add);
    multiply_half_few<R - 1>(rows, a, panel, n_pairs, out, stride, add);
  }
}

// Computes `multiply_half` by vectors.
static __attribute__((noinline)) void multiply_half_vectors(int rows, HalfMatrix a,
                                                            const uint32_t *panel, long n_pairs,
                                                            float *out, long stride, bool add) {
  for (; rows >= HALF_ROWS; rows -= HALF_ROWS, a.data += HALF_ROWS * a.row, out += HALF_ROWS * stride)
    multiply_half_rows<HALF_ROWS>(a, panel, n_pairs, out, stride, add);
  multiply_half_few<HALF_ROWS - 1>(rows, a, panel, n_pairs, out, stride, add);
}

#ifdef HALF_TILES
enum { TILE_ROWS = 16, TILE_PAIRS = 16 };

// Returns whether the system lets this process use the tiles of AMX, which it must be asked for.
static bool may_use_tiles() {
  static const bool is_allowed = [] {
    const long request_permission = 0x1023, tile_data = 18;  // asm/prctl.h, and XCR0's bit
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
  }();
  return is_allowed;
}

// Computes the products of 32 rows, or of 16, with the first n_pairs / 16 · 16 pairs.
template <int R>
INLINE void multiply_half_tiles(HalfMatrix a, const uint32_t *panel, long n_pairs, float *out,
                                long stride, bool add) {
  const long out_bytes = stride * sizeof(float), row_bytes = a.row * sizeof(uint16_t);
  const long panel_bytes = HALF_PANEL * sizeof(uint32_t);
  float *below = out + TILE_ROWS * stride;
  if (add) {
    _tile_loadd(0, out, out_bytes);
    _tile_loadd(1, out + HALF_WIDTH, out_bytes);
    if (R == 32) {
      _tile_loadd(2, below, out_bytes);
      _tile_loadd(3, below + HALF_WIDTH, out_bytes);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (long i = 0; i + TILE_PAIRS <= n_pairs; i += TILE_PAIRS, panel += TILE_PAIRS * HALF_PANEL) {
    _tile_loadd(4, a.data + 2 * i, row_bytes);
    _tile_loadd(6, panel, panel_bytes);
    _tile_loadd(7, panel + HALF_WIDTH, panel_bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (R == 32) {
      _tile_loadd(5, a.data + TILE_ROWS * a.row + 2 * i, row_bytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, out, out_bytes);
  _tile_stored(1, out + HALF_WIDTH, out_bytes);
  if (R == 32) {
    _tile_stored(2, below, out_bytes);
    _tile_stored(3, below + HALF_WIDTH, out_bytes);
  }
}

// Multiplies as many of the rows as tiles hold, and returns their number.
static int multiply_half_by_tiles(int rows, HalfMatrix a, const uint32_t *panel, long n_pairs,
                                  float *out, long stride, bool add) {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  // GCC does not know that the instructions for tiles read memory.
  asm volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
  const long left = n_pairs % TILE_PAIRS, whole = n_pairs - left;
  int done = 0;
  while (rows - done >= TILE_ROWS) {
    const HalfMatrix part{a.data + done * a.row, a.row};
    float *to = out + done * stride;
    const int n = rows - done >= 2 * TILE_ROWS ? 2 * TILE_ROWS : TILE_ROWS;
    if (n == TILE_ROWS)
      multiply_half_tiles<TILE_ROWS>(part, panel, n_pairs, to, stride, add);
    else
      multiply_half_tiles<2 * TILE_ROWS>(part, panel, n_pairs, to, stride, add);
    asm volatile("" : : : "memory");
    if (left)
      multiply_half_vectors(n, {part.data + 2 * whole, a.row}, panel + whole * HALF_PANEL, left, to,
                            stride, true);
    done += n;
  }
  _tile_release();
  return done;
}
#endif

// Returns 2 if the processor multiplies tiles of bfloat16, 1 if it multiplies vectors of them.
static inline int choose_half_products() {
#ifdef HALF_TILES
  if (may_use_tiles()) return 2;
#endif
#ifdef HALF_KERNELS
  return 1;
#else
  return 0;
#endif
}

// Computes out[r][HALF_PANEL] = the sum over k of a(r, k) panel[k] for `rows` rows, or adds it.
static inline void multiply_half(int rows, HalfMatrix a, const uint32_t *panel, long n_pairs,
                                 float *out, long stride, bool add) {
#ifdef HALF_TILES
  if (rows >= TILE_ROWS && n_pairs >= TILE_PAIRS && may_use_tiles()) {
    const int done = multiply_half_by_tiles(rows, a, panel, n_pairs, out, stride, add);
    rows -= done, a.data += done * a.row, out += done * stride;
  }
#endif
  multiply_half_vectors(rows, a, panel, n_pairs, out, stride, add);
}

// How `Linear` and `Winograd` multiply in half precision, see `FloatProduct`.
struct HalfProduct {
  typedef uint16_t Weight;
  typedef uint32_t Factor;  // a pair
  typedef PairBuffer Factors;
  enum { NUMBERS = 2, PANEL = HALF_PANEL };

  static void multiply(int n, const Weight *rows, long row, const Factor *panel, long n_pairs,
                       float *out, long stride, bool add) {
    multiply_half(n, {rows, row}, panel, n_pairs, out, stride, add);
  }
  static Vec load_weights(const Weight *from) { return load_halves(from); }
  static void store_weights(Weight *to, Vec x) { store_halves(to, x); }
  static void pack_row(const float *from, long n, Factor *to) { round_row(from, n, to); }
  static Vec join(const Vec *numbers) { return (Vec)make_pairs(numbers[0], numbers[1]); }
};
