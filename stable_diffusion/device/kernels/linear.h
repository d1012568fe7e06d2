// Matrix products with rows that are computed when needed: normalized, or taken from a picture.
#pragma once

#include "activations.h"
#include "product.h"

// One of the matrices to multiply the rows with: weight [O, K], bias [O] or null, out [N, O].
template <class Product>
struct Output {
  const typename Product::Weight *weight;
  const float *bias;
  float *out;
};

// Computes out = rows · weightᵀ + bias + residual for each of `outputs`. The residual may be null.
//
// fill(i, row) writes row i, K numbers, as factors. If `gated`, weight is [2 O, K], and the results
// of its first half are multiplied by the GELU of the results of its second half.
template <class Product, class Fill>
class Linear {
  typedef typename Product::Factor Factor;
  typedef typename Product::Factors Factors;
  enum { PANEL = Product::PANEL, NUMBERS = Product::NUMBERS };
  // Of a block, whose parts of all matrices stay in the cache; the depth is in factors.
  enum { OUTPUTS = 24 * NUMBERS, DEPTH = 320 };

  const long n_, k_, n_outputs_;  // k_: in factors
  const std::vector<Output<Product>> &outputs_;
  const float *const residual_;
  const bool gated_;
  const Fill fill_;

  // Outputs o … o + n_some of a matrix.
  struct Block {
    const Output<Product> &output;
    long o, n_some;
  };
  Block block(long i) const {
    const long n_blocks = ceil_div(n_outputs_, OUTPUTS), o = i % n_blocks * OUTPUTS;
    return {outputs_[i / n_blocks], o, std::min<long>(OUTPUTS, n_outputs_ - o)};
  }

  // Writes rows first … first + n side by side into panels.
  void pack(long first, long n, Factor *panels) const {
    Factors rows(LANES * k_);
    for (long i = 0; i < ceil_div(n, PANEL) * PANEL; i += LANES) {
      for (long r = 0; r < LANES; r++)
        if (i + r < n)
          fill_(first + i + r, rows + r * k_);
        else
          std::fill_n(rows + r * k_, k_, Factor());
      Factor *panel = panels + i / PANEL * PANEL * k_ + i % PANEL;
      long k = 0;
      for (; k + LANES <= k_; k += LANES) {
        Vec block[LANES];  // of factors, which are moved, not computed with
        for (long r = 0; r < LANES; r++) block[r] = load((float *)(rows + r * k_ + k));
        transpose(block);
        for (long j = 0; j < LANES; j++) store((float *)(panel + (k + j) * PANEL), block[j]);
      }
      for (; k < k_; k++)
        for (long r = 0; r < LANES; r++) panel[k * PANEL + r] = rows[r * k_ + k];
    }
  }

  // Computes blocks i … i + count of outputs, counted over all matrices, of the packed rows first …
  // first + n.
  void multiply_blocks(const Factor *panels, long first, long n, long i, long count) const {
    const long n_panels = ceil_div(n, PANEL), stride = n_panels * PANEL;
    const long gates = OUTPUTS * stride, size = gated_ ? 2 * gates : gates;
    Buffer memory(count * size);
    for (long k = 0; k < k_; k += DEPTH) {
      float *sums = memory;
      for (long j = i; j < i + count; j++, sums += size) {
        const auto [output, o, n_some] = block(j);
        for (long p = 0; p < n_panels; p++) {
          const Factor *panel = panels + (p * k_ + k) * PANEL;
          auto product = [&, &output = output, n_some = n_some](long from, float *to) {
            Product::multiply(n_some, output.weight + NUMBERS * (from * k_ + k), NUMBERS * k_, panel,
                              std::min<long>(DEPTH, k_ - k), to + p * PANEL, stride, k > 0);
          };
          product(o, sums);
          if (gated_) product(n_outputs_ + o, sums + gates);
        }
      }
    }
    for (long j = 0; j < count; j++)
      finish(block(i + j), first, n, memory + j * size, memory + j * size + gates, stride);
  }

  // Writes a block's results of rows first … first + n from sums [OUTPUTS][stride].
  void finish(const Block &block, long first, long n, const float *sums, const float *gates,
              long stride) const {
    const auto &[output, o, n_some] = block;
    for (long q = 0; q < n_some; q += LANES)
      for (long r = 0; r < n; r += LANES) {
        const long lanes = std::min<long>(LANES, n_some - q), at = o + q;
        Vec some[LANES], gate[LANES];  // lanes beyond the last output hold any numbers
        for (long j = 0; j < LANES; j++) {
          some[j] = load(sums + (q + j) * stride + r);
          if (gated_) gate[j] = load(gates + (q + j) * stride + r);
        }
        transpose(some);
        if (gated_) transpose(gate);
        for (long j = 0; j < std::min<long>(LANES, n - r); j++) {
          const long to = (first + r + j) * n_outputs_ + at;
          Vec sum = some[j];
          if (output.bias) sum += load_some(output.bias + at, lanes);
          if (gated_) {
            if (output.bias) gate[j] += load_some(output.bias + n_outputs_ + at, lanes);
            sum *= gelu(gate[j]);
          }
          if (residual_) sum += load_some(residual_ + to, lanes);
          store_some(output.out + to, sum, lanes);
        }
      }
  }

 public:
  // k: the K numbers of a row, a multiple of NUMBERS.
  Linear(long n, long k, long n_outputs, const std::vector<Output<Product>> &outputs,
         const float *residual, bool gated, Fill fill)
      : n_(n), k_(k / NUMBERS), n_outputs_(n_outputs), outputs_(outputs), residual_(residual),
        gated_(gated), fill_(fill) {}

  void run(int cores) const {
    const bool is_deep = k_ > 1280;  // so that panels of a few rows fill the second-level cache
    const long n_blocks = outputs_.size() * ceil_div(n_outputs_, OUTPUTS);
    const long group = is_deep ? 1 : gated_ ? 2 : 4;  // blocks that read a part of a panel in turn
    const long n_groups = ceil_div(n_blocks, group);
    auto multiply_group = [&](long i, const Factor *panels, long first, long n) {
      multiply_blocks(panels, first, n, i * group, std::min(group, n_blocks - i * group));
    };
    const long few = is_deep ? 64 : 128;  // rows
    if (n_ >= 4 * cores * few) {          // each core computes some of the rows
      parallel(cores, ceil_div(n_, few), [&](int part) {
        const long first = part * few, n = std::min(few, n_ - first);
        Factors panels(ceil_div(n, PANEL) * PANEL * k_);
        pack(first, n, panels);
        for (long i = 0; i < n_groups; i++) multiply_group(i, panels, first, n);
      });
      return;
    }
    // Each core computes some of the outputs of many rows, so each weight is read once.
    const long many = 256;
    Factors panels(ceil_div(n_, PANEL) * PANEL * k_);
    parallel(cores, ceil_div(n_, PANEL), [&](int p) {
      pack(p * PANEL, std::min<long>(PANEL, n_ - p * PANEL), panels + p * PANEL * k_);
    });
    const long n_parts = ceil_div(n_, many);
    parallel(cores, n_parts * n_groups, [&](int i) {
      const long first = i / n_groups * many;
      multiply_group(i % n_groups, panels + first * k_, first, std::min(many, n_ - first));
    });
  }
};
