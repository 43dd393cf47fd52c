// SPDX-License-Identifier: Apache-2.0
#include "pattern.h"

void pattern_fill(void* memory, size_t bytes, uint64_t start, uint64_t step) {
  uint64_t *word = memory, *end = word + bytes / 8;
  for (uint64_t x = start; word < end; word += 4) {
    word[0] = x ^ (x >> 29);
    x += step;
    word[1] = x ^ (x >> 29);
    x += step;
    word[2] = x ^ (x >> 29);
    x += step;
    word[3] = x ^ (x >> 29);
    x += step;
  }
}

ptrdiff_t pattern_verify(const void* memory, size_t bytes, uint64_t start, uint64_t step) {
  const uint64_t* word = memory;
  size_t words = bytes / 8;
  uint64_t x = start, wrong = 0;
  for (size_t i = 0; i < words; i += 4) {
    wrong |= word[i] ^ x ^ (x >> 29);
    x += step;
    wrong |= word[i + 1] ^ x ^ (x >> 29);
    x += step;
    wrong |= word[i + 2] ^ x ^ (x >> 29);
    x += step;
    wrong |= word[i + 3] ^ x ^ (x >> 29);
    x += step;
  }
  if (!wrong) return -1;
  for (size_t i = 0; i < words; i++)
    if (word[i] != pattern_word(start, step, i)) return (ptrdiff_t)i;
  // The word was wrong a moment ago and is right now: still a failure.
  return 0;
}
