// SPDX-License-Identifier: Apache-2.0
// STREAM's triad, a = b + s * c. s is another one in each pass, so that a changes; of each page of the arrays
// one element is verified before it is overwritten.
#include "workload.h"

enum { FACTORS = 8, BLOCK = 4096 /* elements, a multiple of a page's */, STEP = WORDS_PER_PAGE };

static double b_of(size_t i) { return (double)i * 0.5; }
static double c_of(size_t i) { return (double)(i % 1021) + 1; }
static double s_of(uint64_t pass) { return (double)(pass % FACTORS) + 0.25; }

static void verify(const double* a, const double* b, const double* c, size_t first, size_t count,
                   uint64_t pass) {
  for (size_t i = first + (pass * 61) % STEP; i < first + count; i += STEP) {
    double wanted = b_of(i) + s_of(pass) * c_of(i);
    if (a[i] != wanted || b[i] != b_of(i) || c[i] != c_of(i))
      fail("triad element=%zu pass=%lu expected=%a got=%a b=%a c=%a", i, pass, wanted, a[i], b[i], c[i]);
  }
}

// Not inlined: nothing is known of the arrays here.
__attribute__((noinline)) static void triad(double* restrict a, const double* restrict b,
                                            const double* restrict c, double s, size_t count) {
  for (size_t i = 0; i < count; i++) a[i] = b[i] + s * c[i];
}

void stream(size_t mib) {
  size_t count = (mib << 20) / 3 / sizeof(double) / BLOCK * BLOCK;
  double *a = map_memory(count * sizeof *a), *b = map_memory(count * sizeof *b),
         *c = map_memory(count * sizeof *c);
  for (size_t i = 0; i < count; i++) {
    b[i] = b_of(i);
    c[i] = c_of(i);
  }
  triad(a, b, c, s_of(0), count);
  ready();
  for (uint64_t pass = 1;; pass++) {
    for (size_t first = 0; first < count; first += BLOCK) {
      verify(a, b, c, first, BLOCK, pass - 1);
      triad(a + first, b + first, c + first, s_of(pass), BLOCK);
      worked(BLOCK * 3 * sizeof(double) / 1024);
    }
  }
}
