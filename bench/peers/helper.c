// SPDX-License-Identifier: Apache-2.0
// What the benchmarks need of a program that is small and starts at once.
//
//   helper run USAGE COMMAND...   runs it; writes to the file USAGE what it and its children used, as JSON
//   helper disk FILE MIB          bytes a second, written into FILE with O_DIRECT by some threads at once, durable
//   helper memory MIB             bytes a second, copied
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 1 << 20, THREADS = 4 };

static int die(const char* what) {
  perror(what);
  return 1;
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static double seconds(struct timeval time) { return (double)time.tv_sec + (double)time.tv_usec / 1e6; }

// The child is forked from this small process: a process keeps the peak of the one that it was forked from.
static int run(const char* usage_path, char** command) {
  pid_t child = fork();
  if (child < 0) return die("fork");
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    execvp(command[0], command);
    _exit(die(command[0]));
  }
  // A pipe that the command reads from or writes to ends with the command alone.
  close(STDIN_FILENO);
  close(STDOUT_FILENO);
  int status = 0;
  if (waitpid(child, &status, 0) != child) return die("waitpid");
  int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  struct rusage usage;
  getrusage(RUSAGE_CHILDREN, &usage);
  char making[4096];
  snprintf(making, sizeof making, "%s.made", usage_path);
  FILE* file = fopen(making, "w");
  if (!file) return die(making);
  fprintf(file, "{\"status\": %d, \"user_s\": %.6f, \"system_s\": %.6f, \"peak_rss_bytes\": %ld}\n", code,
          seconds(usage.ru_utime), seconds(usage.ru_stime), usage.ru_maxrss << 10);
  if (fclose(file) || rename(making, usage_path)) return die(usage_path);
  return code;
}

// As fast as the disk takes it: several writes are under way, into room that was allocated before.
static struct {
  int file;
  const void* block;
  long blocks;
  atomic_long next;
  atomic_bool failed;
} disk;

static void* write_blocks(void* unused) {
  for (long i; (i = atomic_fetch_add(&disk.next, 1)) < disk.blocks;)
    if (pwrite(disk.file, disk.block, BLOCK, (off_t)i * BLOCK) != BLOCK) disk.failed = true;
  return unused;
}

static int measure_disk(const char* path, long mib) {
  void* block = NULL;
  if (posix_memalign(&block, 4096, BLOCK)) return die("memory");
  uint64_t* words = block;
  for (uint64_t i = 0, x = 1; i < BLOCK / sizeof *words; i++) words[i] = x = x * 6364136223846793005u + 1442695040888963407u;
  disk.file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_DIRECT, 0600);
  if (disk.file < 0) return die(path);
  disk.block = block;
  disk.blocks = (mib << 20) / BLOCK;
  double begun = now();
  if (fallocate(disk.file, 0, 0, (off_t)disk.blocks * BLOCK)) return die("fallocate");
  pthread_t threads[THREADS];
  for (int i = 0; i < THREADS; i++)
    if (pthread_create(&threads[i], NULL, write_blocks, NULL)) return die("thread");
  for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
  if (disk.failed || fsync(disk.file)) return die("write");
  printf("%.0f\n", (double)disk.blocks * BLOCK / (now() - begun));
  return 0;
}

static int measure_memory(long mib) {
  size_t bytes = (size_t)mib << 20;
  char *from = malloc(bytes), *to = malloc(bytes);
  if (!from || !to) return die("memory");
  memset(from, 1, bytes);
  memset(to, 2, bytes);
  enum { TIMES = 4 };
  double begun = now();
  for (int i = 0; i < TIMES; i++) {
    memcpy(to, from, bytes);
    __asm__ volatile("" : : "r"(to) : "memory");
  }
  printf("%.0f\n", (double)bytes * TIMES / (now() - begun));
  return 0;
}

int main(int count, char** arguments) {
  if (count >= 4 && !strcmp(arguments[1], "run")) return run(arguments[2], arguments + 3);
  if (count == 4 && !strcmp(arguments[1], "disk")) return measure_disk(arguments[2], atol(arguments[3]));
  if (count == 3 && !strcmp(arguments[1], "memory")) return measure_memory(atol(arguments[2]));
  fprintf(stderr, "usage: helper run USAGE COMMAND... | disk FILE MIB | memory MIB\n");
  return 2;
}
