// SPDX-License-Identifier: Apache-2.0
// Memory that is held and checked: anonymous, shared with a file, huge.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// A region is verified chunk by chunk. Chunk c holds the pattern of
// (seed, c, generation[c]); visiting a chunk may also rewrite it with the next
// generation, so that memory in use keeps changing.
struct region {
  const char* name;
  char* base;
  size_t chunks;
  size_t chunk_bytes;  // bytes of pattern at the start of each chunk
  size_t stride;       // from one chunk to the next
  uint64_t seed;
  bool rewritten;  // chunks get new generations as they are visited
  uint32_t* generation;
  uint32_t* generation_copy;  // ~generation, in memory of its own
  size_t next;                // the chunk to visit next
  uint64_t visits;
  int fd;  // of the file behind it, else -1
};

// No visit rewrites anything: memory in use keeps still.
extern bool regions_still;

// Anonymous memory; `advice` is MADV_HUGEPAGE or MADV_NOHUGEPAGE.
void region_anonymous(struct region* r, const char* name, size_t bytes, int advice);

// A file of `bytes` at `path`, mapped shared and also read with pread.
void region_file(struct region* r, const char* name, const char* path, size_t bytes);

// One page in each of `chunks` 2 MiB areas: a page table for every page.
void region_sparse(struct region* r, const char* name, size_t chunks);

// hugetlbfs pages; false when the kernel has none to give.
bool region_hugetlb(struct region* r, const char* name, size_t bytes);

// Gives every odd chunk a generation of this process's own, for memory that was
// inherited copy-on-write: even chunks stay shared with the parent.
void region_take_odd_chunks(struct region* r, uint32_t generation);

// Verifies the next 1/`part` of the chunks.
void region_visit(struct region* r, unsigned part);
