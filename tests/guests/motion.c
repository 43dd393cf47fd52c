// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include "motion.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pattern.h"
#include "verdict.h"

static uint64_t random_state;

static uint64_t next_random(void) {
  if (!random_state) random_state = (uint64_t)getpid();
  return mix64(random_state += STEP_MOTION);
}

static char* map_private(size_t bytes) {
  void* at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return at == MAP_FAILED ? NULL : at;
}

// ---- churn ----------------------------------------------------------------

static void churn_anonymous(size_t bytes, int advice) {
  char* memory = map_private(bytes);
  if (!memory) die("churn memory");
  madvise(memory, bytes, advice);
  pattern_fill(memory, bytes, next_random(), STEP_CHURN);
}

static void churn_file(const char* path, size_t bytes) {
  enum { STEP_BYTES = 256 << 10 };
  static char buffer[STEP_BYTES] __attribute__((aligned(8)));
  int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) die(path);
  for (size_t at = 0; at < bytes; at += STEP_BYTES) {
    pattern_fill(buffer, STEP_BYTES, next_random(), STEP_CHURN);
    if (!write_exactly(fd, buffer, STEP_BYTES)) die(path);
  }
  unlink(path);  // the memory is free when this process ends
}

// Half of it in huge pages, a quarter in small ones, a quarter in tmpfs.
static void churn_process(size_t bytes, int ready, int go) {
  char path[32], byte = 1;
  size_t quarter = bytes / 4 & ~(size_t)((256 << 10) - 1);
  snprintf(path, sizeof path, "/tmp/churn.%d", (int)getpid());
  churn_file(path, quarter);
  churn_anonymous(quarter, MADV_NOHUGEPAGE);
  churn_anonymous(bytes - 2 * quarter, MADV_HUGEPAGE);
  // None may end before all have filled: the next would get the same pages.
  write_exactly(ready, &byte, 1);
  close(ready);
  read_exactly(go, &byte, 1);
  _exit(0);
}

static void wait_for_free(long kib) {
  // Pages on the processors' own lists are not counted as free: be content
  // with most, or with a count that has stopped growing.
  long last = -1;
  for (int tries = 0; tries < 50; tries++) {
    long now = meminfo_kib("MemFree");
    if (now >= kib - kib / 64 || (now <= last && tries > 5)) return;
    last = now;
    sleep_ms(50);
  }
}

void churn(long mib, int processes) {
  long free_before = meminfo_kib("MemFree"), most = free_before / 1024 * 9 / 10;
  if (mib > most) mib = most;
  if (mib <= 0) return;
  int ready[2], go[2];
  if (pipe(ready) || pipe(go)) die("churn pipe");
  for (int i = 0; i < processes; i++) {
    pid_t pid = fork();
    if (pid < 0) die("churn fork");
    if (pid == 0) {
      close(ready[0]);
      close(go[1]);
      churn_process(((size_t)mib << 20) / (size_t)processes & ~(size_t)0xfffff, ready[1], go[0]);
    }
  }
  close(ready[1]);
  char byte;
  for (int i = 0; i < processes; i++)
    if (!read_exactly(ready[0], &byte, 1)) die("churn process");
  close(ready[0]);
  close(go[0]);
  close(go[1]);
  while (wait(NULL) > 0 || errno == EINTR) {
  }
  wait_for_free(free_before);
}

// ---- motion ---------------------------------------------------------------

enum { SLOTS = 24, MOTION_FILE_MAX = 192 << 10 };

static struct slot {
  char* memory;
  size_t bytes;
  uint64_t start;
} slots[SLOTS];

static void check(const char* what, const void* memory, size_t bytes, uint64_t start) {
  ptrdiff_t wrong = pattern_verify(memory, bytes, start, STEP_MOTION);
  if (wrong >= 0)
    fail("%s pid=%d offset=%#tx expected=%#llx got=%#llx", what, (int)getpid(), wrong * 8,
         (unsigned long long)pattern_word(start, STEP_MOTION, (size_t)wrong),
         (unsigned long long)((const uint64_t*)memory)[wrong]);
}

static void renew_slot(struct slot* slot, size_t bytes) {
  if (slot->memory) {
    check("fresh memory", slot->memory, slot->bytes, slot->start);
    munmap(slot->memory, slot->bytes);
  }
  *slot = (struct slot){map_private(bytes), bytes, next_random()};
  if (!slot->memory) {
    fail("fresh memory pid=%d cannot be had: %s", (int)getpid(), strerror(errno));
    return;
  }
  // The kernel promises zeros: a stale free page would show here.
  for (size_t at = 0; at < bytes / 8; at += WORDS_PER_PAGE / 8)
    if (((uint64_t*)slot->memory)[at]) {
      fail("fresh memory pid=%d offset=%#zx expected=0 got=%#llx", (int)getpid(), at * 8,
           (unsigned long long)((uint64_t*)slot->memory)[at]);
      return;
    }
  pattern_fill(slot->memory, bytes, slot->start, STEP_MOTION);
}

static void short_lived_file(void) {
  static char buffer[MOTION_FILE_MAX] __attribute__((aligned(8))), folder[32], path[64];
  size_t bytes = PAGE * (1 + next_random() % (MOTION_FILE_MAX / PAGE));
  uint64_t start = next_random();
  snprintf(folder, sizeof folder, "/tmp/motion.%d", (int)getpid());
  snprintf(path, sizeof path, "%s/file", folder);
  mkdir(folder, 0700);
  int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  pattern_fill(buffer, bytes, start, STEP_MOTION);
  if (fd < 0 || !write_exactly(fd, buffer, bytes) || lseek(fd, 0, SEEK_SET)) {
    fail("short-lived file %s: %s", path, strerror(errno));
    return;
  }
  memset(buffer, 0, bytes);
  if (!read_exactly(fd, buffer, bytes))
    fail("short-lived file %s cannot be read", path);
  else
    check("short-lived file", buffer, bytes, start);
  close(fd);
  unlink(path);
  rmdir(folder);
}

static void short_lived_process(void) {
  pid_t pid = fork();
  if (pid == 0) {
    verdict[0] = 0;
    random_state = (uint64_t)getpid();
    for (int i = 0; i < SLOTS; i += 3)  // inherited copy-on-write, and written
      renew_slot(&slots[i], PAGE * (1 + next_random() % 32));
    for (int i = 0; i < SLOTS; i += 3)
      check("short-lived process", slots[i].memory, slots[i].bytes, slots[i].start);
    if (verdict[0]) say("selfcheck: FAIL %s", verdict);
    _exit(verdict[0] ? 1 : 0);
  }
  int status = 0;
  if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
    fail("short-lived process pid=%d status=%#x", (int)pid, status);
}

void motion_step(void) {
  static unsigned step;
  size_t pages = (size_t)1 << next_random() % 9;  // 4 KiB to 1 MiB, small ones often
  renew_slot(&slots[next_random() % SLOTS], PAGE * (pages + next_random() % pages));
  if (++step % 4 == 0) short_lived_file();
  if (step % 8 == 0) short_lived_process();
  if (step % 64 == 0) renew_slot(&slots[0], 6 << 20);
}
