// Softmax attention that holds only as many scores as fit into the cache (arXiv:2205.14135).
#pragma once

#include "product.h"
#include "softmax.h"

// Attention of queries [B, L, H, D] to keys and values [B, M, H, D]. `Product`: how it multiplies,
// see `FloatProduct`.
template <class Product>
class Attention {
  typedef typename Product::Weight Weight;
  typedef typename Product::Factor Factor;
  typedef typename Product::Factors Factors;
  enum { PANEL = Product::PANEL, NUMBERS = Product::NUMBERS };
  enum { MAX_KEYS = 256, MAX_QUERIES = 256 };  // of a block
  enum { BLOCK = 16384 };  // factors of a block of keys, which stays in the second-level cache
  enum { PACKED = 1 << 21 };  // factors of the heads that are packed at a time, if they are many

  const float *const queries_, *const keys_, *const values_;
  float *const out_;
  const long batch_, length_, n_rows_, n_heads_, width_;  // rows: of keys and values
  const float scale_;
  const bool causal_;
  const long n_keys_ = causal_ ? std::min(length_, n_rows_) : n_rows_;  // that matter
  const long stride_ = n_heads_ * width_;  // numbers from one row to the next
  const long depth_ = ceil_div(width_, LANES) * LANES / NUMBERS;  // factors of a packed row
  const long step_ = std::clamp<long>(BLOCK / depth_ / 16 * 16, 16, MAX_KEYS);  // keys of a block
  const long n_blocks_ = ceil_div(n_keys_, step_);
  const long block_size_ = step_ * depth_;  // factors of its keys, and of its values

  // Returns row i of head h, which is counted over all pictures, in an array with n rows for each.
  template <class Number>
  Number *row(Number *numbers, long h, long n, long i) const {
    return numbers + (h / n_heads_ * n + i) * stride_ + h % n_heads_ * width_;
  }

  // Writes a block of keys side by side, [keys][depth] factors, and of values, [width][keys].
  void pack(long h, long block, Factor *keys, Factor *values) const {
    const long first = block * step_, n = std::min(step_, n_keys_ - first);
    if (NUMBERS * depth_ > width_) std::fill_n(keys, n * depth_, Factor());
    for (long j = 0; j < n; j++)
      Product::pack_row(row(keys_, h, n_rows_, first + j), width_, keys + j * depth_);
    for (long j = 0; j < n; j += LANES * NUMBERS)
      for (long d = 0; d < width_; d += LANES) {
        const long lanes = std::min<long>(LANES, width_ - d);
        Vec factors[LANES];  // which are moved, not computed with
        for (long i = 0; i < LANES; i++) {
          Vec numbers[NUMBERS] = {};
          for (long k = 0; k < NUMBERS; k++)
            if (const long at = j + NUMBERS * i + k; at < n)
              numbers[k] = load_some(row(values_, h, n_rows_, first + at) + d, lanes);
          factors[i] = Product::join(numbers);
        }
        transpose(factors);
        for (long i = 0; i < lanes; i++)
          store((float *)(values + ((d + i) * step_ + j) / NUMBERS), factors[i]);
      }
  }

  // Writes queries first … last as panels, scaled so that scores are logarithms to the base 2.
  void pack_queries(long h, long first, long last, Factor *panels) const {
    const float scale = scale_ * LOG2_E;
    for (long i = 0; i < ceil_div(last - first, PANEL) * PANEL; i += LANES)
      for (long d = 0; d < width_; d += LANES) {
        Vec numbers[LANES] = {};
        for (long r = 0; r < std::min<long>(LANES, last - first - i); r++)
          numbers[r] = scale * load_some(row(queries_, h, length_, first + i + r) + d,
                                         std::min<long>(LANES, width_ - d));
        transpose(numbers);
        Factor *panel = panels + i / PANEL * depth_ * PANEL;
        for (long k = 0; k < LANES; k += NUMBERS)
          store((float *)(panel + (d + k) / NUMBERS * PANEL + i % PANEL), Product::join(numbers + k));
      }
  }

  // Writes the results of queries first … last from panels.
  void unpack(long h, long first, long last, const float *panels, long size,
              const float *sums) const {
    for (long i = 0; i < last - first; i += LANES)
      for (long d = 0; d < width_; d += LANES) {
        Vec numbers[LANES];
        const float *from = panels + i / PANEL * size + d * PANEL + i % PANEL;
        for (long k = 0; k < LANES; k++) numbers[k] = load(from + k * PANEL) / load(sums + i);
        transpose(numbers);
        for (long r = 0; r < std::min<long>(LANES, last - first - i); r++)
          store_some(row(out_, h, length_, first + i + r) + d, numbers[r],
                     std::min<long>(LANES, width_ - d));
      }
  }

  // Computes the attention of queries first … last to packed keys and values.
  void attend(long h, long first, long last, const Factor *keys, const Factor *values) const {
    const long n_panels = ceil_div(last - first, PANEL);
    const long size = ceil_div(width_, LANES) * LANES * PANEL;  // of a panel of results
    Factors queries(n_panels * depth_ * PANEL), scores(step_ * PANEL);
    Buffer out(n_panels * size), maxima(n_panels * PANEL), sums(n_panels * PANEL);
    pack_queries(h, first, last, queries);
    std::fill_n(maxima.data, n_panels * PANEL, -INFINITY);
    const long n_keys = causal_ ? std::min(last, n_keys_) : n_keys_;
    for (long key = 0; key < n_keys; key += step_, keys += block_size_, values += block_size_) {
      const long n = std::min(step_, n_keys - key);
      for (long p = 0; p < n_panels; p++) {
        float *score = (float *)(Factor *)scores;
        Product::multiply(n, (const Weight *)keys, NUMBERS * depth_, queries + p * depth_ * PANEL,
                          depth_, score, PANEL, false);
        if (causal_) mask(first + p * PANEL, key, n, score);
        const Softmax softmax{maxima + p * PANEL, sums + p * PANEL, out + p * size, width_};
        softmax.update<PANEL>(score, n, key == 0, [&](long j, long i, const Vec *weights) {
          for (long k = 0; k < 2; k += NUMBERS)  // in place of scores that are not needed again
            store(score + (j + k) / NUMBERS * PANEL + i, Product::join(weights + k));
        });
        Product::multiply(width_, (const Weight *)values, step_, scores, ceil_div(n, NUMBERS),
                          softmax.out, PANEL, key > 0);
      }
    }
    unpack(h, first, last, out, size, sums);
  }

  // Makes the scores of keys that come after their query too small to matter.
  static void mask(long query, long key, long n, float *scores) {
    for (long j = 0; j < n; j++)
      for (long i = 0; i < PANEL && query + i < key + j; i++) scores[j * PANEL + i] = -1e30f;
  }

 public:
  Attention(const float *queries, const float *keys, const float *values, float *out, long batch,
            long length, long n_rows, long n_heads, long width, float scale, bool causal)
      : queries_(queries), keys_(keys), values_(values), out_(out), batch_(batch), length_(length),
        n_rows_(n_rows), n_heads_(n_heads), width_(width), scale_(scale), causal_(causal) {}

  void run(int cores) const {
    const long n_all = batch_ * n_heads_, size = n_blocks_ * block_size_;
    long n_queries = MAX_QUERIES;
    while (n_queries > 64 && n_all * ceil_div(length_, n_queries) < 4 * cores) n_queries /= 2;
    const long n_parts = ceil_div(length_, n_queries);
    const long at_once = std::clamp<long>(PACKED / size, 1, n_all);
    Factors keys(at_once * size), values(at_once * size);
    for (long h = 0; h < n_all; h += at_once) {
      const long n = std::min(at_once, n_all - h);
      parallel(cores, n * n_blocks_, [&](int i) {
        pack(h + i / n_blocks_, i % n_blocks_, keys + i * block_size_, values + i * block_size_);
      });
      parallel(cores, n * n_parts, [&](int i) {
        const long head = i / n_parts, first = i % n_parts * n_queries;
        attend(h + head, first, std::min(first + n_queries, length_), keys + head * size,
               values + head * size);
      });
    }
  }
};
