// Softmax attention that holds only as many scores as fit into the cache (arXiv:2205.14135).

#include "product.h"

namespace {

// At a time. Copies of their keys and values, side by side, stay in the cache.
enum { MAX_KEYS = 256, MAX_QUERIES = 256 };
enum { BLOCK_NUMBERS = 16384 };  // of a block of keys, if the heads are wide

struct Head {
  const float *queries, *keys, *values;
  float *out;
  long stride;  // numbers from one row to the next
  long n_keys, width;
  float scale;
  bool causal;
};

// Updates a panel's softmax with one block of scores [n][PANEL], which become weights. If a larger
// maximum is found, the earlier results `out` [width][PANEL] are scaled down.
void update_softmax(float *scores, long n, float *maxima, float *sums, float *out, long width,
                    bool first) {
  for (int i = 0; i < PANEL; i += LANES) {
    Vec before = load(maxima + i), most = before, sum = {};
    for (long j = 0; j < n; j++) most = maximum(load(scores + j * PANEL + i), most);
    for (long j = 0; j < n; j++) {
      Vec weight = exp_below(load(scores + j * PANEL + i) - most);
      store(scores + j * PANEL + i, weight);
      sum += weight;
    }
    store(maxima + i, most);
    if (first) {
      store(sums + i, sum);
      continue;
    }
    Vec shrink = exp_below(before - most);
    store(sums + i, load(sums + i) * shrink + sum);
    for (long d = 0; d < width; d++) store(out + d * PANEL + i, load(out + d * PANEL + i) * shrink);
  }
}

// Copies n rows of keys, one after the other.
void pack_keys(const Head &head, long first, long n, float *to) {
  for (long j = first; j < first + n; j++, to += head.width)
    std::memcpy(to, head.keys + j * head.stride, head.width * sizeof(float));
}

// Copies n rows of values: for each ROWS columns, [n][ROWS].
void pack_values(const Head &head, long first, long n, float *to) {
  for (long j = first; j < first + n; j++, to += ROWS) {
    const float *from = head.values + j * head.stride;
    long d = 0;
    for (; d + ROWS <= head.width; d += ROWS)
      std::memcpy(to + d * n, from + d, ROWS * sizeof(float));
    for (long i = d; i < head.width; i++) to[d * n + i - d] = from[i];
  }
}

// Computes the attention of queries first … last of a head.
void attend(const Head &head, long first, long last) {
  const long width = head.width, size = width * PANEL, n_panels = ceil_div(last - first, PANEL);
  const long n_keys = head.causal ? std::min(last, head.n_keys) : head.n_keys;
  const long step = std::clamp<long>(BLOCK_NUMBERS / width, ROWS, MAX_KEYS);
  Buffer queries(n_panels * size), out(n_panels * size), scores(step * PANEL);
  Buffer maxima(n_panels * PANEL), sums(n_panels * PANEL);
  Buffer keys(step * width), values(step * (width + ROWS));
  auto place = [&](long i, long d) { return (i / PANEL) * size + d * PANEL + i % PANEL; };

  std::fill_n(queries.data, n_panels * size, 0.0f);
  std::fill_n(maxima.data, n_panels * PANEL, -INFINITY);
  for (long i = 0; i < last - first; i++)
    for (long d = 0; d < width; d++)
      queries[place(i, d)] = head.queries[(first + i) * head.stride + d] * head.scale;

  for (long key = 0; key < n_keys; key += step) {
    const long n = std::min(step, n_keys - key);
    pack_keys(head, key, n, keys);
    pack_values(head, key, n, values);
    for (long p = 0; p < n_panels; p++) {
      multiply(n, {keys, width, 1}, queries + p * size, width, scores, PANEL, false);
      if (head.causal)
        for (long j = 0; j < n; j++)
          for (long i = 0, query = first + p * PANEL; i < PANEL && query < key + j; i++, query++)
            scores[j * PANEL + i] = -1e30f;
      float *sum = out + p * size;
      update_softmax(scores, n, maxima + p * PANEL, sums + p * PANEL, sum, width, key == 0);
      for (long d = 0; d < width; d += ROWS)
        multiply(std::min<long>(ROWS, width - d), {values + d * n, 1, ROWS}, scores, n,
                 sum + d * PANEL, PANEL, key > 0);
    }
  }
  for (long i = 0; i < last - first; i++)
    for (long d = 0; d < width; d++)
      head.out[(first + i) * head.stride + d] = out[place(i, d)] / sums[i];
}

}  // namespace

// Computes the attention out [B, L, H, D] of queries [B, L, H, D] to keys and values [B, M, H, D].
extern "C" bool attention(const float *queries, const float *keys, const float *values, float *out,
                          long batch, long length, long n_keys, long n_heads, long width,
                          float scale, long causal, long cores) {
  return try_run([&] {
    const long stride = n_heads * width;
    long size = MAX_QUERIES;
    while (size > 64 && batch * n_heads * ceil_div(length, size) < 4 * cores) size /= 2;
    const long n_parts = ceil_div(length, size);
    const double products = 2.0 * batch * n_heads * length * n_keys * width;
    parallel(cores_for(products, cores), batch * n_heads * n_parts, [&](int i) {
      const long head = i / n_parts % n_heads, b = i / n_parts / n_heads, first = i % n_parts * size;
      const long q = b * length * stride + head * width, k = b * n_keys * stride + head * width;
      attend({queries + q, keys + k, values + k, out + q, stride, n_keys, width, scale, causal != 0},
             first, std::min(first + size, length));
    });
  });
}
