// SPDX-License-Identifier: Apache-2.0
// What selfcheck has found wrong, and the few helpers that every part needs.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { VERDICT_LENGTH = 240 };

// The first failure this process saw; empty while all is well. It is never
// cleared: a guest that was corrupt once stays so.
extern char verdict[VERDICT_LENGTH];

__attribute__((format(printf, 1, 2))) void fail(const char* format, ...);

// Writes one line to the console in one write, so that lines do not mingle.
__attribute__((format(printf, 1, 2))) void say(const char* format, ...);

// Ends the process after printing what could not be set up, and errno.
__attribute__((noreturn)) void die(const char* what);

// The number of selfcheck.NAME=N on the kernel command line, else `otherwise`.
long parameter(const char* name, long otherwise);

// A field of /proc/meminfo in KiB.
long meminfo_kib(const char* field);

// Reads a whole small file; returns its length, or -1. Always terminated.
long read_file(const char* path, char* text, size_t size);

// Reads or writes exactly `bytes`; false when the other end is gone.
bool read_exactly(int fd, void* memory, size_t bytes);
bool write_exactly(int fd, const void* memory, size_t bytes);

uint64_t monotonic_ms(void);
void sleep_ms(long ms);
