// 3×3 convolutions in half precision; see conv.cpp.
//
// Winograd's method rounds transformed numbers, and its transforms enlarge these errors. With the
// usual points 0, ±1 and ±2 the result of F(4×4, 3×3) has a relative L2 error of 2.5e-2; with 0,
// ±2/3 and ±3/2 it has 1.1e-2 (near the least of all 0, ±a and ±b). The direct sum has 2.4e-3, but
// four times as many products.

#include "half_kernels.h"

#ifdef HALF_KERNELS

#include "half_linear.h"

namespace {

struct Convolution {
  const float *x;              // [B, H, W, C]
  const float *gain, *offset;  // [B, C] each, or null
  const uint16_t *weight;      // [O, 3, 3, C]
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

// --- direct sum --------------------------------------------------------------------------------

// Some output rows of some pictures: `n` rows each, from row `top` on.
struct Part {
  long picture, n_pictures, top, n;
};

// Convolves a part. Its input is normalized and rounded once, then read nine times.
void convolve_part(const Convolution &c, const Part &part, int cores) {
  const long n_pairs = c.channels / 2, pixels = part.n * c.out_width;
  const long last = part.top + part.n - 1, end = (last * c.stride + 2 - c.before) / c.factor + 1;
  const long first_row = std::max(0L, (part.top * c.stride - c.before) / c.factor);
  const long n_rows = std::min(end, c.height) - first_row;
  PairBuffer rounded(part.n_pictures * n_rows * c.width * n_pairs);
  const int used = cores_for(9.0 * part.n_pictures * pixels * c.channels * c.n_outputs, cores);
  parallel(used, part.n_pictures * n_rows, [&](int i) {
    const long b = part.picture + i / n_rows, y = first_row + i % n_rows;
    Buffer pixel(c.channels);
    for (long j = 0; j < c.width; j++) {
      c.normalize(c.x + ((b * c.height + y) * c.width + j) * c.channels, b, 0, c.channels, pixel);
      round_row(pixel, c.channels, rounded + (i * c.width + j) * n_pairs);
    }
  });
  auto fill = [&](long i, uint32_t *row) {
    const long b = i / pixels, y = part.top + i % pixels / c.out_width, x = i % c.out_width;
    for (int tap = 0; tap < 9; tap++, row += n_pairs) {
      const long at = c.input(y, tap / 3, c.height), j = c.input(x, tap % 3, c.width);
      if (at < 0 || j < 0)
        std::fill_n(row, n_pairs, 0u);
      else
        std::copy_n(rounded + ((b * n_rows + at - first_row) * c.width + j) * n_pairs, n_pairs, row);
    }
  };
  const long at = (part.picture * c.out_height + part.top) * c.out_width * c.n_outputs;
  const std::vector<HalfOutput> outputs{
      {c.weight, c.bias + part.picture * c.bias_stride, c.out + at}};
  HalfLinear product(part.n_pictures * pixels, 9 * c.channels, c.n_outputs, outputs,
                     c.residual ? c.residual + at : nullptr, false, fill);
  product.run(used);
}

void convolve(const Convolution &c, int cores) {
  const long most = 4 << 20;  // pairs of the rounded input
  const long picture = c.height * c.width * c.channels / 2;
  if (picture > most) {  // some rows of a picture at a time
    const long n = std::max(1L, c.out_height * most / picture);
    for (long b = 0; b < c.batch; b++)
      for (long top = 0; top < c.out_height; top += n)
        convolve_part(c, {b, 1, top, std::min(n, c.out_height - top)}, cores);
    return;
  }
  const long n = c.bias_stride ? 1 : std::min(c.batch, most / picture);
  for (long b = 0; b < c.batch; b += n)
    convolve_part(c, {b, std::min(n, c.batch - b), 0, c.out_height}, cores);
}

// --- Winograd's method -------------------------------------------------------------------------

constexpr float NEAR = 2.0f / 3, FAR = 3.0f / 2;  // the points ±NEAR and ±FAR; their product is 1
constexpr float NEAR2 = NEAR * NEAR, FAR2 = FAR * FAR;

enum { TILE = 4, PATCH = 6, TERMS = PATCH * PATCH };  // sides of output tile and of its input patch
enum { SIDE = 8 };                                    // most tiles of a block along one side
enum { OUTPUTS = 24, DEPTH = 128, CHANNELS = 32 };    // at a time, so that they stay in the cache
enum { APART = 16 };  // numbers between terms, so that they do not share places in the cache

// Neighbouring tiles of one or more pictures.
struct Block {
  long picture, n_pictures, top, height, left, width;  // in tiles

  long n() const { return n_pictures * height * width; }
  long n_panels() const { return ceil_div(n(), HALF_PANEL); }
  long term() const { return n_panels() * DEPTH / 2 * HALF_PANEL + APART; }  // in pairs
  struct Tile { long picture, y, x; };
  Tile tile(long i) const {
    return {picture + i / (height * width), top + i / width % height, left + i % width};
  }
};

// The transforms along one side. `S` is the distance between numbers of the input, `T` between
// numbers of the output.
template <int S>
INLINE void patch_transform(Vec *d) {
  const Vec d1 = d[S], d2 = d[2 * S], d3 = d[3 * S], d4 = d[4 * S], d5 = d[5 * S];
  d[0] = d[0] - (NEAR2 + FAR2) * d2 + d4;
  Vec even = d4 - FAR2 * d2, odd = NEAR * d3 - FAR * d1;
  d[S] = even + odd;
  d[2 * S] = even - odd;
  even = d4 - NEAR2 * d2, odd = FAR * d3 - NEAR * d1;
  d[3 * S] = even + odd;
  d[4 * S] = even - odd;
  d[5 * S] = d1 - (NEAR2 + FAR2) * d3 + d5;
}

template <int S, int T>
INLINE void weight_transform(const Vec *g, Vec *u) {
  // Of the polynomial g at each point, divided by the product of its distances from the others.
  constexpr float near = 1 / (2 * NEAR2 * (NEAR2 - FAR2)), far = 1 / (2 * FAR2 * (FAR2 - NEAR2));
  Vec even = near * g[0] + near * NEAR2 * g[2 * S], odd = near * NEAR * g[S];
  u[0] = g[0];
  u[T] = even + odd;
  u[2 * T] = even - odd;
  even = far * g[0] + far * FAR2 * g[2 * S], odd = far * FAR * g[S];
  u[3 * T] = even + odd;
  u[4 * T] = even - odd;
  u[5 * T] = g[2 * S];
}

template <int S, int T>
INLINE void result_transform(const Vec *m, Vec *y) {
  const Vec sum = m[S] + m[2 * S], difference = m[S] - m[2 * S];
  const Vec far_sum = m[3 * S] + m[4 * S], far_difference = m[3 * S] - m[4 * S];
  y[0] = m[0] + sum + far_sum;
  y[T] = NEAR * difference + FAR * far_difference;
  y[2 * T] = NEAR2 * sum + FAR2 * far_sum;
  y[3 * T] = NEAR2 * NEAR * difference + FAR2 * FAR * far_difference + m[5 * S];
}

// Transforms channels first … first + n of a block's patches. The result is in the order in which
// it is read: for every DEPTH channels and each term, pairs [panels][DEPTH / 2][HALF_PANEL].
void transform_patches(const Convolution &c, const Block &block, long first, long n,
                       uint32_t *patches) {
  const long height = TILE * block.height + 2, width = TILE * block.width + 2;
  Buffer pixels(block.n_pictures * height * width * CHANNELS);
  float *to = pixels;
  for (long b = block.picture; b < block.picture + block.n_pictures; b++)
    for (long i = 0; i < height; i++)
      for (long j = 0; j < width; j++, to += CHANNELS)
        if (const float *from = c.pixel(b, TILE * block.top, TILE * block.left, i, j))
          c.normalize(from, b, first, n, to);
        else
          std::fill_n(to, n, 0.0f);

  for (long z = 0; z < n; z += LANES)
    for (long t = 0; t < block.n_panels() * HALF_PANEL; t += LANES) {
      Vec terms[TERMS][LANES] = {};
      for (long lane = 0; lane < std::min<long>(LANES, block.n() - t); lane++) {
        const auto [b, y, x] = block.tile(t + lane);
        const long row = (b - block.picture) * height + TILE * (y - block.top);
        const float *from = pixels + (row * width + TILE * (x - block.left)) * CHANNELS + z;
        Vec patch[TERMS];
        for (int i = 0; i < PATCH; i++)
          for (int j = 0; j < PATCH; j++)
            patch[PATCH * i + j] = load(from + (i * width + j) * CHANNELS);
        for (int i = 0; i < PATCH; i++) patch_transform<1>(patch + PATCH * i);
        for (int j = 0; j < PATCH; j++) patch_transform<PATCH>(patch + j);
        for (int i = 0; i < TERMS; i++) terms[i][lane] = patch[i];
      }
      const long pair = (t / HALF_PANEL * DEPTH + (first + z) % DEPTH) / 2;
      for (int i = 0; i < TERMS; i++) {
        transpose(terms[i]);  // [channels][tiles]
        uint32_t *at = patches + ((first + z) / DEPTH * TERMS + i) * block.term() +
                       pair * HALF_PANEL + t % HALF_PANEL;
        for (int k = 0; k < LANES / 2; k++)
          store(at + k * HALF_PANEL, make_pairs(terms[i][2 * k], terms[i][2 * k + 1]));
      }
    }
}

// Transforms the weights of outputs first … first + n and channels k … k + depth.
void transform_weights(const Convolution &c, long first, long n, long k, long depth, long term,
                       uint16_t *weights) {
  for (long o = 0; o < n; o++)
    for (long z = 0; z < depth; z += LANES) {
      Vec taps[9], half[18], terms[TERMS];
      for (int i = 0; i < 9; i++)
        taps[i] = load_halves(c.weight + ((first + o) * 9 + i) * c.channels + k + z);
      for (int j = 0; j < 3; j++) weight_transform<3, 3>(taps + j, half + j);
      for (int i = 0; i < PATCH; i++) weight_transform<1, 1>(half + 3 * i, terms + PATCH * i);
      for (int i = 0; i < TERMS; i++) store_halves(weights + i * term + o * DEPTH + z, terms[i]);
    }
}

// Computes outputs first … first + n of a block from its transformed patches.
void transform_back(const Convolution &c, const Block &block, long first, long n,
                    const uint32_t *patches) {
  const long stride = block.n_panels() * HALF_PANEL;
  const long weight_term = OUTPUTS * DEPTH + 2 * APART, sum_term = OUTPUTS * stride + APART;
  PairBuffer pairs(TERMS * weight_term / 2);
  uint16_t *weights = (uint16_t *)(uint32_t *)pairs;
  Buffer sums(TERMS * sum_term);
  for (long k = 0; k < c.channels; k += DEPTH) {
    const long depth = std::min<long>(DEPTH, c.channels - k);
    transform_weights(c, first, n, k, depth, weight_term, weights);
    for (long i = 0; i < TERMS; i++)
      for (long p = 0; p < block.n_panels(); p++) {
        const uint32_t *panel =
            patches + (k / DEPTH * TERMS + i) * block.term() + p * DEPTH / 2 * HALF_PANEL;
        multiply_half(n, {weights + i * weight_term, DEPTH}, panel, depth / 2,
                      sums + i * sum_term + p * HALF_PANEL, stride, k > 0);
      }
  }
  for (long o = 0; o < n; o += LANES)
    for (long t = 0; t < block.n(); t += LANES) {
      const long n_some = std::min<long>(LANES, n - o);
      Vec pixels[TILE * TILE][LANES] = {};
      for (long lane = 0; lane < n_some; lane++) {
        Vec terms[TERMS], half[TILE * PATCH], tile[TILE * TILE];
        for (int i = 0; i < TERMS; i++)
          terms[i] = load(sums + i * sum_term + (o + lane) * stride + t);
        for (int i = 0; i < PATCH; i++)
          result_transform<1, 1>(terms + PATCH * i, half + TILE * i);
        for (int j = 0; j < TILE; j++) result_transform<TILE, TILE>(half + j, tile + j);
        for (int i = 0; i < TILE * TILE; i++) pixels[i][lane] = tile[i];
      }
      for (int i = 0; i < TILE * TILE; i++) {
        transpose(pixels[i]);  // [tiles][outputs]
        for (long lane = 0; lane < std::min<long>(LANES, block.n() - t); lane++) {
          const auto [b, tile_y, tile_x] = block.tile(t + lane);
          const long y = TILE * tile_y + i / TILE, x = TILE * tile_x + i % TILE;
          if (y >= c.out_height || x >= c.out_width) continue;
          const float *bias = c.bias + b * c.bias_stride + first + o;
          const long at = ((b * c.out_height + y) * c.out_width + x) * c.n_outputs + first + o;
          Vec sum = pixels[i][lane] + load_some(bias, n_some);
          if (c.residual) sum += load_some(c.residual + at, n_some);
          store_some(c.out + at, sum, n_some);
        }
      }
    }
}

void convolve_by_tiles(const Convolution &c, int cores) {
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

  const long n_blocks = blocks.size(), size = ceil_div(c.channels, DEPTH) * TERMS * blocks[0].term();
  const long n_inner = ceil_div(c.channels, CHANNELS), n_outer = ceil_div(c.n_outputs, OUTPUTS);
  auto transform_input = [&](const Block &block, long i, uint32_t *patches) {
    const long first = i * CHANNELS, n = std::min<long>(CHANNELS, c.channels - first);
    transform_patches(c, block, first, n, patches);
  };
  auto compute_output = [&](const Block &block, long i, const uint32_t *patches) {
    const long first = i * OUTPUTS, n = std::min<long>(OUTPUTS, c.n_outputs - first);
    transform_back(c, block, first, n, patches);
  };
  if (n_blocks >= 4 * cores) {  // each core computes some of the blocks
    parallel(cores, n_blocks, [&](int b) {
      PairBuffer patches(size);
      for (long i = 0; i < n_inner; i++) transform_input(blocks[b], i, patches);
      for (long i = 0; i < n_outer; i++) compute_output(blocks[b], i, patches);
    });
    return;
  }
  PairBuffer patches(n_blocks * size);
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

// Returns whether Winograd's method takes less time. Tiles of AMX multiply so fast that the
// transforms would take longer than the products that they save.
bool are_tiles_faster(const Convolution &c) {
  const long tiles = c.batch * ceil_div(c.out_height, TILE) * ceil_div(c.out_width, TILE);
  const long pixels = c.batch * c.out_height * c.out_width;
  const bool fits = c.stride == 1 && c.before == 1 && c.channels % LANES == 0;
  const long panels = ceil_div(tiles, HALF_PANEL) * HALF_PANEL;
  return choose_half_products() == 1 && fits && TERMS * panels + 100 < 9 * pixels;
}

}  // namespace

// Computes what `conv3x3` does, with weights and pixels in bfloat16. The channels are even.
extern "C" bool half_conv3x3(const float *x, long batch, long height, long width, long channels,
                             const float *gain, const float *offset, long activation, long factor,
                             long stride, long before, const uint16_t *weight, long n_outputs,
                             const float *bias, long bias_per_picture, const float *residual,
                             float *out, long out_height, long out_width, long cores) {
  return try_run([&] {
    const Convolution c{x, gain, offset, weight, bias, residual, out, batch, height, width,
                        channels, out_height, out_width, n_outputs, bias_per_picture ? n_outputs : 0,
                        activation, factor, stride, before};
    if (are_tiles_faster(c))
      convolve_by_tiles(c, cores_for(4.0 * batch * out_height * out_width * channels * n_outputs,
                                     cores));
    else
      convolve(c, cores);
  });
}

#endif
