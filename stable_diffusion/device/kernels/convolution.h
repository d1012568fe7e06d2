// 3×3 convolutions of pictures, channels last, with the norm before and the residual after them.
//
// Winograd's method F(4×4, 3×3) (arXiv:1509.09308) needs 36 products for a tile of 16 pixels, the
// direct sum 144.
#pragma once

#include "activations.h"
#include "product.h"

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

// A convolution by Winograd's method.
//
// `Product`: how it multiplies, see `FloatProduct`. `Points`: the transforms along one side, see
// `WholePoints`.
template <class Product, class Points>
class Winograd {
  typedef typename Product::Weight Weight;
  typedef typename Product::Factor Factor;
  typedef typename Product::Factors Factors;
  enum { PANEL = Product::PANEL, NUMBERS = Product::NUMBERS };
  enum { TILE = 4, PATCH = 6, TERMS = PATCH * PATCH };  // sides of output tile and of its input
  enum { SIDE = 8 };                                    // most tiles of a block along one side
  enum { OUTPUTS = 24, DEPTH = 64 * NUMBERS, CHANNELS = 32 };  // that stay in the cache together
  enum { APART = 16 };  // factors between terms, so that they do not share places in the cache
  enum { WEIGHT_TERM = OUTPUTS * DEPTH + APART * NUMBERS };

  const Convolution<Weight> &c;

  // Neighbouring tiles of one or more pictures.
  struct Block {
    long picture, n_pictures, top, height, left, width;  // in tiles

    long n() const { return n_pictures * height * width; }
    long n_panels() const { return ceil_div(n(), PANEL); }
    long term() const { return n_panels() * DEPTH / NUMBERS * PANEL + APART; }  // in factors
    struct Tile { long picture, y, x; };
    Tile tile(long i) const {
      return {picture + i / (height * width), top + i / width % height, left + i % width};
    }
  };

  // Transforms channels first … first + n of a block's patches. The result is in the order in which
  // it is read: for every DEPTH channels and each term, [panels][DEPTH][PANEL] numbers.
  void transform_patches(const Block &block, long first, long n, Factor *patches) const {
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
          for (int i = 0; i < PATCH; i++) Points::template patch_transform<1>(patch + PATCH * i);
          for (int j = 0; j < PATCH; j++) Points::template patch_transform<PATCH>(patch + j);
          for (int i = 0; i < TERMS; i++) terms[i][lane] = patch[i];
        }
        const long k = t / PANEL * DEPTH + (first + z) % DEPTH;
        const long at = k / NUMBERS * PANEL + t % PANEL;
        for (int i = 0; i < TERMS; i++) {
          transpose(terms[i]);  // [channels][tiles]
          Product::store_factors(patches + ((first + z) / DEPTH * TERMS + i) * block.term() + at,
                                 terms[i]);
        }
      }
  }

  // Transforms the weights of outputs first … first + n and channels k … k + depth.
  void transform_weights(long first, long n, long k, long depth, Weight *weights) const {
    for (long o = 0; o < n; o++) {
      const long size = 9 * c.channels;
      const Weight *from = c.weight + (first + o) * size + k;
      for (int i = 0; i < 9; i++) prefetch(from + i * c.channels, size, depth);  // of output o + 1
      for (long z = 0; z < depth; z += LANES) {
        Vec taps[9], half[18], terms[TERMS];
        for (int i = 0; i < 9; i++) taps[i] = Product::load_weights(from + i * c.channels + z);
        for (int j = 0; j < 3; j++) Points::template weight_transform<3, 3>(taps + j, half + j);
        for (int i = 0; i < PATCH; i++)
          Points::template weight_transform<1, 1>(half + 3 * i, terms + PATCH * i);
        for (int i = 0; i < TERMS; i++)
          Product::store_weights(weights + i * WEIGHT_TERM + o * DEPTH + z, terms[i]);
      }
    }
  }

  // Computes the transforms of outputs first … first + n: [TERMS][n][panels][PANEL].
  void multiply_terms(const Block &block, long first, long n, const Factor *patches, long stride,
                      long sum_term, float *sums) const {
    Factors memory(TERMS * WEIGHT_TERM / NUMBERS);
    Weight *weights = (Weight *)(Factor *)memory;
    for (long k = 0; k < c.channels; k += DEPTH) {
      const long depth = std::min<long>(DEPTH, c.channels - k);
      transform_weights(first, n, k, depth, weights);
      for (long i = 0; i < TERMS; i++)
        for (long p = 0; p < block.n_panels(); p++) {
          const Factor *panel =
              patches + (k / DEPTH * TERMS + i) * block.term() + p * DEPTH / NUMBERS * PANEL;
          Product::multiply(n, weights + i * WEIGHT_TERM, DEPTH, panel, depth / NUMBERS,
                            sums + i * sum_term + p * PANEL, stride, k > 0, true);
        }
    }
  }

  // Computes outputs first … first + n of a block from its transformed patches.
  void transform_back(const Block &block, long first, long n, const Factor *patches) const {
    const long stride = block.n_panels() * PANEL, sum_term = OUTPUTS * stride + APART;
    Buffer sums(TERMS * sum_term);
    multiply_terms(block, first, n, patches, stride, sum_term, sums);
    for (long o = 0; o < n; o += LANES)
      for (long t = 0; t < block.n(); t += LANES) {
        const long n_some = std::min<long>(LANES, n - o);
        Vec pixels[TILE * TILE][LANES] = {};
        for (long lane = 0; lane < n_some; lane++) {
          Vec terms[TERMS], half[TILE * PATCH], tile[TILE * TILE];
          for (int i = 0; i < TERMS; i++)
            terms[i] = load(sums + i * sum_term + (o + lane) * stride + t);
          for (int i = 0; i < PATCH; i++)
            Points::template result_transform<1, 1>(terms + PATCH * i, half + TILE * i);
          for (int j = 0; j < TILE; j++)
            Points::template result_transform<TILE, TILE>(half + j, tile + j);
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

 public:
  explicit Winograd(const Convolution<Weight> &convolution) : c(convolution) {}

  // Returns whether 36 products for a tile and the transforms are less work than 9 for each pixel.
  bool is_faster() const {
    const long tiles = c.batch * ceil_div(c.out_height, TILE) * ceil_div(c.out_width, TILE);
    const long pixels = c.batch * c.out_height * c.out_width;
    const bool fits = c.stride == 1 && c.before == 1 && c.channels % LANES == 0;
    const long panels = ceil_div(tiles, PANEL) * PANEL;
    return fits && TERMS * panels + 100 < 9 * pixels;
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
    auto transform_input = [&](const Block &block, long i, Factor *patches) {
      const long first = i * CHANNELS, n = std::min<long>(CHANNELS, c.channels - first);
      transform_patches(block, first, n, patches);
    };
    auto compute_output = [&](const Block &block, long i, const Factor *patches) {
      const long first = i * OUTPUTS, n = std::min<long>(OUTPUTS, c.n_outputs - first);
      transform_back(block, first, n, patches);
    };
    if (n_blocks >= 4 * cores) {  // each core computes some of the blocks
      parallel(cores, n_blocks, [&](int b) {
        Factors patches(size);
        for (long i = 0; i < n_inner; i++) transform_input(blocks[b], i, patches);
        for (long i = 0; i < n_outer; i++) compute_output(blocks[b], i, patches);
      });
      return;
    }
    Factors patches(n_blocks * size);
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
