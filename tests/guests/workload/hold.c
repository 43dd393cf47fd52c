// SPDX-License-Identifier: Apache-2.0
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "workload.h"

enum {
  AT_ONCE = 64,  // pages between two rests: a fifth of a processor's time
  REST_NS = 1000000,
};

static size_t meminfo_kib(const char* field) {
  static char text[8192];
  FILE* file = fopen("/proc/meminfo", "r");
  if (!file) fail("/proc/meminfo");
  text[fread(text, 1, sizeof text - 1, file)] = 0;
  fclose(file);
  const char* at = strstr(text, field);
  return at ? strtoul(at + strlen(field), NULL, 10) : 0;
}

static size_t pages_from(const char* mib) {
  char* unit = NULL;
  size_t number = strtoul(mib, &unit, 10);
  if (*unit != '%') return number << 8;
  size_t total = meminfo_kib("MemTotal:"), used = total - meminfo_kib("MemFree:");
  size_t wanted = total / 100 * number;
  return wanted > used ? (wanted - used) / 4 : 0;
}

void hold(enum content content, const char* mib) {
  size_t pages = pages_from(mib);
  if (pages == 0) fail("%s is nothing", mib);
  char* memory = map_memory(pages * PAGE);
  fill_pages(content, memory, pages, 0);
  ready();
  for (uint64_t dice = 1;;) {
    for (int i = 0; i < AT_ONCE; i++) {
      size_t page = next_random(&dice) % pages;
      verify_pages(content, memory + page * PAGE, 1, page, "hold");
    }
    worked(AT_ONCE);
    nanosleep(&(struct timespec){.tv_nsec = REST_NS}, NULL);
  }
}
