// SPDX-License-Identifier: Apache-2.0
// The patterns that selfcheck fills memory with.
//
// Every 8-byte word is a function of a stream (who it belongs to, which chunk,
// which generation) and of its index: word i is  x ^ (x >> 29)  with
// x = start(stream) + i * STEP.  No word repeats within a stream, so a page that
// was lost, moved, swapped or left stale is seen; and a word costs four
// instructions, which matters under emulation. The step decides what compressors
// make of it: nothing with 64 bits of it, a third is left with 16, as of ordinary data.
#pragma once

#include <stddef.h>
#include <stdint.h>

// One odd step per kind of use, so that memory in use can be told from the
// leavings of the churn from outside the guest. tests/lab/pattern.py knows them.
// What is held compresses, what is churned through and kept in motion does not.
#define STEP_HELD 0x9e37ULL
#define STEP_CHURN 0xd1342543de82ef95ULL
#define STEP_MOTION 0xaf251af3b0f025b5ULL

enum { PAGE = 4096, WORDS_PER_PAGE = PAGE / 8 };

static inline uint64_t mix64(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

static inline uint64_t stream_start(uint64_t seed, uint64_t chunk, uint64_t generation) {
  return mix64(seed ^ mix64(chunk + 1) ^ mix64(~generation));
}

// Fills `bytes`, a multiple of 32, at `memory`.
void pattern_fill(void* memory, size_t bytes, uint64_t start, uint64_t step);

// Index of the first word that differs from the pattern, or -1.
ptrdiff_t pattern_verify(const void* memory, size_t bytes, uint64_t start, uint64_t step);

static inline uint64_t pattern_word(uint64_t start, uint64_t step, size_t index) {
  uint64_t x = start + index * step;
  return x ^ (x >> 29);
}
