// Matrix products in half precision, with rows that are computed when needed; see linear.h.
#pragma once

#include "half_product.h"

// One of the matrices to multiply the rows with: weight [O, K], bias [O] or null, out [N, O].
struct HalfOutput {
  const uint16_t *weight;
  const float *bias;
  float *out;
};

// Computes out = rows · weightᵀ + bias + residual for each of `outputs`. The residual may be null.
//
// fill(i, row) writes the pairs of row i, K numbers; K is even. If `gated`, weight is [2 O, K], and
// the results of its first half are multiplied by the GELU of the results of its second half.
template <class Fill>
class HalfLinear {
  enum { OUTPUTS = 48, DEPTH = 320 };  // of a block, in rows and pairs

  const long n_, n_pairs_, n_outputs_;
  const std::vector<HalfOutput> &outputs_;
  const float *const residual_;
  const bool gated_;
  const Fill fill_;

  // Writes rows first … first + n side by side into panels.
  void pack(long first, long n, uint32_t *panels) const {
    PairBuffer rows(LANES * n_pairs_);
    for (long i = 0; i < ceil_div(n, HALF_PANEL) * HALF_PANEL; i += LANES) {
      for (long r = 0; r < LANES; r++)
        if (i + r < n)
          fill_(first + i + r, rows + r * n_pairs_);
        else
          std::fill_n(rows + r * n_pairs_, n_pairs_, 0u);
      uint32_t *panel = panels + i / HALF_PANEL * HALF_PANEL * n_pairs_ + i % HALF_PANEL;
      long k = 0;
      for (; k + LANES <= n_pairs_; k += LANES) {
        Vec block[LANES];  // of pairs, which are moved, not computed with
        for (long r = 0; r < LANES; r++) block[r] = load((float *)(rows + r * n_pairs_ + k));
        transpose(block);
        for (long j = 0; j < LANES; j++) store(panel + (k + j) * HALF_PANEL, (Pairs)block[j]);
      }
      for (; k < n_pairs_; k++)
        for (long r = 0; r < LANES; r++) panel[k * HALF_PANEL + r] = rows[r * n_pairs_ + k];
    }
  }

  // Computes outputs o … o + n_some of the packed rows first … first + n.
  void multiply_block(const uint32_t *panels, long first, long n, const HalfOutput &output, long o,
                      long n_some) const {
    const long n_panels = ceil_div(n, HALF_PANEL), stride = n_panels * HALF_PANEL;
    Buffer sums(2 * OUTPUTS * stride);
    float *gates = sums + OUTPUTS * stride;
    for (long k = 0; k < n_pairs_; k += DEPTH) {
      const long depth = std::min<long>(DEPTH, n_pairs_ - k);
      for (long p = 0; p < n_panels; p++) {
        const uint32_t *panel = panels + (p * n_pairs_ + k) * HALF_PANEL;
        auto product = [&](long from, float *to) {
          HalfMatrix weight{output.weight + 2 * (from * n_pairs_ + k), 2 * n_pairs_};
          multiply_half(n_some, weight, panel, depth, to + p * HALF_PANEL, stride, k > 0);
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
  HalfLinear(long n, long k, long n_outputs, const std::vector<HalfOutput> &outputs,
             const float *residual, bool gated, Fill fill)
      : n_(n), n_pairs_(k / 2), n_outputs_(n_outputs), outputs_(outputs), residual_(residual),
        gated_(gated), fill_(fill) {}

  void run(int cores) const {
    const long n_blocks = ceil_div(n_outputs_, OUTPUTS), n_products = outputs_.size() * n_blocks;
    auto block = [&](long i, const uint32_t *panels, long first, long n) {
      const long o = i % n_blocks * OUTPUTS;
      multiply_block(panels, first, n, outputs_[i / n_blocks], o,
                     std::min<long>(OUTPUTS, n_outputs_ - o));
    };
    const long few = n_pairs_ <= 640 ? 128 : 64;  // rows, whose panels stay in the cache
    if (n_ >= 4 * cores * few) {                  // each core computes some of the rows
      parallel(cores, ceil_div(n_, few), [&](int part) {
        const long first = part * few, n = std::min(few, n_ - first);
        PairBuffer panels(ceil_div(n, HALF_PANEL) * HALF_PANEL * n_pairs_);
        pack(first, n, panels);
        for (long i = 0; i < n_products; i++) block(i, panels, first, n);
      });
      return;
    }
    // Each core computes some of the outputs of many rows, so each weight is read once.
    const long many = 256;
    PairBuffer panels(ceil_div(n_, HALF_PANEL) * HALF_PANEL * n_pairs_);
    parallel(cores, ceil_div(n_, HALF_PANEL), [&](int p) {
      pack(p * HALF_PANEL, std::min<long>(HALF_PANEL, n_ - p * HALF_PANEL),
           panels + p * HALF_PANEL * n_pairs_);
    });
    const long n_parts = ceil_div(n_, many);
    parallel(cores, n_parts * n_products, [&](int i) {
      const long first = i / n_products * many;
      block(i % n_products, panels + first * n_pairs_, first, std::min(many, n_ - first));
    });
  }
};
