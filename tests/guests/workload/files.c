// SPDX-License-Identifier: Apache-2.0
// Files on a disk. All content is a function of the file and of how often it was written, and is verified.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "workload.h"

enum { FILE_PAGES_MAX = 64, FILES_MAX = 4096, CACHE_FILE_PAGES = 4096 /* 16 MiB */, READ_PAGES = 4 };

static char buffer[256 * PAGE];

static const char* path_of(const char* folder, const char* what, size_t number) {
  static char path[512];
  snprintf(path, sizeof path, "%s/%s.%s%zu", folder, load_name, what, number);
  return path;
}

static int open_file(const char* path, int flags) {
  int file = open(path, flags, 0600);
  if (file < 0) fail("open %s", path);
  return file;
}

// ---- files that come and go ------------------------------------------------

static struct {
  uint32_t version;
  uint32_t pages;  // 0: is not there
} files[FILES_MAX];

static uint64_t content_of(size_t number) {
  return ((uint64_t)files[number].version << 32) + number * FILE_PAGES_MAX;
}

// A new content takes the place of the old one as a careful program has it done.
static uint32_t rewrite(const char* folder, size_t number, uint32_t pages) {
  files[number].version++;
  files[number].pages = pages;
  fill_pages(CONTENT_COMPRESSIBLE, buffer, pages, content_of(number));
  char temporary[512];
  snprintf(temporary, sizeof temporary, "%s", path_of(folder, "new", 0));
  int file = open_file(temporary, O_WRONLY | O_CREAT | O_TRUNC);
  ssize_t bytes = (ssize_t)pages * PAGE;
  if (write(file, buffer, (size_t)bytes) != bytes || fsync(file) || close(file)) fail("write %s", temporary);
  if (rename(temporary, path_of(folder, "", number))) fail("rename %s", temporary);
  return pages;
}

// Half of the times from the disk, not from the page cache.
static uint32_t read_back(const char* folder, size_t number, bool from_disk) {
  const char* path = path_of(folder, "", number);
  int file = open_file(path, O_RDONLY);
  if (from_disk) posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
  ssize_t got = read(file, buffer, sizeof buffer);
  if (got != (ssize_t)files[number].pages * PAGE)
    fail("%s expected=%u pages got=%zd bytes", path, files[number].pages, got);
  close(file);
  verify_pages(CONTENT_COMPRESSIBLE, buffer, files[number].pages, content_of(number), path);
  return files[number].pages;
}

void use_files(const char* folder, size_t mib) {
  size_t count = (mib << 20) / PAGE / FILE_PAGES_MAX;
  if (count > FILES_MAX) count = FILES_MAX;
  uint64_t dice = 1;
  for (size_t number = 0; number < count; number++)
    rewrite(folder, number, 1 + (uint32_t)(next_random(&dice) % FILE_PAGES_MAX));
  ready();
  for (;;) {
    uint64_t throw = next_random(&dice);
    size_t number = (throw >> 32) % count;
    uint32_t pages = 0, size = 1 + (uint32_t)(throw >> 8) % FILE_PAGES_MAX;
    unsigned turn = throw % 8;
    if (turn < 3 || files[number].pages == 0) {
      pages = rewrite(folder, number, size);
    } else if (turn == 3) {
      if (unlink(path_of(folder, "", number))) fail("unlink file %zu", number);
      files[number].pages = 0;
    } else {
      pages = read_back(folder, number, turn % 2);
    }
    worked(pages * (PAGE / 1024));
  }
}

// ---- files that stay in the page cache -------------------------------------

static void fill_file(const char* path, uint64_t first_page, size_t pages) {
  int file = open_file(path, O_RDWR | O_CREAT | O_TRUNC);
  for (size_t done = 0; done < pages;) {
    size_t now = pages - done < sizeof buffer / PAGE ? pages - done : sizeof buffer / PAGE;
    fill_pages(CONTENT_COMPRESSIBLE, buffer, now, first_page + done);
    if (write(file, buffer, now * PAGE) != (ssize_t)(now * PAGE)) fail("write %s", path);
    done += now;
  }
  if (fsync(file) || close(file)) fail("fsync %s", path);
}

void use_cache(const char* folder, size_t mib) {
  static int opened[FILES_MAX];
  size_t pages = mib << 8, count = (pages + CACHE_FILE_PAGES - 1) / CACHE_FILE_PAGES;
  if (count > FILES_MAX) fail("too many files");
  for (size_t number = 0; number < count; number++) {
    const char* path = path_of(folder, "", number);
    size_t first = number * CACHE_FILE_PAGES, left = pages - first;
    fill_file(path, first, left < CACHE_FILE_PAGES ? left : CACHE_FILE_PAGES);
    opened[number] = open_file(path, O_RDONLY);
  }
  ready();
  for (uint64_t dice = 1;;) {
    for (int i = 0; i < 16; i++) {
      size_t first = next_random(&dice) % (pages / READ_PAGES) * READ_PAGES;
      off_t at = (off_t)(first % CACHE_FILE_PAGES) * PAGE;
      if (pread(opened[first / CACHE_FILE_PAGES], buffer, READ_PAGES * PAGE, at) != READ_PAGES * PAGE)
        fail("read of page %zu", first);
      verify_pages(CONTENT_COMPRESSIBLE, buffer, READ_PAGES, first, "cache");
    }
    worked(16 * READ_PAGES);
  }
}
