// SPDX-License-Identifier: Apache-2.0
// As a compiler at work: short processes, each with a heap of its own of small pieces, that read what others
// have made and leave a file behind. A quarter of the memory for the heap of each of the two at work (32 MiB
// at most), half for the files, which are made anew in turn.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "workload.h"

enum {
  AT_ONCE = 2,
  HEAP_MIB_MAX = 32,
  ENTRY_BYTES = 96,  // of a heap for one entry of the tree and its text, as malloc counts
  RESULT_WORDS = 32 * 1024,
  IMPORTS = 3,
};

struct result {
  uint64_t job, sum;
  char text[(RESULT_WORDS - 2) * 8];
};

static struct result result;

static uint64_t sum_of(const struct result* of) {
  const uint64_t* words = (const uint64_t*)of;
  uint64_t sum = of->job;
  for (size_t i = 2; i < RESULT_WORDS; i++) sum = (sum ^ words[i]) * 0x100000001b3u;
  return sum;
}

static const char* path_of(const char* folder, uint64_t slot, const char* more) {
  static char path[256];
  snprintf(path, sizeof path, "%s/%lu%s", folder, slot, more);
  return path;
}

static void write_result(const char* folder, uint64_t job, uint64_t slot) {
  result.job = job;
  result.sum = sum_of(&result);
  char temporary[256];
  snprintf(temporary, sizeof temporary, "%s", path_of(folder, slot, ".new"));
  int file = open(temporary, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  if (file < 0 || write(file, &result, sizeof result) != sizeof result || close(file))
    fail("write %s", temporary);
  if (rename(temporary, path_of(folder, slot, ""))) fail("rename %s", temporary);
}

static void read_result(const char* folder, uint64_t slot, uint64_t slots) {
  const char* path = path_of(folder, slot, "");
  int file = open(path, O_RDONLY);
  if (file < 0 || read(file, &result, sizeof result) != sizeof result || close(file)) fail("read %s", path);
  if (result.job % slots != slot || result.sum != sum_of(&result))
    fail("%s job=%lu expected=%#lx got=%#lx", path, result.job, sum_of(&result), result.sum);
}

// ---- one of the short processes --------------------------------------------

struct entry {
  struct entry *left, *right;
  uint64_t key, uses;
  char* text;
};

static struct entry* root;

static void note(uint64_t key, uint64_t job) {
  struct entry** at = &root;
  while (*at && (*at)->key != key) at = key < (*at)->key ? &(*at)->left : &(*at)->right;
  if (!*at) {
    char text[64];
    snprintf(text, sizeof text, "symbol_%lx_of_unit_%lu", key >> 24, job);
    struct entry* made = calloc(1, sizeof *made);
    if (!made || !(made->text = strdup(text))) fail("heap of job %lu", job);
    made->key = key;
    *at = made;
  }
  (*at)->uses++;
}

// In order, as much as there is room for.
static size_t print(const struct entry* entry, size_t at) {
  if (!entry || at + 128 > sizeof result.text) return at;
  at = print(entry->left, at);
  if (at + 128 > sizeof result.text) return at;
  at += (size_t)snprintf(result.text + at, 128, "%s %lu\n", entry->text, entry->uses);
  return print(entry->right, at);
}

void compile_worker(char** arguments) {
  const char* folder = arguments[0];
  uint64_t job = strtoul(arguments[1], NULL, 10), slots = strtoul(arguments[2], NULL, 10);
  size_t entries = strtoul(arguments[3], NULL, 10);
  uint64_t* progress = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(arguments[4]), 0);
  if (progress == MAP_FAILED) fail("progress of job %lu", job);
  uint64_t dice = mix64(job + 1);
  for (int i = 0; i < IMPORTS; i++) read_result(folder, next_random(&dice) % slots, slots);
  uint64_t keys = dice;
  for (size_t i = 0; i < entries; i++) {
    // Every other time a name that is known.
    note(next_random(&dice), job);
    if (i % 2) note(next_random(&keys), job);
    if (i % 64 == 63) __atomic_fetch_add(progress, 64, __ATOMIC_RELAXED);
  }
  memset(&result, 0, sizeof result);
  print(root, 0);
  write_result(folder, job, job % slots);
  _exit(0);
}

// ---- who starts them -------------------------------------------------------

static void start(const char* folder, uint64_t job, uint64_t slots, size_t entries, int progress) {
  pid_t child = fork();
  if (child < 0) fail("fork of job %lu", job);
  if (child > 0) return;
  char numbers[4][24];
  snprintf(numbers[0], sizeof numbers[0], "%lu", job);
  snprintf(numbers[1], sizeof numbers[1], "%lu", slots);
  snprintf(numbers[2], sizeof numbers[2], "%zu", entries);
  snprintf(numbers[3], sizeof numbers[3], "%d", progress);
  execl("/proc/self/exe", "workload", load_name, "compile-worker", folder, numbers[0], numbers[1], numbers[2],
        numbers[3], (char*)NULL);
  fail("exec of job %lu", job);
}

static void wait_for_one(const sigset_t* child_ended, uint64_t* progress) {
  for (;;) {
    int status = 0;
    pid_t ended = waitpid(-1, &status, WNOHANG);
    if (ended > 0 && status == 0) return;
    if (ended != 0) fail("job of process %d ended with status %#x", ended, (unsigned)status);
    worked(__atomic_exchange_n(progress, 0, __ATOMIC_RELAXED));
    sigtimedwait(child_ended, NULL, &(struct timespec){.tv_nsec = 10000000});
  }
}

void compile(size_t mib) {
  size_t heap = (mib << 20) / 4;
  if (heap > (size_t)HEAP_MIB_MAX << 20) heap = (size_t)HEAP_MIB_MAX << 20;
  uint64_t slots = (mib << 20) / 2 / sizeof result;
  if (slots < AT_ONCE) fail("%zu MiB are too few", mib);
  char folder[128];
  snprintf(folder, sizeof folder, "/tmp/%.64s", load_name);
  if (mkdir(folder, 0700) && errno != EEXIST) fail("mkdir %s", folder);
  int shared = memfd_create("progress", 0);
  if (shared < 0 || ftruncate(shared, PAGE)) fail("memfd");
  uint64_t* progress = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, shared, 0);
  if (progress == MAP_FAILED) fail("progress");
  sigset_t child_ended;
  sigemptyset(&child_ended);
  sigaddset(&child_ended, SIGCHLD);
  sigprocmask(SIG_BLOCK, &child_ended, NULL);

  for (uint64_t job = 0; job < slots; job++) {
    fill_pages(CONTENT_COMPRESSIBLE, &result, sizeof result / PAGE, job * (sizeof result / PAGE));
    write_result(folder, job, job);
  }
  ready();
  for (uint64_t job = slots;; job++) {
    if (job >= slots + AT_ONCE) wait_for_one(&child_ended, progress);
    start(folder, job, slots, heap / ENTRY_BYTES, shared);
  }
}
