// SPDX-License-Identifier: Apache-2.0
// A writer of the kind that databases are: what it has been told is on a disk is on the disk, and it remembers
// all of it in memory. A guest whose disks are not of the same instant as its memory says so on its console.
//
//   ledger FOLDER...     one folder on each disk
//
// Record N goes to disk N mod the number of disks, and N + 1 is begun only when N is durable: so the disks must
// be of one instant among each other too. In the first folder there is a database of SQLite's as well. Every
// round writes RECORDS records and a row, then forgets what the kernel has cached and reads all of it again,
// past the cache: all that was acknowledged must be there, and nothing else.
//
// Console:
//   ledger: ready
//   ledger: round N ok records=N rows=N
//   ledger: FAIL WHAT     for ever
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sqlite3.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
  RECORD_BYTES = 4096,  // as O_DIRECT wants it
  SLOTS = 512,          // in each file; the oldest record gives way
  RECORDS = 12,         // in a round
  DISKS_MAX = 8,
};

static int disks;
static int files[DISKS_MAX];  // opened with O_DIRECT
static uint64_t records;      // acknowledged by all that was asked
static uint64_t seed;
static sqlite3* database;
static uint64_t rows, row_sum;

static void fail(const char* what, uint64_t where) {
  for (;;) {
    printf("ledger: FAIL %s at %" PRIu64 " records=%" PRIu64 " rows=%" PRIu64 " errno=%s\n", what, where, records,
           rows, strerror(errno));
    fflush(stdout);
    sleep(1);
  }
}

static uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// Slots that were never written hold zeros.
static void make_record(uint64_t number, uint64_t* words) {
  for (int i = 0; i < RECORD_BYTES / 8; ++i) words[i] = mix(seed ^ (number * 1024 + (uint64_t)i));
  words[0] = number;
}

static off_t place_of(uint64_t number) { return (off_t)((number / (uint64_t)disks) % SLOTS) * RECORD_BYTES; }

static uint64_t* aligned(void) {
  void* memory = NULL;
  if (posix_memalign(&memory, RECORD_BYTES, RECORD_BYTES) != 0) fail("memory", 0);
  memset(memory, 0, RECORD_BYTES);
  return memory;
}

static void open_disk(int disk, const char* folder, uint64_t* words) {
  char path[256];
  snprintf(path, sizeof path, "%s/ledger", folder);
  files[disk] = open(path, O_RDWR | O_CREAT | O_DIRECT, 0600);
  if (files[disk] < 0) fail("open", (uint64_t)disk);
  memset(words, 0, RECORD_BYTES);
  for (int slot = 0; slot < SLOTS; ++slot) {
    if (pwrite(files[disk], words, RECORD_BYTES, (off_t)slot * RECORD_BYTES) != RECORD_BYTES) fail("fill", (uint64_t)slot);
  }
  if (fsync(files[disk]) != 0) fail("fsync", (uint64_t)disk);
}

static void write_record(uint64_t* words) {
  const uint64_t number = records + 1;
  const int disk = (int)(number % (uint64_t)disks);
  make_record(number, words);
  if (pwrite(files[disk], words, RECORD_BYTES, place_of(number)) != RECORD_BYTES) fail("write", number);
  if (fsync(files[disk]) != 0) fail("fsync", number);
  records = number;
}

static void verify_records(uint64_t* words, uint64_t* wanted) {
  for (int disk = 0; disk < disks; ++disk) {
    for (uint64_t slot = 0; slot < SLOTS; ++slot) {
      // The newest record of this disk that belongs into this slot.
      uint64_t number = 0;
      const uint64_t cycle = (uint64_t)SLOTS * (uint64_t)disks;
      for (uint64_t n = slot * (uint64_t)disks; n < (slot + 1) * (uint64_t)disks; ++n) {
        if ((int)(n % (uint64_t)disks) != disk || n > records) continue;
        number = n + (records - n) / cycle * cycle;
      }
      if (pread(files[disk], words, RECORD_BYTES, (off_t)slot * RECORD_BYTES) != RECORD_BYTES) fail("read", slot);
      if (number == 0) {
        memset(wanted, 0, RECORD_BYTES);
      } else {
        make_record(number, wanted);
      }
      if (memcmp(words, wanted, RECORD_BYTES) != 0) {
        printf("ledger: disk %d slot %" PRIu64 " wanted=%" PRIu64 " got=%" PRIu64 "\n", disk, slot, wanted[0], words[0]);
        fail("record", number);
      }
    }
  }
}

static void run(const char* sql) {
  if (sqlite3_exec(database, sql, NULL, NULL, NULL) != SQLITE_OK) {
    printf("ledger: %s: %s\n", sql, sqlite3_errmsg(database));
    fail("sqlite", rows);
  }
}

static int64_t number_from(const char* sql) {
  sqlite3_stmt* statement = NULL;
  int64_t value = -1;
  if (sqlite3_prepare_v2(database, sql, -1, &statement, NULL) == SQLITE_OK && sqlite3_step(statement) == SQLITE_ROW)
    value = sqlite3_column_int64(statement, 0);
  sqlite3_finalize(statement);
  return value;
}

static void write_row(void) {
  char sql[512];
  const uint64_t value = mix(seed + rows) >> 32;
  snprintf(sql, sizeof sql, "INSERT INTO t VALUES (%" PRIu64 ", %" PRIu64 ", hex(randomblob(300)))", rows + 1, value);
  run(sql);
  ++rows;
  row_sum += value;
  if (rows % 7 == 0) {
    snprintf(sql, sizeof sql, "UPDATE t SET note = hex(randomblob(500)) WHERE id %% 5 = %" PRIu64, rows % 5);
    run(sql);
  }
}

static int is_ok(void* ok, int columns, char** values, char** names) {
  (void)names;
  *(bool*)ok = columns == 1 && values[0] != NULL && strcmp(values[0], "ok") == 0;
  return 0;
}

static void verify_rows(void) {
  bool ok = false;
  if (sqlite3_exec(database, "PRAGMA integrity_check", is_ok, &ok, NULL) != SQLITE_OK || !ok) fail("integrity", rows);
  if (number_from("SELECT count(*) FROM t") != (int64_t)rows) fail("rows", rows);
  if (number_from("SELECT coalesce(sum(value), 0) FROM t") != (int64_t)row_sum) fail("sum", rows);
}

static void drop_caches(void) {
  const int file = open("/proc/sys/vm/drop_caches", O_WRONLY | O_CLOEXEC);
  if (file < 0 || write(file, "3", 1) != 1) fail("drop_caches", 0);
  close(file);
}

int main(int argc, char** argv) {
  disks = argc - 1;
  if (disks < 1 || disks > DISKS_MAX) fail("arguments", (uint64_t)disks);
  seed = mix((uint64_t)getpid() ^ (uint64_t)disks);
  uint64_t* const words = aligned();
  uint64_t* const wanted = aligned();
  for (int disk = 0; disk < disks; ++disk) open_disk(disk, argv[disk + 1], words);
  char path[256];
  snprintf(path, sizeof path, "%s/rows.db", argv[1]);
  if (sqlite3_open(path, &database) != SQLITE_OK) fail("open database", 0);
  // Each row is durable when it is acknowledged, and nothing is read from SQLite's own cache.
  // EXTRA: with FULL a journal whose removal did not last takes the last row back when the machine has died
  // (sqlite.org/pragma.html#pragma_synchronous).
  run("PRAGMA synchronous = EXTRA; PRAGMA cache_size = 0; PRAGMA mmap_size = 0");
  run("CREATE TABLE t (id INTEGER PRIMARY KEY, value INTEGER, note TEXT)");
  printf("ledger: ready\n");
  fflush(stdout);
  for (uint64_t round = 1;; ++round) {
    for (int i = 0; i < RECORDS; ++i) write_record(words);
    write_row();
    drop_caches();
    verify_records(words, wanted);
    verify_rows();
    printf("ledger: round %" PRIu64 " ok records=%" PRIu64 " rows=%" PRIu64 "\n", round, records, rows);
    fflush(stdout);
  }
}
