// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include "kernel_view.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "pattern.h"
#include "verdict.h"

enum { FOLDERS = 8, FILES = 8, FILE_MAX = 8 << 10, PARTS = 4 };

static uint64_t rounds;

// ---- a tree of files ------------------------------------------------------

static uint32_t file_generation[FOLDERS][FILES];

static void file_path(char path[64], int folder, int file) {
  snprintf(path, 64, "/tmp/tree/d%d/f%d", folder, file);
}

static size_t file_bytes(int folder, int file) {
  return 32 + 32 * (size_t)((folder * 61 + file * 37) % (FILE_MAX / 32));
}

static uint64_t file_start(int folder, int file) {
  return stream_start(0xf11e, (uint64_t)(folder * FILES + file), file_generation[folder][file]);
}

static void write_tree_file(int folder, int file) {
  static char content[FILE_MAX] __attribute__((aligned(8)));
  char path[64], next[72];
  size_t bytes = file_bytes(folder, file);
  file_path(path, folder, file);
  snprintf(next, sizeof next, "%s.new", path);
  pattern_fill(content, bytes, file_start(folder, file), STEP_HELD);
  int fd = open(next, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0 || !write_exactly(fd, content, bytes) || rename(next, path))
    fail("tree %s cannot be written: %s", path, strerror(errno));
  close(fd);
}

static void check_tree_file(int folder, int file) {
  static char content[FILE_MAX + 8] __attribute__((aligned(8)));
  char path[64];
  size_t bytes = file_bytes(folder, file);
  file_path(path, folder, file);
  long got = read_file(path, content, sizeof content);
  if (got != (long)bytes) {
    fail("tree %s length expected=%zu got=%ld", path, bytes, got);
    return;
  }
  ptrdiff_t wrong = pattern_verify(content, bytes, file_start(folder, file), STEP_HELD);
  if (wrong >= 0)
    fail("tree %s word=%td expected=%#llx got=%#llx", path, wrong,
         (unsigned long long)pattern_word(file_start(folder, file), STEP_HELD, (size_t)wrong),
         (unsigned long long)((uint64_t*)content)[wrong]);
}

static int entries(const char* path) {
  DIR* folder = opendir(path);
  int count = 0;
  while (folder && readdir(folder)) count++;
  if (folder) closedir(folder);
  return count - 2;  // without . and ..
}

static void set_up_tree(void) {
  char path[64];
  mkdir("/tmp/tree", 0700);
  for (int folder = 0; folder < FOLDERS; folder++) {
    snprintf(path, sizeof path, "/tmp/tree/d%d", folder);
    mkdir(path, 0700);
    for (int file = 0; file < FILES; file++) write_tree_file(folder, file);
  }
  if (symlink("d0/f0", "/tmp/tree/link")) die("/tmp/tree/link");
}

static void visit_tree(void) {
  char path[64];
  for (int folder = (int)(rounds % PARTS); folder < FOLDERS; folder += PARTS) {
    snprintf(path, sizeof path, "/tmp/tree/d%d", folder);
    if (entries(path) != FILES) fail("tree %s entries expected=%d got=%d", path, FILES, entries(path));
    for (int file = 0; file < FILES; file++) check_tree_file(folder, file);
    int renewed = (int)(rounds / PARTS % FILES);
    file_generation[folder][renewed]++;
    write_tree_file(folder, renewed);
  }
  ssize_t length = readlink("/tmp/tree/link", path, sizeof path);
  if (length != 5 || memcmp(path, "d0/f0", 5))
    fail("tree link expected=d0/f0 got=%.*s", (int)(length > 0 ? length : 0), path);
}

// ---- counters -------------------------------------------------------------

static uint64_t counter, *counter_shared;
static int counter_file, counter_event;

static void set_up_counters(void) {
  counter_shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  counter_file = open("/tmp/counter", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  counter_event = eventfd(1, EFD_CLOEXEC);
  counter = 1;
  if (counter_shared == MAP_FAILED || counter_file < 0 || counter_event < 0 ||
      pwrite(counter_file, &counter, sizeof counter, 0) != sizeof counter)
    die("counters");
  *counter_shared = counter;
}

static void visit_counters(void) {
  uint64_t in_file = 0, in_event = 0;
  if (pread(counter_file, &in_file, sizeof in_file, 0) != sizeof in_file ||
      read(counter_event, &in_event, sizeof in_event) != sizeof in_event)
    fail("counters cannot be read: %s", strerror(errno));
  if (in_file != counter || in_event != counter || *counter_shared != counter)
    fail("counter expected=%llu got file=%llu eventfd=%llu shared=%llu", (unsigned long long)counter,
         (unsigned long long)in_file, (unsigned long long)in_event, (unsigned long long)*counter_shared);
  *counter_shared = ++counter;
  if (pwrite(counter_file, &counter, sizeof counter, 0) != sizeof counter ||
      write(counter_event, &counter, sizeof counter) != sizeof counter)
    fail("counters cannot be written: %s", strerror(errno));
}

// ---- what stays as it is --------------------------------------------------

static struct {
  const char* path;
  uint64_t hash;
} constants[] = {
    {"/proc/self/cmdline", 0}, {"/proc/cmdline", 0}, {"/proc/version", 0}, {"/proc/filesystems", 0},
    {"/proc/net/route", 0},    {"/proc/misc", 0},    {"/bin/busybox", 0},  {"/bin/selfcheck", 0},
    {"/dev/vda", 0},  // a disk, where there is one: page cache that could be dropped
};

static uint64_t file_hash(const char* path) {
  static uint64_t block[(64 << 10) / 8];
  uint64_t hash = 0;
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  for (;;) {
    ssize_t n = read(fd, block, sizeof block);
    if (n <= 0) break;
    if (n % 8) memset((char*)block + n, 0, 8 - (size_t)n % 8);
    for (ssize_t i = 0; i < (n + 7) / 8; i++) hash = (hash ^ block[i]) * STEP_HELD;
    hash ^= hash >> 32;
  }
  close(fd);
  return hash;
}

static void visit_constants(void) {
  enum { COUNT = sizeof constants / sizeof *constants };
  for (size_t i = rounds % PARTS; i < COUNT; i += PARTS) {
    uint64_t now = file_hash(constants[i].path);
    if (now != constants[i].hash)
      fail("%s hash expected=%#llx got=%#llx", constants[i].path, (unsigned long long)constants[i].hash,
           (unsigned long long)now);
  }
  char text[4096];
  int pid = -1, ppid = -1;
  if (read_file("/proc/self/stat", text, sizeof text) > 0) sscanf(text, "%d (selfcheck) %*c %d", &pid, &ppid);
  if (pid != getpid() || ppid != getppid())
    fail("/proc/self/stat expected=%d,%d got=%d,%d", getpid(), getppid(), pid, ppid);
}

void kernel_view_check_child(pid_t child) {
  char path[48], text[4096], state = '?';
  int pid = -1, ppid = -1;
  snprintf(path, sizeof path, "/proc/%d/stat", (int)child);
  if (read_file(path, text, sizeof text) > 0) sscanf(text, "%d (selfcheck) %c %d", &pid, &state, &ppid);
  if (pid != child || ppid != getpid() || state == 'Z' || state == 'X')
    fail("%s expected=%d,%d got=%d,%d state=%c", path, (int)child, getpid(), pid, ppid, state);
}

// ---- the log --------------------------------------------------------------

static const char* const alarming[] = {
    "BUG",
    "Oops",
    "Bad page",
    "corrupt",
    "Corrupt",
    "general protection",
    "segfault",
    "bad: scheduling",
    "unable to handle",
    "Bad rss",
    "Out of memory",
    "double free",
    "poison overwritten",
    "VM_BUG",
};
static const char* const harmless[] = {
    "soft lockup",
    "workqueue lockup",
    "hard LOCKUP",
    "rcu: ",
    "clocksource",
    "blocked for more",
    "low memory corruption every",  // the announcement of a check, not its finding
};

static bool holds_one(const char* text, const char* const* words, size_t count) {
  for (size_t i = 0; i < count; i++)
    if (strstr(text, words[i])) return true;
  return false;
}

void kernel_log_check(void) {
  static int log = -1;
  char record[2048];
  if (log < 0) log = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  for (;;) {
    ssize_t n = read(log, record, sizeof record - 1);
    if (n < 0 && errno == EPIPE)  // records were overwritten before they were read
      continue;
    if (n <= 0) break;
    record[n] = 0;
    if (holds_one(record, alarming, sizeof alarming / sizeof *alarming) &&
        !holds_one(record, harmless, sizeof harmless / sizeof *harmless)) {
      const char* text = strchr(record, ';');
      record[strcspn(record, "\n")] = 0;
      fail("kernel log: %s", text ? text + 1 : record);
    }
  }
  // Bit 5: a bad page was found; bit 7: the kernel died once.
  char text[32];
  if (read_file("/proc/sys/kernel/tainted", text, sizeof text) > 0 &&
      strtoul(text, NULL, 10) & (1 << 5 | 1 << 7))
    fail("kernel taint got=%s", text);
}

// ---------------------------------------------------------------------------

void kernel_view_set_up(void) {
  set_up_tree();
  set_up_counters();
  // Stays open: with the last close of a disk its page cache goes.
  open("/dev/vda", O_RDONLY | O_CLOEXEC);
  for (size_t i = 0; i < sizeof constants / sizeof *constants; i++)
    constants[i].hash = file_hash(constants[i].path);
}

void kernel_view_visit(void) {
  visit_tree();
  visit_counters();
  visit_constants();
  rounds++;
}
