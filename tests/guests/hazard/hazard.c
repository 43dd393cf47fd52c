// SPDX-License-Identifier: Apache-2.0
// What tests want a guest to do to itself, or to do beside selfcheck. Runs beside selfcheck, as root.
//
//   hazard kexec KERNEL INITRAMFS COMMAND_LINE    into another kernel, at once
//   hazard crash-kernel KERNEL INITRAMFS COMMAND_LINE    loaded for the case of a panic
//   hazard forge COUNT same|twin    memory full of copies of the kernel's VMCOREINFO, or of one that
//                                   tells of other page structures
//   hazard huge-pages COUNT BYTE    a pool of that many, all written full of the byte and free again
//   hazard spin                     in user mode, for ever
//   hazard counter MIB              writes a growing number to pages all over so much memory, in turn, and
//                                   finds in each what it last wrote there
//   hazard dirty MIB RATE           writes so many MiB over and over, RATE MiB a second
//   hazard speed MIB RATE           computes, and writes to pages all over so much memory, RATE MiB of them a
//                                   second where nothing slows it down (0: nothing but writing); tells each
//                                   second how many pages that were
//   hazard disk                     reads /dev/vda directly into many places of memory, all the time, and
//   finds in
//                                   each what was last read there; the disk holds at each 8 bytes their
//                                   offset
//   hazard compile                  short processes that use memory and files; tells each second how many
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kexec.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, NOTE_HEADER = 24 };

__attribute__((noreturn)) static void die(const char* what) {
  printf("hazard: %s: %s\n", what, strerror(errno));
  exit(1);
}

static void load(char** arguments, unsigned long flags) {
  int kernel = open(arguments[0], O_RDONLY), initramfs = open(arguments[1], O_RDONLY);
  if (kernel < 0 || initramfs < 0) die("cannot open the next kernel");
  if (syscall(SYS_kexec_file_load, kernel, initramfs, strlen(arguments[2]) + 1, arguments[2], flags))
    die("kexec_file_load");
  printf("hazard: loaded %s\n", arguments[0]);
}

// /proc/kcore carries VMCOREINFO as a note (fs/proc/kcore.c). The notes are walked, for the one before it holds
// this process's task_struct with its vector registers, in which any text may stand.
static size_t read_vmcoreinfo(char text[PAGE]) {
  static char head[1 << 20];
  int kcore = open("/proc/kcore", O_RDONLY);
  ssize_t got = kcore < 0 ? -1 : pread(kcore, head, sizeof head, 0);
  if (got < (ssize_t)sizeof(Elf64_Ehdr)) die("/proc/kcore");
  const Elf64_Ehdr* elf = (const Elf64_Ehdr*)head;
  const Elf64_Phdr* segment = (const Elf64_Phdr*)(head + elf->e_phoff);
  if (segment->p_type != PT_NOTE || segment->p_offset + segment->p_filesz > (size_t)got) die("notes of /proc/kcore");
  const char *note = head + segment->p_offset, *end = note + segment->p_filesz;
  while (note + sizeof(Elf64_Nhdr) < end) {
    const Elf64_Nhdr* header = (const Elf64_Nhdr*)note;
    const char* name = note + sizeof *header;
    const char* content = name + (header->n_namesz + 3) / 4 * 4;
    if (!strcmp(name, "VMCOREINFO")) {
      size_t length = header->n_descsz < PAGE ? header->n_descsz : PAGE - 1;
      memcpy(text, content, length);
      return length;
    }
    note = content + (header->n_descsz + 3) / 4 * 4;
  }
  die("no VMCOREINFO in /proc/kcore");
}

// The first digit of the address of the page structures' root becomes another one.
static void change(char text[PAGE]) {
  char* value = strstr(text, "SYMBOL(mem_section)=");
  if (!value) die("VMCOREINFO tells of no mem_section");
  value += strlen("SYMBOL(mem_section)=") + 14;
  *value = *value == '8' ? '0' : '8';
}

static void forge(long count, bool twin) {
  static char text[PAGE];
  size_t length = read_vmcoreinfo(text);
  if (twin) change(text);
  char* memory = mmap(NULL, (size_t)count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) die("memory");
  for (long i = 0; i < count; i++) {
    char* page = memory + i * PAGE;
    if (i % 2 == 0 || length + NOTE_HEADER >= PAGE) {
      memcpy(page, text, length);
      continue;
    }
    Elf64_Nhdr header = {.n_namesz = sizeof "VMCOREINFO", .n_descsz = (Elf64_Word)length};
    memcpy(page, &header, sizeof header);
    memcpy(page + sizeof header, "VMCOREINFO", sizeof "VMCOREINFO");
    memcpy(page + NOTE_HEADER, text, length);
  }
  printf("hazard: forged %ld pages\n", count);
  pause();
}

static void fill_huge_pages(long count, int byte) {
  enum { HUGE_PAGE = 2 << 20 };
  FILE* pool = fopen("/proc/sys/vm/nr_hugepages", "w");
  if (!pool || fprintf(pool, "%ld", count) < 0 || fclose(pool)) die("nr_hugepages");
  size_t bytes = (size_t)count * HUGE_PAGE;
  char* memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
  if (memory == MAP_FAILED) die("huge pages");
  memset(memory, byte, bytes);
  munmap(memory, bytes);
}

static char* map_memory(long mib) {
  char* memory = mmap(NULL, (size_t)mib << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) die("memory");
  return memory;
}

// All that it knows is in two places, the memory and its registers: a copy in which one page is of another
// instant than the rest holds a number that is not the last one.
static void count_for_ever(long mib) {
  enum { PLACES = 64 };
  char* memory = map_memory(mib);
  size_t step = ((size_t)mib << 20) / PLACES;
  printf("hazard: counting\n");
  for (uint64_t number = 1;; number++) {
    for (size_t i = 0; i < PLACES; i++) {
      volatile uint64_t* place = (volatile uint64_t*)(memory + i * step + i * PAGE % step);
      if (*place != number - 1) {
        printf("selfcheck: FAIL counter: place %zu holds %lu, not %lu\n", i, *place, number - 1);
        exit(1);
      }
      *place = number;
    }
    if (number % (1 << 20) == 0) printf("hazard: counted to %lu\n", number);
  }
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void dirty_for_ever(long mib, long rate) {
  char* memory = map_memory(mib);
  double begun = now();
  for (unsigned long written = 0;; written++) {
    char* block = memory + written % (unsigned long)mib * (1 << 20);
    memset(block, (int)written, 1 << 20);
    // No page is one byte over and over, and none what it was.
    for (size_t at = 0; at < 1 << 20; at += PAGE) *(uint64_t*)(block + at) = (written + 1) * 6364136223846793005u;
    if (written == (unsigned long)mib) printf("hazard: dirtying\n");
    double ahead = begun + (double)written / (double)rate - now();
    if (ahead > 0) usleep((useconds_t)(ahead * 1e6));
  }
}

// What takes up the time between two pages.
static uint64_t compute(unsigned long steps) {
  uint64_t value = steps;
  for (unsigned long i = 0; i < steps; i++) value = value * 6364136223846793005u + 1442695040888963407u;
  return value;
}

static volatile uint64_t sink;  // so that the work is done

static void tell_speed(unsigned long done) {
  static double last;
  static unsigned long before;
  double time = now();
  if (last == 0) {
    last = time;
  } else if (time - last >= 1) {
    printf("hazard: speed %.0f\n", (double)(done - before) / (time - last));
    last = time;
    before = done;
  }
}

static void work_for_ever(long mib, long rate) {
  char* memory = map_memory(mib);
  unsigned long pages = (unsigned long)mib << 8;
  for (unsigned long i = 0; i < pages; i++) memory[i * PAGE] = 1;
  unsigned long steps = 0;
  if (rate > 0) {
    enum { TRIAL = 20000000 };
    // By its own time: others are at work while the guest starts.
    clock_t begun = clock();
    sink = compute(TRIAL);
    double seconds = (double)(clock() - begun) / CLOCKS_PER_SEC;
    steps = (unsigned long)(TRIAL / seconds / (double)(rate << 8));
  }
  uint64_t place = 1;
  for (unsigned long done = 0;; done++) {
    sink = compute(steps);
    place = place * 6364136223846793005u + 1442695040888963407u;
    uint64_t* page = (uint64_t*)(memory + (place >> 33) % pages * PAGE);
    for (unsigned i = 0; i < PAGE / sizeof *page; i++) page[i] = place + i;
    if (done % 64 == 0) tell_speed(done);
  }
}

// Nothing but the disk writes to the places, and nothing but this program reads them. Many at a time, so that
// each read is under way for long.
static void read_disk_for_ever(void) {
  enum { READERS = 24, PLACES = 4, BYTES = 1 << 20, WORDS = BYTES / 8 };
  for (int reader = 1; reader < READERS && fork() > 0; reader++) {
  }
  int disk = open("/dev/vda", O_RDONLY | O_DIRECT);
  off_t size = disk < 0 ? -1 : lseek(disk, 0, SEEK_END);
  if (size < BYTES) die("disk");
  char* memory = map_memory(PLACES);
  off_t read_from[PLACES];
  uint64_t dice = (uint64_t)getpid();
  for (unsigned long turn = 0;; turn++) {
    unsigned place = turn % PLACES;
    dice = dice * 6364136223846793005u + 1442695040888963407u;
    read_from[place] = (off_t)((dice >> 33) % (unsigned long)(size / BYTES)) * BYTES;
    if (pread(disk, memory + (size_t)place * BYTES, BYTES, read_from[place]) != BYTES) die("read");
    if (turn < PLACES) continue;
    if (turn == PLACES) printf("hazard: reading\n");
    // Two words of each page of each place: all of them would take too long.
    for (unsigned i = 0; i < PLACES; i++) {
      const uint64_t* words = (const uint64_t*)(memory + (size_t)i * BYTES);
      for (unsigned word = turn % 256; word < WORDS; word += 256) {
        uint64_t expected = (uint64_t)read_from[i] + word * 8;
        if (words[word] == expected) continue;
        printf("selfcheck: FAIL disk: place %u word %u holds %lx, not %lx\n", i, word, words[word], expected);
        exit(1);
      }
    }
  }
}

static void compile_for_ever(void) {
  enum { BYTES = 2 << 20, OUTPUT = 64 << 10 };
  for (unsigned long done = 0;; done++) {
    pid_t child = fork();
    if (child == 0) {
      char* heap = map_memory(BYTES >> 20);
      for (size_t i = 0; i < BYTES; i += 64) heap[i] = (char)compute(8);
      int output = open("/tmp/object", O_RDWR | O_CREAT | O_TRUNC, 0600);
      if (output < 0 || write(output, heap, OUTPUT) != OUTPUT) die("object");
      _exit(0);
    }
    if (child < 0 || waitpid(child, NULL, 0) != child) die("fork");
    tell_speed(done);
  }
}

int main(int count, char** arguments) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  const char* what = count > 1 ? arguments[1] : "";
  if (!strcmp(what, "kexec") && count == 5) {
    load(arguments + 2, 0);
    reboot(RB_KEXEC);
    die("reboot");
  }
  if (!strcmp(what, "crash-kernel") && count == 5) {
    load(arguments + 2, KEXEC_FILE_ON_CRASH);
    return 0;
  }
  if (!strcmp(what, "forge") && count == 4) forge(atol(arguments[2]), !strcmp(arguments[3], "twin"));
  if (!strcmp(what, "huge-pages") && count == 4) {
    fill_huge_pages(atol(arguments[2]), (int)strtol(arguments[3], NULL, 0));
    return 0;
  }
  if (!strcmp(what, "counter") && count == 3) count_for_ever(atol(arguments[2]));
  if (!strcmp(what, "dirty") && count == 4) dirty_for_ever(atol(arguments[2]), atol(arguments[3]));
  if (!strcmp(what, "speed") && count == 4) work_for_ever(atol(arguments[2]), atol(arguments[3]));
  if (!strcmp(what, "disk")) read_disk_for_ever();
  if (!strcmp(what, "compile")) compile_for_ever();
  if (!strcmp(what, "spin"))
    for (;;) __asm__ volatile("");
  printf("hazard: what is %s?\n", what);
  return 2;
}
