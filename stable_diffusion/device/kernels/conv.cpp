// 3×3 convolutions of pictures, channels last, with the norm before and the residual after them.
//
// If there are enough pixels, Winograd's method F(4×4, 3×3) (arXiv:1509.09308) is used: it needs 36
// products for a tile of 16 pixels, the direct sum 144.

#include "linear.h"

namespace {

struct Convolution {
  const float *x;              // [B, H, W, C]
  const float *gain, *offset;  // [B, C] each, or null
  const float *weight;         // [O, 3, 3, C]
  const float *bias;           // [O] if bias_stride is 0, else [B, O]
  const float *residual;       // [B, h, w, O], or null
  float *out;                  // [B, h, w, O]
  long batch, height, width, channels, out_height, out_width, n_outputs, bias_stride;
  long activation;
  long factor;  // by which x is upsampled first
  long stride;
  long before;  // rows of padding above and columns to the left

  // Returns the input pixel for tap (dy, dx) of output pixel (i, j); null if it is padding.
  const float *pixel(long b, long i, long j, int dy, int dx) const {
    i = i * stride + dy - before, j = j * stride + dx - before;
    if (i < 0 || j < 0 || i >= height * factor || j >= width * factor) return nullptr;
    return x + ((b * height + i / factor) * width + j / factor) * channels;
  }

  // Writes channels first … first + n of a pixel of picture b, after norm and activation.
  void normalize(const float *from, long b, long first, long n, float *to) const {
    const float *g = gain ? gain + b * channels + first : nullptr;
    const float *o = gain ? offset + b * channels + first : nullptr;
    normalize_pixel(from + first, n, g, o, activation, to);
  }
};

// --- direct sum --------------------------------------------------------------------------------

void convolve(const Convolution &c, int cores) {
  const long pixels = c.out_height * c.out_width, k = 9 * c.channels;
  auto fill = [&](long i, float *row) {
    const long b = i / pixels, y = i % pixels / c.out_width, x = i % c.out_width;
    for (int tap = 0; tap < 9; tap++, row += c.channels)
      if (const float *from = c.pixel(b, y, x, tap / 3, tap % 3))
        c.normalize(from, b, 0, c.channels, row);
      else
        std::fill_n(row, c.channels, 0.0f);
  };
  for (long b = 0; b < c.batch; b++) {
    const long n = c.bias_stride ? pixels : c.batch * pixels, size = b * pixels * c.n_outputs;
    const std::vector<Output> outputs{{c.weight, c.bias + b * c.bias_stride, c.out + size}};
    Linear product(n, k, c.n_outputs, outputs, c.residual ? c.residual + size : nullptr, false,
                   [&](long i, float *row) { fill(b * pixels + i, row); });
    product.run(cores_for(1.0 * n * k * c.n_outputs, cores));
    if (!c.bias_stride) break;
  }
}

// --- Winograd's method -------------------------------------------------------------------------

enum { TILE = 4, PATCH = 6, TERMS = PATCH * PATCH };  // sides of output tile and of its input patch
enum { SIDE = 8 };                                    // most tiles of a block along one side
enum { OUTPUTS = 24, DEPTH = 64, CHANNELS = 32 };     // at a time, so that they stay in the cache
enum { APART = 16 };  // numbers between terms, so that they do not share places in the cache

// Neighbouring tiles of one or more pictures.
struct Block {
  long picture, n_pictures, top, height, left, width;  // in tiles

  long n() const { return n_pictures * height * width; }
  long n_panels() const { return ceil_div(n(), PANEL); }
  long term() const { return n_panels() * DEPTH * PANEL + APART; }
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
  d[0] = 4 * d[0] - 5 * d2 + d4;
  Vec even = d4 - 4 * d2, odd = d3 - 4 * d1;
  d[S] = even + odd;
  d[2 * S] = even - odd;
  even = d4 - d2, odd = 2 * (d3 - d1);
  d[3 * S] = even + odd;
  d[4 * S] = even - odd;
  d[5 * S] = 4 * d1 - 5 * d3 + d5;
}

template <int S, int T>
INLINE void weight_transform(const Vec *g, Vec *u) {
  const Vec ends = (g[0] + g[2 * S]) * (-1.0f / 6), middle = g[S] * (1.0f / 6);
  const Vec even = g[0] * (1.0f / 24) + g[2 * S] * (1.0f / 6), odd = g[S] * (1.0f / 12);
  u[0] = g[0] * 0.25f;
  u[T] = ends - middle;
  u[2 * T] = ends + middle;
  u[3 * T] = even + odd;
  u[4 * T] = even - odd;
  u[5 * T] = g[2 * S];
}

template <int S, int T>
INLINE void result_transform(const Vec *m, Vec *y) {
  const Vec sum = m[S] + m[2 * S], difference = m[S] - m[2 * S];
  const Vec far_sum = m[3 * S] + m[4 * S], far_difference = m[3 * S] - m[4 * S];
  y[0] = m[0] + sum + far_sum;
  y[T] = difference + 2 * far_difference;
  y[2 * T] = sum + 4 * far_sum;
  y[3 * T] = difference + 8 * far_difference + m[5 * S];
}

// Transforms channels first … first + n of a block's patches. The result is in the order in which
// it is read: for every DEPTH channels and each term, [panels][DEPTH][PANEL].
void transform_patches(const Convolution &c, const Block &block, long first, long n,
                       float *patches) {
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
    for (long t = 0; t < block.n_panels() * PANEL; t += LANES) {
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
      for (int i = 0; i < TERMS; i++) {
        transpose(terms[i]);  // [channels][tiles]
        float *at = patches + ((first + z) / DEPTH * TERMS + i) * block.term() + t % PANEL +
                    (t / PANEL * DEPTH + (first + z) % DEPTH) * PANEL;
        for (int channel = 0; channel < LANES; channel++)
          store(at + channel * PANEL, terms[i][channel]);
      }
    }
}

// Computes outputs first … first + n of a block from its transformed patches.
void transform_back(const Convolution &c, const Block &block, long first, long n,
                    const float *patches) {
  const long stride = block.n_panels() * PANEL;
  const long weight_term = OUTPUTS * DEPTH + APART, sum_term = OUTPUTS * stride + APART;
  Buffer weights(TERMS * weight_term), sums(TERMS * sum_term);
  for (long k = 0; k < c.channels; k += DEPTH) {
    const long depth = std::min<long>(DEPTH, c.channels - k);
    for (long o = 0; o < n; o++) {
      const long size = 9 * c.channels;
      const float *weight = c.weight + (first + o) * size + k;
      for (int i = 0; i < 9; i++) prefetch(weight + i * c.channels, size, depth);  // of output o + 1
      for (long z = 0; z < depth; z += LANES) {
        Vec taps[9], half[18], terms[TERMS];
        for (int i = 0; i < 9; i++) taps[i] = load(weight + i * c.channels + z);
        for (int j = 0; j < 3; j++) weight_transform<3, 3>(taps + j, half + j);
        for (int i = 0; i < PATCH; i++) weight_transform<1, 1>(half + 3 * i, terms + PATCH * i);
        for (int i = 0; i < TERMS; i++) store(weights + i * weight_term + o * DEPTH + z, terms[i]);
      }
    }
    for (long i = 0; i < TERMS; i++)
      for (long p = 0; p < block.n_panels(); p++) {
        const float *panel = patches + (k / DEPTH * TERMS + i) * block.term() + p * DEPTH * PANEL;
        multiply(n, {weights + i * weight_term, DEPTH, 1}, panel, depth,
                 sums + i * sum_term + p * PANEL, stride, k > 0, true);
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
          const float *sum = (const float *)&pixels[i][lane];
          if (c.residual)
            each(n_some, sum, c.out + at, [](Vec s, Vec b, Vec a) { return s + b + a; }, bias,
                 c.residual + at);
          else
            each(n_some, sum, c.out + at, [](Vec s, Vec b) { return s + b; }, bias);
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
  auto transform_input = [&](const Block &block, long i, float *patches) {
    const long first = i * CHANNELS, n = std::min<long>(CHANNELS, c.channels - first);
    transform_patches(c, block, first, n, patches);
  };
  auto compute_output = [&](const Block &block, long i, const float *patches) {
    const long first = i * OUTPUTS, n = std::min<long>(OUTPUTS, c.n_outputs - first);
    transform_back(c, block, first, n, patches);
  };
  if (n_blocks >= 4 * cores) {  // each core computes some of the blocks
    parallel(cores, n_blocks, [&](int b) {
      Buffer patches(size);
      for (long i = 0; i < n_inner; i++) transform_input(blocks[b], i, patches);
      for (long i = 0; i < n_outer; i++) compute_output(blocks[b], i, patches);
    });
    return;
  }
  Buffer patches(n_blocks * size);
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

// Returns whether 36 products for a tile, with the transforms, are less work than 9 for each pixel.
bool are_tiles_faster(const Convolution &c) {
  const long tiles = c.batch * ceil_div(c.out_height, TILE) * ceil_div(c.out_width, TILE);
  const long pixels = c.batch * c.out_height * c.out_width;
  const bool fits = c.stride == 1 && c.before == 1 && c.channels % LANES == 0;
  const long panels = ceil_div(tiles, PANEL) * PANEL;
  return fits && TERMS * panels + 100 < 9 * pixels;
}

}  // namespace

// Computes out [B, h, w, O] = convolution of activation(x · gain + offset), + bias, + residual.
//
// gain, offset and residual may be null. With stride 1 the result has the size of x, upsampled by
// `factor`; with stride 2, half of it. `before`: rows of padding above and columns to the left.
extern "C" bool conv3x3(const float *x, long batch, long height, long width, long channels,
                        const float *gain, const float *offset, long activation, long factor,
                        long stride, long before, const float *weight, long n_outputs,
                        const float *bias, long bias_per_picture, const float *residual, float *out,
                        long out_height, long out_width, long cores) {
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
