// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include "region.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "pattern.h"
#include "verdict.h"

bool regions_still;

enum { CHUNK_BYTES = 64 << 10, SPARSE_STRIDE = 2 << 20 };

static char* map(size_t bytes, int flags, int fd) {
  void* at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
  return at == MAP_FAILED ? NULL : at;
}

static char* map_anonymous(size_t bytes) {
  return map(bytes, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
}

static uint64_t chunk_start(const struct region* r, size_t chunk) {
  return stream_start(r->seed, chunk, r->generation[chunk]);
}

static void fill_chunk(struct region* r, size_t chunk, uint32_t generation) {
  r->generation[chunk] = generation;
  r->generation_copy[chunk] = ~generation;
  pattern_fill(r->base + chunk * r->stride, r->chunk_bytes, chunk_start(r, chunk), STEP_HELD);
}

static void set_up(struct region* r, const char* name, char* base, size_t chunks, size_t stride,
                   size_t chunk_bytes) {
  static uint64_t regions;
  if (!base) die(name);
  *r = (struct region){.name = name,
                       .base = base,
                       .chunks = chunks,
                       .stride = stride,
                       .chunk_bytes = chunk_bytes,
                       .seed = mix64(0x5e1f0000 + ++regions),
                       .fd = -1};
  r->generation = calloc(chunks, sizeof *r->generation);
  r->generation_copy = calloc(chunks, sizeof *r->generation_copy);
  if (!r->generation || !r->generation_copy) die(name);
  for (size_t chunk = 0; chunk < chunks; chunk++) fill_chunk(r, chunk, 0);
}

void region_anonymous(struct region* r, const char* name, size_t bytes, int advice) {
  // Transparent huge pages need a 2 MiB boundary.
  size_t huge = 2 << 20;
  char* base = map_anonymous(bytes + huge);
  if (!base) die(name);
  base = (char*)(((uintptr_t)base + huge - 1) & ~(huge - 1));
  madvise(base, bytes, advice);
  set_up(r, name, base, bytes / CHUNK_BYTES, CHUNK_BYTES, CHUNK_BYTES);
  r->rewritten = true;
}

void region_file(struct region* r, const char* name, const char* path, size_t bytes) {
  int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0) die(path);
  set_up(r, name, map(bytes, MAP_SHARED, fd), bytes / CHUNK_BYTES, CHUNK_BYTES, CHUNK_BYTES);
  r->rewritten = true;
  r->fd = fd;
}

void region_sparse(struct region* r, const char* name, size_t chunks) {
  char* base = map_anonymous(chunks * SPARSE_STRIDE);
  if (base) madvise(base, chunks * SPARSE_STRIDE, MADV_NOHUGEPAGE);
  set_up(r, name, base, chunks, SPARSE_STRIDE, PAGE);
  r->rewritten = true;
}

bool region_hugetlb(struct region* r, const char* name, size_t bytes) {
  char* base = map(bytes, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1);
  if (!base) return false;
  set_up(r, name, base, bytes / CHUNK_BYTES, CHUNK_BYTES, CHUNK_BYTES);
  r->rewritten = true;
  return true;
}

void region_take_odd_chunks(struct region* r, uint32_t generation) {
  for (size_t chunk = 1; chunk < r->chunks; chunk += 2) fill_chunk(r, chunk, generation);
}

static void verify_chunk(const struct region* r, size_t chunk, const char* memory, size_t bytes,
                         const char* how) {
  ptrdiff_t wrong = pattern_verify(memory, bytes, chunk_start(r, chunk), STEP_HELD);
  if (wrong < 0) return;
  fail("%s%s pid=%d offset=%#zx expected=%#llx got=%#llx", r->name, how, (int)getpid(),
       chunk * r->stride + (size_t)wrong * 8,
       (unsigned long long)pattern_word(chunk_start(r, chunk), STEP_HELD, (size_t)wrong),
       (unsigned long long)((const uint64_t*)memory)[wrong]);
}

static void visit_chunk(struct region* r, size_t chunk) {
  if (r->generation[chunk] != ~r->generation_copy[chunk]) {
    fail("%s generation chunk=%zu expected=%#x got=%#x", r->name, chunk, ~r->generation_copy[chunk],
         r->generation[chunk]);
    return;
  }
  verify_chunk(r, chunk, r->base + chunk * r->stride, r->chunk_bytes, "");

  if (r->fd >= 0) {
    // The same page by the file's own path: the page cache's tree.
    char page[PAGE] __attribute__((aligned(8)));
    if (pread(r->fd, page, PAGE, (off_t)(chunk * r->stride)) != PAGE)
      fail("%s pread offset=%#zx", r->name, chunk * r->stride);
    else
      verify_chunk(r, chunk, page, PAGE, " pread");
  }
  if (r->rewritten && !regions_still && !verdict[0] && (chunk + r->visits / r->chunks) % 8 == 0)
    fill_chunk(r, chunk, r->generation[chunk] + 1);
}

void region_visit(struct region* r, unsigned part) {
  for (size_t left = (r->chunks + part - 1) / part; left; left--) {
    visit_chunk(r, r->next);
    r->next = (r->next + 1) % r->chunks;
    r->visits++;
  }
}
