// 3×3 convolutions of pictures, channels last, with the norm before and the residual after them.
//
// Winograd's method F(4×4, 3×3) (arXiv:1509.09308) needs 36 products for a tile of 16 pixels, the
// direct sum 144.
#pragma once

#include "activations.h"
#include "product.h"

// Starts loading n numbers, all lines of the cache that hold some of them. They need not exist.
template <class Number>
INLINE void fetch(const Number *from, long n) {
  const long line = 64;  // bytes
  const uintptr_t first = (uintptr_t)from, end = first + n * sizeof(Number);
  for (uintptr_t at = first / line * line; at < end; at += line) __builtin_prefetch((void *)at);
}

template <class Weight>
struct Convolution {
  const float *x;              // [B, H, W, C]
  const float *gain, *offset;  // [B, C] each, or null
  const Weight *weight;        // [O, 3, 3, C]
  const float *bias;           // [O] if bias_stride is 0, else [B, O]
  const float *residual;       // [B, h, w, O], or null
  float *out;                  // [B, h, w, O]
  long batch, height, width, channels, out_height, out_width, n_outputs, bias_stride;
  long activation;
  long factor;  // by which x is upsampled first
  long stride;
  long before;  // rows of padding above and columns to the left

  // Returns the input row, or column, of tap d of an output row i; -1 if it is padding.
  long input(long i, int d, long side) const {
    const long at = i * stride + d - before;
    return at < 0 || at >= side * factor ? -1 : at / factor;
  }

  // Returns the input pixel for tap (dy, dx) of output pixel (i, j); null if it is padding.
  const float *pixel(long b, long i, long j, int dy, int dx) const {
    const long y = input(i, dy, height), z = input(j, dx, width);
    return y < 0 || z < 0 ? nullptr : x + ((b * height + y) * width + z) * channels;
  }

  // Writes channels first … first + n of a pixel of picture b, after norm and activation.
  void normalize(const float *from, long b, long first, long n, float *to) const {
    const float *g = gain ? gain + b * channels + first : nullptr;
    const float *o = gain ? offset + b * channels + first : nullptr;
    normalize_pixel(from + first, n, g, o, activation, to);
  }
};

// The transforms of patches and results along one side, at the points 0, ±NEAR and ±FAR of `Points`,
// which has these numbers and BOTH, their product. `S` is the distance between numbers of the input,
// `T` between numbers of the output.
template <class Points>
struct Transforms {
  static constexpr float NEAR = Points::NEAR, FAR = Points::FAR, BOTH = Points::BOTH;
  static constexpr float NEAR2 = NEAR * NEAR, FAR2 = FAR * FAR;

  template <int S>
  INLINE void transform_patch(Vec *d) {
    const Vec d1 = d[S], d2 = d[2 * S], d3 = d[3 * S], d4 = d[4 * S], d5 = d[5 * S];
    d[0] = BOTH * BOTH * d[0] - (NEAR2 + FAR2) * d2 + d4;
    Vec even = d4 - FAR2 * d2, odd = NEAR * d3 - BOTH * FAR * d1;
    d[S] = even + odd;
    d[2 * S] = even - odd;
    even = d4 - NEAR2 * d2, odd = FAR * d3 - BOTH * NEAR * d1;
    d[3 * S] = even + odd;
    d[4 * S] = even - odd;
    d[5 * S] = BOTH * BOTH * d1 - (NEAR2 + FAR2) * d3 + d5;
  }

  template <int S, int T>
  INLINE void transform_result(const Vec *m, Vec *y) {
    const Vec sum = m[S] + m[2 * S], difference = m[S] - m[2 * S];
    const Vec far_sum = m[3 * S] + m[4 * S], far_difference = m[3 * S] - m[4 * S];
    y[0] = m[0] + sum + far_sum;
    y[T] = NEAR * difference + FAR * far_difference;
    y[2 * T] = NEAR2 * sum + FAR2 * far_sum;
    y[3 * T] = NEAR2 * NEAR * difference + FAR2 * FAR * far_difference + m[5 * S];
  }
};

// A convolution by Winograd's method.
//
// `Product`: how it multiplies, see `FloatProduct`. `Points`: those of the transforms, and how
// weights are transformed, see `WholePoints`. The panels of the products are transformed weights,
// their rows are tiles: so products of the few tiles of a small picture waste nothing, and vectors
// hold channels of the input and of the output as memory does.
template <class Product, class Points>
class Winograd {
  typedef typename Product::Weight Weight;
  typedef typename Product::Factor Factor;
  typedef typename Product::Factors Factors;
  enum { PANEL = Product::PANEL, NUMBERS = Product::NUMBERS };
  enum { TILE = 4, PATCH = 6, TERMS = PATCH * PATCH, TAPS = 9 };  // sides of tiles and patches
  enum { SIDE = 8 };  // most tiles of a block along one side
  enum { OUTPUTS = 32, DEPTH = 64 * NUMBERS, CHANNELS = 32 };  // that stay in the cache together
  enum { APART = 48 };  // factors between terms, so that they do not share places in the cache
  enum { WEIGHT_TERM = OUTPUTS * DEPTH / NUMBERS + APART };  // factors of a term
  static_assert(OUTPUTS % PANEL == 0, "panels are whole");
  enum { STEP = 12 };  // tiles that are multiplied while the cache loads as many of the next term

  const Convolution<Weight> &c;

  // Neighbouring tiles of one or more pictures.
  struct Block {
    long picture, n_pictures, top, height, left, width;  // in tiles

    long n() const { return n_pictures * height * width; }
    long term() const { return n() * DEPTH + APART * NUMBERS; }  // transformed numbers of a term
    struct Tile { long picture, y, x; };
    Tile tile(long i) const {
      return {picture + i / (height * width), top + i / width % height, left + i % width};
    }
  };

  // Normalizes channels first … first + n of a block's pixels: [pictures][rows][columns][CHANNELS].
  void normalize_pixels(const Block &block, long first, long n, float *to) const {
    for (long b = block.picture; b < block.picture + block.n_pictures; b++)
      for (long i = 0; i < TILE * block.height + 2; i++)
        for (long j = 0; j < TILE * block.width + 2; j++, to += CHANNELS)
          if (const float *from = c.pixel(b, TILE * block.top, TILE * block.left, i, j)) {
            fetch(from + c.width * c.channels + first, n);  // of the row below
            c.normalize(from, b, first, n, to);
          } else {
            std::fill_n(to, n, 0.0f);
          }
  }

  // Transforms channels first … first + n of a block's patches. The result is in the order in which
  // it is read: for every DEPTH channels and each term, [tiles][DEPTH] numbers.
  void transform_patches(const Block &block, long first, long n, Weight *patches) const {
    const long height = TILE * block.height + 2, width = TILE * block.width + 2;
    Buffer pixels(block.n_pictures * height * width * CHANNELS);
    normalize_pixels(block, first, n, pixels);
    const long term = block.term();
    for (long t = 0; t < block.n(); t++) {
      const auto [b, y, x] = block.tile(t);
      const long row = (b - block.picture) * height + TILE * (y - block.top);
      const float *from = pixels + (row * width + TILE * (x - block.left)) * CHANNELS;
      Weight *to = patches + first / DEPTH * TERMS * term + t * DEPTH + first % DEPTH;
      for (long z = 0; z < n; z += LANES) {
        Vec patch[TERMS];
        for (int i = 0; i < PATCH; i++)
          for (int j = 0; j < PATCH; j++)
            patch[PATCH * i + j] = load(from + (i * width + j) * CHANNELS + z);
        for (int i = 0; i < PATCH; i++) Transforms<Points>::template transform_patch<1>(patch + PATCH * i);
        for (int j = 0; j < PATCH; j++) Transforms<Points>::template transform_patch<PATCH>(patch + j);
        for (int i = 0; i < TERMS; i++) Product::store_weights(to + i * term + z, patch[i]);
      }
    }
  }

  // Loads one tap of eight outputs and eight channels, of which n outputs exist.
  void load_tap(const Weight *from, long n, Vec *tap) const {
    const long size = TAPS * c.channels;
    for (long r = 0; r < LANES; r++)
      tap[r] = r < n ? Product::load_weights(from + r * size) : Vec{};
    transpose(tap);  // [channels][outputs]
  }

  // Transforms the weights of outputs first … first + n and channels k … k + depth: for each term,
  // [panels][DEPTH / NUMBERS][PANEL] factors.
  void transform_weights(long first, long n, long k, long depth, Factor *weights) const {
    for (long z = 0; z < depth; z += LANES)
      for (long o = 0; o < ceil_div(n, PANEL) * PANEL; o += LANES) {
        const Weight *from = c.weight + (first + o) * TAPS * c.channels + k + z;
        Vec taps[TAPS][LANES];
        for (int i = 0; i < TAPS; i++)
          if (n - o >= LANES)  // a constant, for which the compiler unrolls the loop
            load_tap(from + i * c.channels, LANES, taps[i]);
          else
            load_tap(from + i * c.channels, n - o, taps[i]);
        Factor *to = weights + (o / PANEL * DEPTH + z) / NUMBERS * PANEL + o % PANEL;
        for (int r = 0; r < LANES; r += NUMBERS, to += PANEL) {
          Vec half[NUMBERS][3 * PATCH];
          for (int m = 0; m < NUMBERS; m++)
            for (int j = 0; j < 3; j++) {
              const Vec column[3] = {taps[j][r + m], taps[3 + j][r + m], taps[6 + j][r + m]};
              Points::template transform_weight<1, 3>(column, half[m] + j);
            }
          for (int i = 0; i < PATCH; i++) {
            Vec row[NUMBERS][PATCH];
            for (int m = 0; m < NUMBERS; m++)
              Points::template transform_weight<1, 1>(half[m] + 3 * i, row[m]);
            for (int j = 0; j < PATCH; j++) {
              Vec numbers[NUMBERS];
              for (int m = 0; m < NUMBERS; m++) numbers[m] = row[m][j];
              store((float *)(to + (PATCH * i + j) * WEIGHT_TERM), Product::join(numbers));
            }
          }
        }
      }
  }

  // Loads one of some parts of the weights of outputs first … first + n and channels from k on, if
  // there are any, into the cache.
  void fetch_weights(long part, long n_parts, long first, long n, long k) const {
    if (k >= c.channels) return;
    for (long i = TAPS * n * part / n_parts; i < TAPS * n * (part + 1) / n_parts; i++)
      fetch(c.weight + (TAPS * first + i) * c.channels + k, std::min<long>(DEPTH, c.channels - k));
  }

  // Computes the transforms of outputs first … first + n: [TERMS][tiles][OUTPUTS].
  void multiply_terms(const Block &block, long first, long n, const Weight *patches, long sum_term,
                      float *sums) const {
    const long n_parts = TERMS * ceil_div(n, PANEL) * ceil_div(block.n(), STEP);
    Factors weights(TERMS * WEIGHT_TERM);
    for (long k = 0; k < c.channels; k += DEPTH) {
      const long depth = std::min<long>(DEPTH, c.channels - k);
      long part = 0;
      transform_weights(first, n, k, depth, weights);
      for (long i = 0; i < TERMS; i++)
        for (long o = 0; o < n; o += PANEL)
          for (long t = 0; t < block.n(); t += STEP) {
            const long rows = std::min<long>(STEP, block.n() - t);
            const Weight *from = patches + (k / DEPTH * TERMS + i) * block.term() + t * DEPTH;
            fetch_weights(part++, n_parts, first, n, k + DEPTH);
            if (o + PANEL >= n) fetch(from + block.term(), rows * DEPTH);
            Product::multiply(rows, from, DEPTH, weights + i * WEIGHT_TERM + o * DEPTH / NUMBERS,
                              depth / NUMBERS, sums + i * sum_term + t * OUTPUTS + o, OUTPUTS,
                              k > 0);
          }
    }
  }

  // Computes outputs first … first + n of a block from its transformed patches.
  void transform_back(const Block &block, long first, long n, const Weight *patches) const {
    const long sum_term = OUTPUTS * block.n() + APART;
    Buffer sums(TERMS * sum_term);
    multiply_terms(block, first, n, patches, sum_term, sums);
    for (long t = 0; t < block.n(); t++)
      for (long o = 0; o < n; o += LANES) {
        const auto [b, tile_y, tile_x] = block.tile(t);
        const long n_some = std::min<long>(LANES, n - o);
        Vec terms[TERMS], half[TILE * PATCH], pixels[TILE * TILE];
        for (int i = 0; i < TERMS; i++) terms[i] = load(sums + i * sum_term + t * OUTPUTS + o);
        for (int i = 0; i < PATCH; i++)
          Transforms<Points>::template transform_result<1, 1>(terms + PATCH * i, half + TILE * i);
        for (int j = 0; j < TILE; j++)
          Transforms<Points>::template transform_result<TILE, TILE>(half + j, pixels + j);
        const Vec bias = load_some(c.bias + b * c.bias_stride + first + o, n_some);
        for (int i = 0; i < TILE * TILE; i++) {
          const long y = TILE * tile_y + i / TILE, x = TILE * tile_x + i % TILE;
          if (y >= c.out_height || x >= c.out_width) continue;
          const long at = ((b * c.out_height + y) * c.out_width + x) * c.n_outputs + first + o;
          Vec sum = pixels[i] + bias;
          if (c.residual) sum += load_some(c.residual + at, n_some);
          store_some(c.out + at, sum, n_some);
        }
      }
  }

 public:
  explicit Winograd(const Convolution<Weight> &convolution) : c(convolution) {}

  // Returns whether 36 products for a tile, and transforming a weight, which takes as long as 450,
  // are less work than 9 products for each pixel.
  bool is_faster() const {
    const long tiles = c.batch * ceil_div(c.out_height, TILE) * ceil_div(c.out_width, TILE);
    const long pixels = c.batch * c.out_height * c.out_width;
    const bool fits = c.stride == 1 && c.before == 1 && c.channels % LANES == 0;
    return fits && TERMS * tiles + 450 < TAPS * pixels;
  }

  void run(int cores) const {
    const long rows = ceil_div(c.out_height, TILE), columns = ceil_div(c.out_width, TILE);
    const long height = ceil_div(rows, ceil_div(rows, SIDE));
    const long width = ceil_div(columns, ceil_div(columns, SIDE));
    const bool is_whole = height == rows && width == columns;
    const long n_pictures = is_whole ? std::max(1L, SIDE * SIDE / (rows * columns)) : 1;
    std::vector<Block> blocks;
    for (long b = 0; b < c.batch; b += n_pictures)
      for (long y = 0; y < rows; y += height)
        for (long x = 0; x < columns; x += width)
          blocks.push_back({b, std::min(n_pictures, c.batch - b), y, std::min(height, rows - y), x,
                            std::min(width, columns - x)});

    const long n_blocks = blocks.size();
    const long size = ceil_div(c.channels, DEPTH) * TERMS * blocks[0].term();
    const long n_inner = ceil_div(c.channels, CHANNELS), n_outer = ceil_div(c.n_outputs, OUTPUTS);
    auto transform_input = [&](const Block &block, long i, Weight *patches) {
      const long first = i * CHANNELS, n = std::min<long>(CHANNELS, c.channels - first);
      transform_patches(block, first, n, patches);
    };
    auto compute_output = [&](const Block &block, long i, const Weight *patches) {
      const long first = i * OUTPUTS, n = std::min<long>(OUTPUTS, c.n_outputs - first);
      transform_back(block, first, n, patches);
    };
    if (n_blocks >= 4 * cores) {  // each core computes some of the blocks
      parallel(cores, n_blocks, [&](int b) {
        Factors memory(size / NUMBERS);
        Weight *patches = (Weight *)(Factor *)memory;
        for (long i = 0; i < n_inner; i++) transform_input(blocks[b], i, patches);
        for (long i = 0; i < n_outer; i++) compute_output(blocks[b], i, patches);
      });
      return;
    }
    Factors memory(n_blocks * size / NUMBERS);
    Weight *patches = (Weight *)(Factor *)memory;
    auto patches_of = [&](long b) { return patches + b * size; };
    parallel(cores, n_blocks * n_inner, [&](int i) {
      const long b = i / n_inner;
      transform_input(blocks[b], i % n_inner, patches_of(b));
    });
    parallel(cores, n_blocks * n_outer, [&](int i) {
      const long b = i / n_outer;
      compute_output(blocks[b], i % n_outer, patches_of(b));
    });
  }
};
