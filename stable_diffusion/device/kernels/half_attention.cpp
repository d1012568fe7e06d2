// Softmax attention in half precision: products of bfloat16, the softmax in float32.
//
// As in attention.cpp, only as many scores are held as fit into the cache (arXiv:2205.14135).

#include "half_kernels.h"

#ifdef HALF_KERNELS

#include "half_product.h"

namespace {

enum { KEYS = 256, PANELS = 8 };  // at a time; panels are of queries

// A head's keys and values in bfloat16, which all of its queries share.
struct Head {
  const float *queries;
  float *out;
  long stride;       // numbers from one query to the next
  uint32_t *keys;    // pairs [n_keys][n_pairs]
  uint32_t *values;  // for every KEYS of them, pairs of keys [width][KEYS / 2]
  long n_keys, width, n_pairs;
  float scale;
  bool causal;
};

// Rounds a block of keys and values, of which the first one is `key`. Missing values are zero.
void round_block(const Head &head, const float *keys, const float *values, long key) {
  const long n = std::min<long>(KEYS, head.n_keys - key), width = head.width;
  for (long j = key; j < key + n; j++)
    round_row(keys + j * head.stride, width, head.keys + j * head.n_pairs);
  uint32_t *block = head.values + key / 2 * width;
  for (long j = 0; j < n; j += 2 * LANES)
    for (long d = 0; d < width; d += LANES) {
      const long lanes = std::min<long>(LANES, width - d);
      Vec pairs[LANES];  // of bfloat16, which are moved, not computed with
      for (long i = 0; i < LANES; i++) {
        Vec both[2] = {};
        for (long k = 0; k < 2; k++)
          if (const long at = j + 2 * i + k; at < n)
            both[k] = load_some(values + (key + at) * head.stride + d, lanes);
        pairs[i] = (Vec)make_pairs(both[0], both[1]);
      }
      transpose(pairs);
      for (long i = 0; i < lanes; i++) store(block + (d + i) * (KEYS / 2) + j / 2, (Pairs)pairs[i]);
    }
}

// Updates a panel's softmax with one block of scores [n][HALF_PANEL], and writes the weights as
// pairs. If a larger maximum is found, the earlier results `out` [width][HALF_PANEL] are scaled
// down.
void update_softmax(const float *scores, long n, uint32_t *weights, float *maxima, float *sums,
                    float *out, long width, bool first) {
  for (int i = 0; i < HALF_PANEL; i += LANES) {
    Vec before = load(maxima + i), most = before, sum = {};
    for (long j = 0; j < n; j++) most = maximum(load(scores + j * HALF_PANEL + i), most);
    for (long j = 0; j < n; j += 2) {
      Vec even = exp_below(load(scores + j * HALF_PANEL + i) - most), odd = {};
      if (j + 1 < n) odd = exp_below(load(scores + (j + 1) * HALF_PANEL + i) - most);
      store(weights + j / 2 * HALF_PANEL + i, make_pairs(even, odd));
      sum += even + odd;
    }
    store(maxima + i, most);
    if (first) {
      store(sums + i, sum);
      continue;
    }
    Vec shrink = exp_below(before - most);
    store(sums + i, load(sums + i) * shrink + sum);
    for (long d = 0; d < width; d++) {
      float *at = out + d * HALF_PANEL + i;
      store(at, load(at) * shrink);
    }
  }
}

// Computes the attention of queries first … last of a head.
void attend(const Head &head, long first, long last) {
  const long width = head.width, size = width * HALF_PANEL, n_pairs = head.n_pairs;
  const long n_panels = ceil_div(last - first, HALF_PANEL);
  PairBuffer queries(n_panels * n_pairs * HALF_PANEL), row(n_pairs), weights(KEYS / 2 * HALF_PANEL);
  Buffer out(n_panels * size), scores(KEYS * HALF_PANEL), scaled(width);
  Buffer maxima(n_panels * HALF_PANEL), sums(n_panels * HALF_PANEL);

  std::fill_n((uint32_t *)queries, n_panels * n_pairs * HALF_PANEL, 0u);
  std::fill_n(maxima.data, n_panels * HALF_PANEL, -INFINITY);
  for (long i = 0; i < last - first; i++) {
    const float *from = head.queries + (first + i) * head.stride;
    each(width, from, scaled.data, [&](Vec x) { return x * head.scale; });
    round_row(scaled, width, row);
    uint32_t *to = queries + i / HALF_PANEL * n_pairs * HALF_PANEL + i % HALF_PANEL;
    for (long d = 0; d < n_pairs; d++) to[d * HALF_PANEL] = row[d];
  }

  const long n_keys = head.causal ? std::min(last, head.n_keys) : head.n_keys;
  for (long key = 0; key < n_keys; key += KEYS) {
    const long n = std::min<long>(KEYS, n_keys - key);
    const HalfMatrix keys{(const uint16_t *)(head.keys + key * n_pairs), 2 * n_pairs};
    const HalfMatrix values{(const uint16_t *)(head.values + key / 2 * width), KEYS};
    for (long p = 0; p < n_panels; p++) {
      multiply_half(n, keys, queries + p * n_pairs * HALF_PANEL, n_pairs, scores, HALF_PANEL, false);
      if (head.causal)
        for (long j = 0; j < n; j++) {
          long query = first + p * HALF_PANEL;
          for (long i = 0; i < HALF_PANEL && query < key + j; i++, query++)
            scores[j * HALF_PANEL + i] = -1e30f;
        }
      float *sum = out + p * size;
      update_softmax(scores, n, weights, maxima + p * HALF_PANEL, sums + p * HALF_PANEL, sum, width,
                     key == 0);
      multiply_half(width, values, weights, ceil_div(n, 2), sum, HALF_PANEL, key > 0);
    }
  }
  for (long i = 0; i < last - first; i++) {
    const float *from = out + i / HALF_PANEL * size + i % HALF_PANEL;
    for (long d = 0; d < width; d++)
      head.out[(first + i) * head.stride + d] = from[d * HALF_PANEL] / sums[i];
  }
}

}  // namespace

// Computes what `attention` does.
extern "C" bool half_attention(const float *queries, const float *keys, const float *values,
                               float *out, long batch, long length, long n_keys, long n_heads,
                               long width, float scale, long causal, long cores) {
  return try_run([&] {
    const long stride = n_heads * width, n_pairs = ceil_div(width, 2), n_all = batch * n_heads;
    // No query attends to the keys after the last one. They are left out, so that an odd number of
    // keys is followed by zeros: 0 times an infinite value would be NaN.
    const long n_used = causal ? std::min(length, n_keys) : n_keys;
    const long n_blocks = ceil_div(n_used, KEYS);
    const long key_size = n_used * n_pairs, value_size = n_blocks * (KEYS / 2) * width;
    PairBuffer rounded_keys(n_all * key_size), rounded_values(n_all * value_size);
    auto make_head = [&](long i) {
      const long at = i / n_heads * length * stride + i % n_heads * width;
      return Head{queries + at, out + at, stride, rounded_keys + i * key_size,
                  rounded_values + i * value_size, n_used, width, n_pairs, scale, causal != 0};
    };
    const int used = cores_for(2.0 * n_all * length * n_used * width, cores);
    parallel(used, n_all * n_blocks, [&](int task) {
      const long i = task / n_blocks, at = i / n_heads * n_keys * stride + i % n_heads * width;
      round_block(make_head(i), keys + at, values + at, task % n_blocks * KEYS);
    });
    const long size = PANELS * HALF_PANEL, n_parts = ceil_div(length, size);
    parallel(used, n_all * n_parts, [&](int task) {
      const long first = task % n_parts * size;
      attend(make_head(task / n_parts), first, std::min(first + size, length));
    });
  });
}

#endif
