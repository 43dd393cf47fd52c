// SPDX-License-Identifier: Apache-2.0
// What the kinds of load share: words on the console, chance, pages that verify themselves.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { PAGE = 4096, WORDS_PER_PAGE = PAGE / 8 };

extern const char* load_name;
extern uint64_t load_salt;  // made of the name

// ---- words (workload.c): each line is one write(2), so that lines of others do not tear it

__attribute__((format(printf, 1, 2))) void say(const char* format, ...);
// Says so each second, for ever: whoever looks at the console of a restored guest must see it too.
__attribute__((noreturn, format(printf, 1, 2))) void fail(const char* format, ...);
// All is in place: from now on the speed is told.
void ready(void);
// So much more was done. Tells the speed when a second has passed; to be called a few hundred times in one.
void worked(uint64_t units);

// ---- chance

static inline uint64_t mix64(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// xorshift64: six instructions for a word, which matters under emulation.
static inline uint64_t next_random(uint64_t* state) {
  uint64_t x = *state;
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return *state = x;
}

// ---- pages (pages.c): each is a function of load, kind and number, and no two are the same

enum content { CONTENT_RANDOM, CONTENT_COMPRESSIBLE };

enum content content_named(const char* name);
void fill_pages(enum content content, void* memory, size_t pages, uint64_t first_number);
// Fails with `where` when one of them is not as it was filled.
void verify_pages(enum content content, const void* memory, size_t pages, uint64_t first_number,
                  const char* where);

// ---- what is done, for ever

__attribute__((noreturn)) void hold(enum content content, const char* mib);
__attribute__((noreturn)) void numeric(void);
__attribute__((noreturn)) void stream(size_t mib);
__attribute__((noreturn)) void compile(size_t mib);
__attribute__((noreturn)) void compile_worker(char** arguments);
__attribute__((noreturn)) void use_files(const char* folder, size_t mib);
__attribute__((noreturn)) void use_cache(const char* folder, size_t mib);

void* map_memory(size_t bytes);
