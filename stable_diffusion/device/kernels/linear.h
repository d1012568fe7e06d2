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

  // Computes outputs o … o + n_some of the packed rows first … first + n.
  void multiply_block(const Factor *panels, long first, long n, const Output<Product> &output,
                      long o, long n_some) const {
    const long n_panels = ceil_div(n, PANEL), stride = n_panels * PANEL;
    Buffer sums(2 * OUTPUTS * stride);
    float *gates = sums + OUTPUTS * stride;
    for (long k = 0; k < k_; k += DEPTH) {
      const long depth = std::min<long>(DEPTH, k_ - k);
      for (long p = 0; p < n_panels; p++) {
        const Factor *panel = panels + (p * k_ + k) * PANEL;
        auto product = [&](long from, float *to) {
          Product::multiply(n_some, output.weight + NUMBERS * (from * k_ + k), NUMBERS * k_, panel,
                            depth, to + p * PANEL, stride, k > 0);
        };
        product(o, sums);
        if (gated_) product(n_outputs_ + o, gates);
      }
    }
    for (long q = 0; q < n_some; q += LANES)
      for (long r = 0; r < n; r += LANES) {
        const long lanes = std::min<long>(LANES, n_some - q), at = o + q;
        Vec block[LANES], gate[LANES];  // lanes beyond the last output hold any numbers
        for (long j = 0; j < LANES; j++) {
          block[j] = load(sums + (q + j) * stride + r);
          if (gated_) gate[j] = load(gates + (q + j) * stride + r);
        }
        transpose(block);
        if (gated_) transpose(gate);
        for (long j = 0; j < std::min<long>(LANES, n - r); j++) {
          const long to = (first + r + j) * n_outputs_ + at;
          Vec sum = block[j];
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
    const long n_blocks = ceil_div(n_outputs_, OUTPUTS), n_products = outputs_.size() * n_blocks;
    auto block = [&](long i, const Factor *panels, long first, long n) {
      const long o = i % n_blocks * OUTPUTS;
      multiply_block(panels, first, n, outputs_[i / n_blocks], o,
                     std::min<long>(OUTPUTS, n_outputs_ - o));
    };
    const long few = k_ <= 640 ? 128 : 64;  // rows, whose panels stay in the cache
    if (n_ >= 4 * cores * few) {            // each core computes some of the rows
      parallel(cores, ceil_div(n_, few), [&](int part) {
        const long first = part * few, n = std::min(few, n_ - first);
        Factors panels(ceil_div(n, PANEL) * PANEL * k_);
        pack(first, n, panels);
        for (long i = 0; i < n_products; i++) block(i, panels, first, n);
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
    parallel(cores, n_parts * n_products, [&](int i) {
      const long first = i / n_products * many;
      block(i % n_products, panels + first * k_, first, std::min(many, n_ - first));
    });
  }
};
