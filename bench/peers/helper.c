// SPDX-License-Identifier: Apache-2.0
// What the benchmarks need of a program that is small and starts at once.
//
//   helper run USAGE COMMAND...   runs it; writes to the file USAGE what it and its children used, as JSON
//   helper disk FILE MIB          bytes a second, written into FILE with O_DIRECT, durable
//   helper memory MIB             bytes a second, copied
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 4 << 20 };

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

static int measure_disk(const char* path, long mib) {
  void* block = NULL;
  if (posix_memalign(&block, 4096, BLOCK)) return die("memory");
  uint64_t* words = block;
  for (uint64_t i = 0, x = 1; i < BLOCK / sizeof *words; i++) words[i] = x = x * 6364136223846793005u + 1442695040888963407u;
  int file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_DIRECT, 0600);
  if (file < 0) return die(path);
  double begun = now();
  long blocks = (mib << 20) / BLOCK;
  for (long i = 0; i < blocks; i++)
    if (write(file, block, BLOCK) != BLOCK) return die("write");
  if (fsync(file)) return die("fsync");
  printf("%.0f\n", (double)blocks * BLOCK / (now() - begun));
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
