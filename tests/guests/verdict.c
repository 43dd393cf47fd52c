// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include "verdict.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

char verdict[VERDICT_LENGTH];

void fail(const char* format, ...) {
  if (verdict[0]) return;
  va_list list;
  va_start(list, format);
  vsnprintf(verdict, sizeof verdict, format, list);
  va_end(list);
}

void say(const char* format, ...) {
  char line[512];
  va_list list;
  va_start(list, format);
  int length = vsnprintf(line, sizeof line - 1, format, list);
  va_end(list);
  if (length > (int)sizeof line - 2) length = (int)sizeof line - 2;
  line[length++] = '\n';
  write_exactly(STDOUT_FILENO, line, (size_t)length);
}

void die(const char* what) {
  say("selfcheck: FAIL setup %s: %s", what, strerror(errno));
  _exit(1);
}

long parameter(const char* name, long otherwise) {
  static char line[4096];
  if (!line[0] && read_file("/proc/cmdline", line, sizeof line) < 0) die("/proc/cmdline");
  char key[64];
  int length = snprintf(key, sizeof key, "selfcheck.%s=", name);
  const char* at = strstr(line, key);
  return at ? strtol(at + length, NULL, 0) : otherwise;
}

long meminfo_kib(const char* field) {
  char text[4096], key[64];
  if (read_file("/proc/meminfo", text, sizeof text) < 0) return -1;
  int length = snprintf(key, sizeof key, "%s:", field);
  const char* at = strstr(text, key);
  return at ? strtol(at + length, NULL, 10) : -1;
}

long read_file(const char* path, char* text, size_t size) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  size_t got = 0;
  ssize_t n;
  while (got < size - 1 && (n = read(fd, text + got, size - 1 - got)) > 0) got += (size_t)n;
  close(fd);
  text[got] = 0;
  return (long)got;
}

bool read_exactly(int fd, void* memory, size_t bytes) {
  for (char* at = memory; bytes;) {
    ssize_t n = read(fd, at, bytes);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    at += n;
    bytes -= (size_t)n;
  }
  return true;
}

bool write_exactly(int fd, const void* memory, size_t bytes) {
  for (const char* at = memory; bytes;) {
    ssize_t n = write(fd, at, bytes);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    at += n;
    bytes -= (size_t)n;
  }
  return true;
}

uint64_t monotonic_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

void sleep_ms(long ms) {
  struct timespec span = {ms / 1000, ms % 1000 * 1000000};
  nanosleep(&span, NULL);
}
