// SPDX-License-Identifier: Apache-2.0
#include <string.h>

#include "workload.h"

enum content content_named(const char* name) {
  if (!strcmp(name, "random")) return CONTENT_RANDOM;
  if (!strcmp(name, "compressible")) return CONTENT_COMPRESSIBLE;
  fail("there is no content \"%s\"", name);
}

static void fill_random(uint64_t* word, uint64_t state) {
  for (const uint64_t* end = word + WORDS_PER_PAGE; word < end; word++) *word = next_random(&state);
}

// Objects of 64 bytes as a program's heap holds them: what they are, a pointer, counts, a short text,
// nothing. Frames of 1 MiB compress 2.97:1 by lz4 and 4.3:1 by zstd -1, pages by themselves 2.3:1 and 3.1:1
// (tests/lab/ test_lab.py measures it).
static void fill_objects(uint64_t* word, uint64_t state) {
  static uint64_t texts[64];
  if (!texts[0]) {
    for (uint64_t i = 0; i < 64; i++) {
      uint64_t dice = mix64(i + 1);
      for (int letter = 0; letter < 8; letter++)
        texts[i] |= ('a' + (dice >> (letter * 8)) % 26) << (letter * 8);
    }
  }
  for (const uint64_t* end = word + WORDS_PER_PAGE; word < end; word += 8) {
    uint64_t dice = next_random(&state);
    word[0] = 0x0000555555a4c010u + (dice & 15) * 0x1a8;
    word[1] = 0x00007f6e80000000u + (dice >> 4 & 0xfffff) * 16;
    word[2] = dice >> 24 & 0xf;
    word[3] = 0;
    word[4] = texts[dice >> 32 & 63];
    word[5] = texts[dice >> 38 & 63];
    word[6] = dice >> 48;
    word[7] = 0;
  }
}

void fill_pages(enum content content, void* memory, size_t pages, uint64_t first_number) {
  uint64_t* word = memory;
  for (size_t i = 0; i < pages; i++, word += WORDS_PER_PAGE) {
    uint64_t state = mix64(load_salt + first_number + i + 1);  // another one for each page
    if (content == CONTENT_RANDOM) {
      fill_random(word, state);
    } else {
      fill_objects(word, state);
    }
  }
}

void verify_pages(enum content content, const void* memory, size_t pages, uint64_t first_number,
                  const char* where) {
  static uint64_t wanted[WORDS_PER_PAGE];
  const uint64_t* word = memory;
  for (size_t i = 0; i < pages; i++, word += WORDS_PER_PAGE) {
    fill_pages(content, wanted, 1, first_number + i);
    if (!memcmp(word, wanted, PAGE)) continue;
    size_t wrong = 0;
    while (wrong < WORDS_PER_PAGE - 1 && word[wrong] == wanted[wrong]) wrong++;
    fail("%s page=%lu word=%zu expected=%#lx got=%#lx", where, first_number + i, wrong, wanted[wrong],
         word[wrong]);
  }
}
