// SPDX-License-Identifier: Apache-2.0
// One load of the kinds that are usual where checkpoints are measured; runs for ever, beside selfcheck.
//
//   workload NAME hold random|compressible MIB|N%   fills anonymous memory, then verifies pages of it in no
//   order,
//                                      with rests. N%: so much that N % of all memory is in use. Tells pages
//   workload NAME numeric              pairs of Gaussian deviates, as NPB's EP; next to no memory. Tells
//   pairs workload NAME stream MIB           STREAM's triad over three arrays that have MIB together. Tells
//   KiB read
//                                      and written, as STREAM counts
//   workload NAME compile MIB          two short processes at a time, each with its own heap of small pieces,
//   and
//                                      files in /tmp; MIB in all. Tells entries made in their trees
//   workload NAME files FOLDER MIB     writes, fsyncs, renames, reads and unlinks files; at most MIB. Tells
//   KiB
//                                      read and written
//   workload NAME cache FOLDER MIB     files that stay in the page cache, read at random. Tells pages
//   workload pages random|compressible COUNT        such pages to stdout, and ends
//
// Console:
//   workload: NAME ready
//   workload: NAME speed N     each second or a little more; N is for one second
//   workload: NAME FAIL WHAT   for ever
#define _GNU_SOURCE
#include "workload.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

const char* load_name = "?";
uint64_t load_salt;

static void say_list(const char* before, const char* format, va_list list) {
  char line[512];
  int length = snprintf(line, sizeof line, "workload: %.64s %s", load_name, before);
  length += vsnprintf(line + length, sizeof line - (size_t)length - 1, format, list);
  if (length > (int)sizeof line - 2) length = (int)sizeof line - 2;
  line[length++] = '\n';
  // Nobody could be told that it did not work.
  if (write(STDOUT_FILENO, line, (size_t)length) < 0) return;
}

void say(const char* format, ...) {
  va_list list;
  va_start(list, format);
  say_list("", format, list);
  va_end(list);
}

void fail(const char* format, ...) {
  int error = errno;
  for (;;) {
    va_list list;
    va_start(list, format);
    char what[256];
    vsnprintf(what, sizeof what, format, list);
    va_end(list);
    say("FAIL %s errno=%s", what, strerror(error));
    sleep(1);
  }
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static double told_at;

void ready(void) {
  say("ready");
  told_at = now();
}

void worked(uint64_t units) {
  static uint64_t done;
  done += units;
  double time = now();
  if (time - told_at < 1) return;
  say("speed %.0f", (double)done / (time - told_at));
  told_at = time;
  done = 0;
}

void* map_memory(size_t bytes) {
  void* memory =
      mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) fail("%zu bytes of memory", bytes);
  return memory;
}

static size_t mib_from(const char* text) {
  char* end = NULL;
  unsigned long mib = strtoul(text, &end, 10);
  if (mib == 0 || *end) fail("%s is no number of MiB", text);
  return mib;
}

static int print_pages(enum content content, size_t count) {
  static char page[PAGE];
  for (size_t number = 0; number < count; number++) {
    fill_pages(content, page, 1, number);
    if (fwrite(page, PAGE, 1, stdout) != 1) return 1;
  }
  return fflush(stdout) != 0;
}

int main(int count, char** arguments) {
  if (count == 4 && !strcmp(arguments[1], "pages"))
    return print_pages(content_named(arguments[2]), strtoul(arguments[3], NULL, 10));
  if (count > 1) load_name = arguments[1];
  // So that two loads in one guest have no page in common (FNV-1a).
  load_salt = 0xcbf29ce484222325u;
  for (const char* letter = load_name; *letter; letter++)
    load_salt = (load_salt ^ (unsigned char)*letter) * 0x100000001b3u;
  const char* kind = count > 2 ? arguments[2] : "";
  char** more = arguments + 3;
  if (!strcmp(kind, "hold") && count == 5) hold(content_named(more[0]), more[1]);
  if (!strcmp(kind, "numeric") && count == 3) numeric();
  if (!strcmp(kind, "stream") && count == 4) stream(mib_from(more[0]));
  if (!strcmp(kind, "compile") && count == 4) compile(mib_from(more[0]));
  if (!strcmp(kind, "compile-worker") && count == 8) compile_worker(more);
  if (!strcmp(kind, "files") && count == 5) use_files(more[0], mib_from(more[1]));
  if (!strcmp(kind, "cache") && count == 5) use_cache(more[0], mib_from(more[1]));
  errno = 0;
  fail("there is no load \"%s\" with %d arguments", kind, count - 3);
}
