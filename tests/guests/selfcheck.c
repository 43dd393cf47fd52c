// SPDX-License-Identifier: Apache-2.0
// The guest's workload: it uses memory in every way that a guest kernel keeps
// books about, and verifies all of it, round after round, for ever. A guest that
// was restored wrongly says so on its console.
//
// Kernel command line, each as selfcheck.NAME=N:
//   churn_mib    filled and freed before the start (half of the memory)
//   anon_mib     anonymous memory held, over all processes (64)
//   tmpfs_mib    a file in tmpfs held (32)
//   cache_mib    page cache of a file in ramfs held (16)
//   hugetlb_mib  hugetlbfs pages held; as many again stay free in its pool (4)
//   procs        child processes (one for each processor, at least 2)
//   still        1: what is held is verified and never rewritten (0)
//   busy         1: the children allocate, check and free without pause (0)
//
// Console:
//   selfcheck: ready total_kib=N free_kib=N used_kib=N procs=N
//   selfcheck: round N ok total_kib=N free_kib=N procs=N
//   selfcheck: FAIL WHAT WHERE expected=.. got=..     every round from then on
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernel_view.h"
#include "link.h"
#include "motion.h"
#include "pattern.h"
#include "region.h"
#include "verdict.h"

enum {
  CHILDREN_MAX = 16,
  ROUND_MS = 330,
  PARTS = 4,            // rounds until everything was verified once
  SILENCE_POLLS = 600,  // of 100 ms each: not a clock, which may jump
  COPY_ON_WRITE_BYTES = 4 << 20,
  SPARSE_PAGES = 256,
};

// What goes over a control socket: the round to do, then what came of it.
struct report {
  uint64_t round;
  char verdict[VERDICT_LENGTH];
};

enum { TO_CHILD_UNIX, TO_CHILD_TCP, TO_CHILD_PIPE, FROM_CHILD_UNIX, FROM_CHILD_TCP, LINKS };

static struct child {
  pid_t pid;
  int control;
  struct link links[LINKS];
} children[CHILDREN_MAX];
static int child_count;

static struct region copy_on_write;
static struct region regions[8];
static int region_count;

// ---- a child --------------------------------------------------------------

static void child_round(struct child* self, struct region* own) {
  link_receive(&self->links[TO_CHILD_UNIX]);
  link_receive(&self->links[TO_CHILD_TCP]);
  link_receive(&self->links[TO_CHILD_PIPE]);
  link_send(&self->links[FROM_CHILD_UNIX]);
  link_send(&self->links[FROM_CHILD_TCP]);
  region_visit(&copy_on_write, PARTS);
  region_visit(own, PARTS);
}

static void child_main(struct child* self, int index, size_t own_bytes, bool busy) {
  struct region own;
  struct pollfd order = {.fd = self->control, .events = POLLIN};
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  region_take_odd_chunks(&copy_on_write, 1000 + (uint32_t)index);
  region_anonymous(&own, "child anonymous", own_bytes, MADV_NOHUGEPAGE);
  for (;;) {
    if (poll(&order, 1, busy ? 0 : -1) <= 0) {
      if (busy) motion_step();
      continue;
    }
    struct report report = {0};
    if (!read_exactly(self->control, &report, sizeof report)) _exit(0);
    child_round(self, &own);
    memcpy(report.verdict, verdict, sizeof verdict);
    write_exactly(self->control, &report, sizeof report);
  }
}

static void make_links(struct child* parent_end, struct child* child_end, int index) {
  static const char* const names[LINKS] = {"unix to child", "tcp to child", "pipe to child",
                                           "unix from child", "tcp from child"};
  static const size_t bytes[LINKS] = {8 << 10, 16 << 10, 16 << 10, 8 << 10, 16 << 10};
  int unix_fds[2], tcp_fds[2], pipe_fds[2];
  tcp_pair(tcp_fds);
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, unix_fds) || pipe2(pipe_fds, O_CLOEXEC))
    die("links");
  int fds[2][LINKS] = {
      {unix_fds[0], tcp_fds[0], pipe_fds[1], unix_fds[0], tcp_fds[0]},
      {unix_fds[1], tcp_fds[1], pipe_fds[0], unix_fds[1], tcp_fds[1]},
  };
  for (int i = 0; i < LINKS; i++) {
    uint64_t seed = mix64((uint64_t)(index * LINKS + i) + 0x11f0);
    parent_end->links[i] = (struct link){names[i], fds[0][i], bytes[i], seed, 0};
    child_end->links[i] = (struct link){names[i], fds[1][i], bytes[i], seed, 0};
  }
}

static void start_child(int index, size_t own_bytes, bool busy) {
  struct child *parent_end = &children[index], child_end;
  int control[2];
  make_links(parent_end, &child_end, index);
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, control)) die("control");
  parent_end->control = control[0];
  child_end.control = control[1];
  parent_end->pid = fork();
  if (parent_end->pid < 0) die("fork");
  if (parent_end->pid == 0) {
    close(control[0]);
    child_main(&child_end, index, own_bytes, busy);
  }
  close(control[1]);
  // The message that always lies in the kernel.
  for (int i = TO_CHILD_UNIX; i <= TO_CHILD_PIPE; i++) link_send(&parent_end->links[i]);
}

// ---- rounds ---------------------------------------------------------------

static void order_round(struct child* child, uint64_t round) {
  struct report order = {.round = round};
  for (int i = TO_CHILD_UNIX; i <= TO_CHILD_PIPE; i++) link_send(&child->links[i]);
  if (!write_exactly(child->control, &order, sizeof order)) fail("child %d takes no orders", (int)child->pid);
}

static void collect_round(struct child* child, uint64_t round) {
  struct pollfd answer = {.fd = child->control, .events = POLLIN};
  int polls = 0;
  while (poll(&answer, 1, 100) <= 0)
    if (++polls == SILENCE_POLLS) {
      fail("child %d is silent in round %llu", (int)child->pid, (unsigned long long)round);
      return;
    }
  struct report report;
  if (!read_exactly(child->control, &report, sizeof report)) {
    fail("child %d is gone", (int)child->pid);
    return;
  }
  if (report.round != round)
    fail("child %d round expected=%llu got=%llu", (int)child->pid, (unsigned long long)round,
         (unsigned long long)report.round);
  report.verdict[VERDICT_LENGTH - 1] = 0;
  if (report.verdict[0]) fail("%s", report.verdict);
  link_receive(&child->links[FROM_CHILD_UNIX]);
  link_receive(&child->links[FROM_CHILD_TCP]);
  kernel_view_check_child(child->pid);
}

static void verify_round(uint64_t round) {
  for (int i = 0; i < child_count; i++) order_round(&children[i], round);
  for (int i = 0; i < region_count; i++) region_visit(&regions[i], PARTS);
  kernel_view_visit();
  for (int i = 0; i < child_count; i++) collect_round(&children[i], round);
  int status;
  pid_t dead = waitpid(-1, &status, WNOHANG);
  if (dead > 0) fail("child %d died status=%#x", (int)dead, status);
  kernel_log_check();
}

static void report_round(uint64_t round) {
  if (verdict[0])
    say("selfcheck: FAIL %s (round %llu)", verdict, (unsigned long long)round);
  else
    say("selfcheck: round %llu ok total_kib=%ld free_kib=%ld procs=%d", (unsigned long long)round,
        meminfo_kib("MemTotal"), meminfo_kib("MemFree"), child_count);
}

// After a child failed there is nobody to talk to: repeat the verdict only.
static void run_rounds(void) {
  for (uint64_t round = 1;; round++) {
    uint64_t start = monotonic_ms();
    if (!verdict[0]) verify_round(round);
    report_round(round);
    uint64_t took = monotonic_ms() - start;
    if (took < ROUND_MS) sleep_ms((long)(ROUND_MS - took));
  }
}

// ---- setting up -----------------------------------------------------------

static void crashed(int signal, siginfo_t* info, void* context) {
  (void)context;
  for (;;) {
    say("selfcheck: FAIL pid=%d signal=%d address=%p", (int)getpid(), signal, info->si_addr);
    sleep_ms(ROUND_MS);
  }
}

static void catch_crashes(void) {
  static const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};
  struct sigaction action = {.sa_sigaction = crashed, .sa_flags = SA_SIGINFO};
  for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) sigaction(signals[i], &action, NULL);
  signal(SIGPIPE, SIG_IGN);
}

static void reserve_hugetlb(long pages) {
  char text[16];
  int length = snprintf(text, sizeof text, "%ld", pages);
  int fd = open("/proc/sys/vm/nr_hugepages", O_WRONLY | O_CLOEXEC);
  if (fd >= 0) {
    write_exactly(fd, text, (size_t)length);
    close(fd);
  }
}

static void hold_memory(size_t anon_bytes) {
  size_t mib = 1 << 20;
  size_t tmpfs = (size_t)parameter("tmpfs_mib", 32) * mib;
  size_t cache = (size_t)parameter("cache_mib", 16) * mib;
  long hugetlb_mib = parameter("hugetlb_mib", 4);
  region_anonymous(&regions[region_count++], "anonymous", anon_bytes / 2, MADV_NOHUGEPAGE);
  region_anonymous(&regions[region_count++], "huge anonymous", anon_bytes / 4, MADV_HUGEPAGE);
  region_sparse(&regions[region_count++], "sparse anonymous", SPARSE_PAGES);
  if (tmpfs) region_file(&regions[region_count++], "tmpfs file", "/tmp/held", tmpfs);
  if (cache) region_file(&regions[region_count++], "page cache", "/cache/held", cache);
  if (hugetlb_mib >= 2) {
    reserve_hugetlb(hugetlb_mib);  // pages of 2 MiB: twice what is held
    if (region_hugetlb(&regions[region_count], "hugetlb", (size_t)hugetlb_mib * mib)) region_count++;
  }
  regions[region_count++] = copy_on_write;
}

int main(void) {
  catch_crashes();
  loopback_up();
  long processors = sysconf(_SC_NPROCESSORS_ONLN);
  long total_kib = meminfo_kib("MemTotal");
  child_count = (int)parameter("procs", processors < 2 ? 2 : processors);
  if (child_count > CHILDREN_MAX) child_count = CHILDREN_MAX;
  size_t anon_bytes = (size_t)parameter("anon_mib", 64) << 20;
  bool busy = parameter("busy", 0);
  regions_still = parameter("still", 0);

  churn(parameter("churn_mib", total_kib / 2048), (int)processors);

  // The children come before the memory that is not theirs, or they would keep
  // old copies of all of it.
  region_anonymous(&copy_on_write, "copy-on-write", COPY_ON_WRITE_BYTES, MADV_NOHUGEPAGE);
  copy_on_write.rewritten = false;
  for (int i = 0; i < child_count; i++) start_child(i, anon_bytes / 4 / (size_t)child_count, busy);
  hold_memory(anon_bytes);
  kernel_view_set_up();

  long free_kib = meminfo_kib("MemFree");
  say("selfcheck: ready total_kib=%ld free_kib=%ld used_kib=%ld procs=%d", total_kib, free_kib,
      total_kib - free_kib, child_count);
  run_rounds();
}
