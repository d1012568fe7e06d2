// Weights of few bits, packed as by `mx.quantize`: a sequence of bits, the lowest ones first. So a
// word has 32 / bits weights, or with 6 bits three bytes have four. Each group of weights has a
// scale and an offset.
#pragma once

#include "vectors.h"

struct Packed {
  const uint32_t *words;
  long rows, columns, bits, group;
  const float *scales, *offsets;

  // Writes the weights first … first + group, of group g, as float32.
  void unpack(long first, long g, float *to) const {
    const uint32_t mask = (1u << bits) - 1;
    const float scale = scales[g], offset = offsets[g];
    if (bits == 6) {
      const uint8_t *bytes = (const uint8_t *)words + first / 4 * 3;
      for (long i = 0; i < group; i += 4, bytes += 3) {
        const uint32_t four = bytes[0] | bytes[1] << 8 | bytes[2] << 16;
        for (long j = 0; j < 4; j++) *to++ = float(four >> (6 * j) & mask) * scale + offset;
      }
      return;
    }
    const long per_word = 32 / bits;
    const uint32_t *word = words + first / per_word;
    for (long i = 0; i < group; i += per_word, word++)
      for (long j = 0; j < per_word; j++) *to++ = float(*word >> (j * bits) & mask) * scale + offset;
  }

  // Calls task(first, g, room) for each group g, whose weights begin at number `first`. There is
  // room for a group of float32.
  template <class Task>
  void each_group(long cores, Task task) const {
    const long n_groups = columns / group, step = 16;
    parallel(cores, ceil_div(rows, step), [&](int part) {
      Buffer room(group);
      const long last = std::min(rows, (part + 1) * step) * n_groups;
      for (long g = part * step * n_groups; g < last; g++) task(g * group, g, room.data);
    });
  }
};
