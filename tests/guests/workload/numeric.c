// SPDX-License-Identifier: Apache-2.0
// As the EP of the NAS Parallel Benchmarks: pairs of uniform deviates from its generator, x' = 5^13 x mod
// 2^46, made into pairs of Gaussian ones by acceptance and rejection, summed up and counted by squares. The
// numbers start over after each BATCHES batches, and the sums must then be what they were, to the last bit.
#include <math.h>
#include <string.h>

#include "workload.h"

enum { PAIRS = 1024, BATCHES = 64 };

struct sums {
  double x, y;
  uint64_t squares[10];
};

static double uniform(uint64_t* state) {
  *state = *state * 1220703125u & ((1ull << 46) - 1);
  return (double)*state * 0x1p-46;
}

static void add_pairs(struct sums* sums, uint64_t* state) {
  for (int i = 0; i < PAIRS; i++) {
    double x = 2 * uniform(state) - 1, y = 2 * uniform(state) - 1, t = x * x + y * y;
    if (t > 1) continue;
    double factor = sqrt(-2 * log(t) / t);
    x *= factor;
    y *= factor;
    sums->squares[(int)fmax(fabs(x), fabs(y))]++;
    sums->x += x;
    sums->y += y;
  }
}

void numeric(void) {
  static struct sums first[BATCHES];
  for (uint64_t done = 0;; done++) {
    static uint64_t state;
    static struct sums sums;
    uint64_t batch = done % BATCHES;
    if (batch == 0) {
      state = 271828183;
      memset(&sums, 0, sizeof sums);
    }
    add_pairs(&sums, &state);
    if (done < BATCHES) {
      first[batch] = sums;
      if (done == BATCHES - 1) ready();
      continue;
    }
    if (memcmp(&sums, &first[batch], sizeof sums))
      fail("batch=%lu expected=%a,%a got=%a,%a", batch, first[batch].x, first[batch].y, sums.x, sums.y);
    worked(PAIRS);
  }
}
