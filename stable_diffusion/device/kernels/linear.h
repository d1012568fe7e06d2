// Products with rows that are made as they are needed: normalised, or gathered from a picture.
#pragma once

#include "activations.h"
#include "product.h"

// One of the matrices that the rows meet: weight [O, K], bias [O] or none, out [N, O].
struct Output {
  const float *weight, *bias;
  float *out;
};

// out = rows · weightᵀ + bias (+ added), for each of `outputs`.
//
// fill(i, row) writes row i, K numbers. Where it is gated, weight is [2 O, K], and what its first
// half gives is multiplied by the GELU of what the second half gives.
template <class Fill>
class Linear {
  enum { OUTPUTS = 24, DEPTH = 320 };  // of a block: what it takes of all three sides stays cached

  const long n_, k_, n_outputs_;
  const std::vector<Output> &outputs_;
  const float *const added_;
  const bool gated_;
  const Fill fill_;

  // Rows first … first + n, side by side in panels.
  void pack(long first, long n, float *panels) const {
    Room rows(LANES * k_);
    for (long i = 0; i < ceil_div(n, PANEL) * PANEL; i += LANES) {
      for (long r = 0; r < LANES; r++)
        if (i + r < n)
          fill_(first + i + r, rows + r * k_);
        else
          std::fill_n(rows + r * k_, k_, 0.0f);
      float *panel = panels + i / PANEL * PANEL * k_ + i % PANEL;
      long k = 0;
      for (; k + LANES <= k_; k += LANES) {
        Vec block[LANES];
        for (long r = 0; r < LANES; r++) block[r] = load(rows + r * k_ + k);
        transpose(block);
        for (long j = 0; j < LANES; j++) store(panel + (k + j) * PANEL, block[j]);
      }
      for (; k < k_; k++)
        for (long r = 0; r < LANES; r++) panel[k * PANEL + r] = rows[r * k_ + k];
    }
  }

  // Outputs o … o + n_some of the packed rows first … first + n.
  void multiply_block(const float *panels, long first, long n, const Output &output, long o,
                      long n_some) const {
    const long n_panels = ceil_div(n, PANEL), stride = n_panels * PANEL;
    Room sums(2 * OUTPUTS * stride);
    float *gates = sums + OUTPUTS * stride;
    for (long k = 0; k < k_; k += DEPTH) {
      const long depth = std::min<long>(DEPTH, k_ - k);
      for (long p = 0; p < n_panels; p++) {
        const float *panel = panels + (p * k_ + k) * PANEL;
        auto product = [&](long from, float *to) {
          Matrix weight{output.weight + from * k_ + k, k_, 1};
          multiply(n_some, weight, panel, depth, to + p * PANEL, stride, k > 0);
        };
        product(o, sums);
        if (gated_) product(n_outputs_ + o, gates);
      }
    }
    for (long q = 0; q < n_some; q += LANES)
      for (long r = 0; r < n; r += LANES) {
        const long lanes = std::min<long>(LANES, n_some - q), at = o + q;
        Vec block[LANES], gate[LANES];  // of outputs that there are not: whatever stands there
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
          if (added_) sum += load_some(added_ + to, lanes);
          store_some(output.out + to, sum, lanes);
        }
      }
  }

 public:
  Linear(long n, long k, long n_outputs, const std::vector<Output> &outputs, const float *added,
         bool gated, Fill fill)
      : n_(n), k_(k), n_outputs_(n_outputs), outputs_(outputs), added_(added), gated_(gated),
        fill_(fill) {}

  void run(int cores) const {
    const long n_blocks = ceil_div(n_outputs_, OUTPUTS), n_products = outputs_.size() * n_blocks;
    auto block = [&](long i, const float *panels, long first, long n) {
      const long o = i % n_blocks * OUTPUTS;
      multiply_block(panels, first, n, outputs_[i / n_blocks], o,
                     std::min<long>(OUTPUTS, n_outputs_ - o));
    };
    const long few = k_ <= 640 ? 128 : 64;  // rows, whose panels stay in the cache
    if (n_ >= 4 * cores * few) {            // every core does some of the rows
      parallel(cores, ceil_div(n_, few), [&](int part) {
        const long first = part * few, n = std::min(few, n_ - first);
        Room panels(ceil_div(n, PANEL) * PANEL * k_);
        pack(first, n, panels);
        for (long i = 0; i < n_products; i++) block(i, panels, first, n);
      });
      return;
    }
    // Every core does some of the outputs, of many rows: each number of the weights is read once.
    const long many = 256;
    Room panels(ceil_div(n_, PANEL) * PANEL * k_);
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
