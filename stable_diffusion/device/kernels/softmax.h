// The softmax of attention, updated with one block of keys at a time (arXiv:2205.14135).
#pragma once

#include "vectors.h"

// What is kept of a panel of queries between blocks: the largest score of each query, the sum of
// its weights, and the weighted sum of values [width][PANEL].
struct Softmax {
  float *maxima, *sums, *out;
  long width;

  // Takes a block of scores [n][PANEL], which are logarithms to the base 2. put(j, i, weights) gets
  // the weights of keys j and j + 1 for queries i … i + 7; those of a key beyond the last are zero.
  template <int PANEL, class Put>
  void update(const float *scores, long n, bool first, Put put) const {
    for (long i = 0; i < PANEL; i += LANES, scores += LANES) {
      const Vec before = load(maxima + i);
      Vec most = before, other = before, sum = {};
      for (long j = 0; j + 1 < n; j += 2) {
        most = maximum(load(scores + j * PANEL), most);
        other = maximum(load(scores + (j + 1) * PANEL), other);
      }
      if (n % 2) most = maximum(load(scores + (n - 1) * PANEL), most);
      most = maximum(other, most);
      for (long j = 0; j < n; j += 2) {
        Vec weights[2] = {exp2_below(load(scores + j * PANEL) - most)};
        if (j + 1 < n) weights[1] = exp2_below(load(scores + (j + 1) * PANEL) - most);
        put(j, i, weights);
        sum += weights[0] + weights[1];
      }
      store(maxima + i, most);
      if (first) {
        store(sums + i, sum);
        continue;
      }
      const Vec shrink = exp2_below(before - most);  // of earlier results, by a larger maximum
      store(sums + i, load(sums + i) * shrink + sum);
      for (long d = i; d < width * PANEL; d += PANEL) store(out + d, load(out + d) * shrink);
    }
  }
};
