// SPDX-License-Identifier: Apache-2.0
#include "unit/capture/writing_guest.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <random>
#include <string>
#include <thread>

#include <fmt/format.h>

namespace vmsieve::test {

namespace {

using namespace std::chrono_literals;

constexpr u64 kAlignment = 2 * kMiB;

bool eventually(std::chrono::milliseconds patience, const std::function<bool()>& condition) {
  const auto deadline = std::chrono::steady_clock::now() + patience;
  while (!condition()) {
    if (std::chrono::steady_clock::now() >= deadline) return false;
    std::this_thread::sleep_for(100us);
  }
  return true;
}

std::byte* must_map(void* at, u64 bytes, int protection, int flags, int fd = -1) {
  void* const mapped = ::mmap(at, bytes, protection, flags, fd, 0);
  if (mapped == MAP_FAILED) std::abort();
  return static_cast<std::byte*>(mapped);
}

Result<UniqueFd> file_on_disk() {
  char path[] = "/var/tmp/vmsieve-guest-XXXXXX";
  UniqueFd file{::mkostemp(path, O_CLOEXEC)};
  if (!file.valid()) return Error(ErrorKind::kIo, "no file");
  ::unlink(path);
  return file;
}

}  // namespace

// Everything is mapped before the fork, so that both know the addresses.
WritingGuest::WritingGuest(const Options& options) : options_(options) {
  first_page_.push_back(0);
  for (const BlockSpec& spec : options_.blocks) {
    arena_bytes_ += round_up(spec.pages * kPageSize, kAlignment) + 2 * kAlignment;
    first_page_.push_back(first_page_.back() + spec.pages);
  }
  arena_ = must_map(nullptr, arena_bytes_ + kAlignment, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS);
  u64 end = round_down(reinterpret_cast<u64>(arena_) + arena_bytes_ + kAlignment, kAlignment);
  for (const BlockSpec& spec : options_.blocks) {
    end -= round_up(spec.pages * kPageSize, kAlignment) + 2 * kAlignment;
    const u64 start = end + spec.pages_off_unit * kPageSize;
    if (spec.pages == 0) {
      blocks_.push_back(nullptr);
      files_.emplace_back();
      continue;
    }
    UniqueFd file;
    if (spec.shared || spec.on_disk) {
      auto made = spec.on_disk ? file_on_disk() : make_memfd("guest");
      if (!made || ::ftruncate(made->get(), static_cast<off_t>(spec.pages * kPageSize)) != 0) std::abort();
      file = std::move(*made);
    }
    const int flags =
        MAP_FIXED | (spec.shared ? MAP_SHARED : MAP_PRIVATE) | (file.valid() ? 0 : MAP_ANONYMOUS);
    blocks_.push_back(must_map(reinterpret_cast<void*>(start), spec.pages * kPageSize, PROT_READ | PROT_WRITE,
                               flags, file.get()));
    if (spec.huge) ::madvise(blocks_.back(), spec.pages * kPageSize, MADV_HUGEPAGE);
    files_.push_back(std::move(file));
  }
  mirror_ = must_map(nullptr, total_pages() * kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
  board_ = new (must_map(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS)) Board;
  static_assert(sizeof(Board) <= kPageSize);
  if (options_.writers > kMaxWriters) std::abort();
  pid_ = ::fork();
  if (pid_ < 0) std::abort();
  if (pid_ == 0) live();
  if (!eventually(10s, [&] { return board_->ready != 0; })) std::abort();
}

WritingGuest::~WritingGuest() {
  kill();
  ::munmap(arena_, arena_bytes_ + kAlignment);
  ::munmap(mirror_, total_pages() * kPageSize);
  ::munmap(board_, kPageSize);
}

void WritingGuest::kill() {
  if (pid_ <= 0) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

RamLayout WritingGuest::layout() const {
  RamLayout layout;
  for (u32 i = 0; i < blocks_.size(); ++i) {
    const u64 bytes = pages(i) * kPageSize;
    layout.blocks.push_back({.name = fmt::format("block{}", i),
                             .used_bytes = bytes - options_.blocks[i].bytes_less,
                             .max_bytes = bytes,
                             .host_page_bytes = options_.blocks[i].host_page_bytes,
                             .host = HostVirtual{reinterpret_cast<u64>(blocks_[i])},
                             .guest_ram = i == 0});
    const u64 mapped = round_down(bytes - options_.blocks[i].bytes_less, kPageSize);
    if (mapped > 0) layout.mappings.push_back({GuestPhysical{i * kGiB}, mapped, i, 0});
  }
  return layout;
}

bool WritingGuest::stop() {
  board_->stopped = true;
  return eventually(5s, [&] {
    for (unsigned i = 0; i < options_.writers; ++i) {
      if (!board_->paused[i]) return false;
    }
    return true;
  });
}

void WritingGuest::resume() { board_->stopped = false; }

std::vector<std::byte> WritingGuest::truth() const { return {mirror_, mirror_ + total_pages() * kPageSize}; }

std::span<const std::byte> WritingGuest::truth_of(const std::vector<std::byte>& truth, u32 block,
                                                  u64 page) const {
  return std::span(truth).subspan((first_page_[block] + page) * kPageSize, kPageSize);
}

void WritingGuest::begin(Order order, u64 first, u64 pages) {
  board_->first = first;
  board_->pages = pages;
  board_->order = order;
}

bool WritingGuest::is_done(int milliseconds) const {
  return eventually(std::chrono::milliseconds(milliseconds), [&] { return board_->order == Order::kNone; });
}

bool WritingGuest::goes_on() const {
  u64 before[kMaxWriters];
  for (unsigned i = 0; i < options_.writers; ++i) before[i] = board_->writes[i];
  return eventually(5s, [&] {
    for (unsigned i = 0; i < options_.writers; ++i) {
      if (board_->writes[i] < before[i] + 200) return false;
    }
    return true;
  });
}

std::string WritingGuest::describe(std::span<const std::byte> page) {
  u64 words[3];
  std::memcpy(words, page.data(), sizeof words);
  return fmt::format("page {} generation {} key {:#x}", words[0], words[1], words[2]);
}

// ---- in the process ----

std::byte* WritingGuest::page_at(u64 global_page) const {
  std::size_t block = 0;
  while (global_page >= first_page_[block + 1]) ++block;
  return blocks_[block] + (global_page - first_page_[block]) * kPageSize;
}

/// Number, generation and a key that every further word depends on: a page that is torn between two
/// generations equals none. Every seventh generation is a page of one byte, every eleventh is zeros.
void WritingGuest::write_page(u64 global_page, u64 generation) {
  alignas(64) u64 words[kPageSize / sizeof(u64)];
  if (generation % 11 == 0) {
    std::memset(words, 0, sizeof words);
  } else if (generation % 7 == 0) {
    std::memset(words, static_cast<int>(generation % 255 + 1), sizeof words);
  } else {
    words[0] = global_page;
    words[1] = generation;
    const u64 key = (global_page * 0x9e3779b97f4a7c15) ^ (generation * 0xbf58476d1ce4e5b9);
    for (u64 i = 2; i < std::size(words); ++i) words[i] = key * i;
  }
  std::memcpy(page_at(global_page), words, sizeof words);
  std::memcpy(mirror_ + global_page * kPageSize, words, sizeof words);
}

void WritingGuest::write_for_ever(unsigned number) {
  std::mt19937_64 random(options_.seed * 1000 + number);
  const u64 reserved_from = pages(0) - options_.reserved_pages;
  for (u64 generation = 1;; ++generation) {
    while (board_->stopped) {
      board_->paused[number] = true;
      ::usleep(50);
    }
    board_->paused[number] = false;
    // Between the look and the word that it runs it may have been stopped.
    if (board_->stopped) continue;
    // Mostly pages that were written before, so that some never are. Each writer has its own pages.
    const u64 where = random();
    u64 page = (where >> 8) % total_pages();
    if (where % 32 != 0) page = page / 8 * 8;
    page = page / options_.writers * options_.writers + number;
    if (page >= total_pages() || (page >= reserved_from && page < pages(0))) continue;
    write_page(page, generation);
    ++board_->writes[number];
    if (generation % options_.writes_at_once == 0) ::usleep(100);
  }
}

void WritingGuest::obey() {
  const Order order = board_->order;
  if (order == Order::kNone) return;
  const u64 first = board_->first;
  const u64 count = board_->pages;
  static u64 generation = u64{1} << 40;
  switch (order) {
    case Order::kNone: break;
    case Order::kWrite:
      for (u64 page = first; page < first + count; ++page) write_page(page, ++generation);
      break;
    case Order::kRead:
      for (u64 page = first; page < first + count; ++page)
        (void)*static_cast<const volatile std::byte*>(page_at(page));
      break;
    case Order::kDiscard:
      if (options_.blocks[0].shared) {
        if (::fallocate(files_[0].get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                        static_cast<off_t>(first * kPageSize), static_cast<off_t>(count * kPageSize)) != 0)
          ::_exit(1);
      } else if (::madvise(page_at(first), count * kPageSize, MADV_DONTNEED) != 0) {
        ::_exit(1);
      }
      std::memset(mirror_ + first * kPageSize, 0, count * kPageSize);
      break;
  }
  board_->order = Order::kNone;
}

void WritingGuest::live() {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  std::mt19937_64 random(options_.seed);
  const u64 reserved_from = pages(0) - options_.reserved_pages;
  for (u64 page = 0; page < total_pages(); ++page) {
    if ((page < reserved_from || page >= pages(0)) && random() % 3 == 0) write_page(page, 1 + random() % 100);
  }
  std::vector<std::thread> writers;
  for (unsigned i = 0; i < options_.writers; ++i) writers.emplace_back([this, i] { write_for_ever(i); });
  board_->ready = 1;
  for (;;) {
    obey();
    ::usleep(50);
  }
}

}  // namespace vmsieve::test
