// SPDX-License-Identifier: Apache-2.0
#include "unit/qemu/noted_memory.h"

#include <fcntl.h>
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>
#include <chrono>
#include <cstdlib>
#include <new>
#include <thread>
#include <vector>

#include "vmsieve/qemu/remote_userfaultfd.h"

namespace vmsieve::test {

namespace {

using namespace std::chrono_literals;
using Act = NotedMemory::Act;

constexpr u64 kHugeBytes = NotedMemory::kHugePages * kPageSize;
constexpr const char* kPoolSetting = "/proc/sys/vm/nr_hugepages";
constexpr const char* kPoolFree = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
constexpr int kCollapse = 25;  // MADV_COLLAPSE (Linux 6.1); older systems' headers lack it

u64 number_in(const char* path) {
  const auto text = read_text_file(path, 64);
  return text ? std::strtoull(text->c_str(), nullptr, 10) : 0;
}

void set_pool(u64 pages) {
  const std::string text = std::to_string(pages);
  if (auto file = open_file(kPoolSetting, O_WRONLY))
    (void)write_all(file->get(), std::as_bytes(std::span{text}), kPoolSetting).ok();
}

UniqueFd file_on_disk() {
  char path[] = "/var/tmp/vmsieve-noted-XXXXXX";
  UniqueFd file{::mkostemp(path, O_CLOEXEC)};
  if (file.valid()) ::unlink(path);
  return file;
}

}  // namespace

std::string to_string(MemoryKind kind) {
  switch (kind) {
    case MemoryKind::kPrivate: return "private";
    case MemoryKind::kHuge: return "huge";
    case MemoryKind::kShared: return "shared";
    case MemoryKind::kHugeTable: return "hugetlb";
    case MemoryKind::kFileShared: return "file_shared";
    case MemoryKind::kFilePrivate: return "file_private";
  }
  return "unknown";
}

NotedMemory::NotedMemory(MemoryKind kind) {
  map(kind);
  void* const board = ::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (board == MAP_FAILED) std::abort();
  board_ = new (board) Board;
  if (!made()) return;
  victim_.emplace([this](VictimBoard&) { live(); });
}

NotedMemory::~NotedMemory() {
  victim_.reset();
  ::munmap(board_, kPageSize);
  if (reserved_ != nullptr) ::munmap(reserved_, kBytes + kHugeBytes);
  file_.reset();
  if (borrowed_ != 0) give_back();
}

// By how much, not how many there were: others may borrow some meanwhile.
void NotedMemory::borrow(u64 huge_pages) {
  const u64 before = number_in(kPoolSetting);
  set_pool(before + huge_pages);
  const u64 after = number_in(kPoolSetting);
  borrowed_ = after > before ? after - before : 0;
}

void NotedMemory::give_back() {
  const u64 now = number_in(kPoolSetting);
  set_pool(now > borrowed_ ? now - borrowed_ : 0);
}

void NotedMemory::map(MemoryKind kind) {
  int flags = MAP_FIXED;
  switch (kind) {
    case MemoryKind::kPrivate:
    case MemoryKind::kHuge: flags |= MAP_PRIVATE | MAP_ANONYMOUS; break;
    case MemoryKind::kShared:
      file_ = UniqueFd{::memfd_create("noted", MFD_CLOEXEC)};
      flags |= MAP_SHARED;
      break;
    case MemoryKind::kHugeTable:
      borrow(kBytes / kHugeBytes);
      if (number_in(kPoolFree) < kBytes / kHugeBytes) return;
      file_ = UniqueFd{::memfd_create("noted", MFD_CLOEXEC | MFD_HUGETLB)};
      flags |= MAP_SHARED;
      break;
    case MemoryKind::kFileShared:
      file_ = file_on_disk();
      flags |= MAP_SHARED;
      break;
    case MemoryKind::kFilePrivate:
      file_ = file_on_disk();
      flags |= MAP_PRIVATE;
      break;
  }
  const bool anonymous = (flags & MAP_ANONYMOUS) != 0;
  if (!anonymous && (!file_.valid() || ::ftruncate(file_.get(), kBytes) != 0)) return;
  reserved_ = ::mmap(nullptr, kBytes + kHugeBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (reserved_ == MAP_FAILED) std::abort();
  const u64 start = round_up(reinterpret_cast<u64>(reserved_), kHugeBytes);
  void* const mapped =
      ::mmap(reinterpret_cast<void*>(start), kBytes, PROT_READ | PROT_WRITE, flags, file_.get(), 0);
  if (mapped == MAP_FAILED) return;
  start_ = static_cast<std::byte*>(mapped);
  if (anonymous) ::madvise(start_, kBytes, kind == MemoryKind::kHuge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
}

bool NotedMemory::does_each(Act act, u64 first, u64 pages, u64 step) {
  board_->first = first;
  board_->pages = pages;
  board_->step = step;
  board_->failed = false;
  if (act == Act::kWrite) ++board_->word;
  board_->act = act;
  const auto deadline = std::chrono::steady_clock::now() + 5s;
  while (board_->act != Act::kNone) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(20us);
  }
  return !board_->failed;
}

u64 NotedMemory::word(u64 page) const {
  u64 value = ~u64{0};
  const iovec local{&value, sizeof value};
  const iovec remote{reinterpret_cast<void*>(address(page)), sizeof value};
  EXPECT_EQ(::process_vm_readv(pid(), &local, 1, &remote, 1, 0), static_cast<ssize_t>(sizeof value));
  return value;
}

// ---- in the process ----

void NotedMemory::live() {
  for (;;) {
    const Act act = board_->act;
    if (act == Act::kNone) {
      ::usleep(20);
      continue;
    }
    const u64 offset = board_->first * kPageSize;
    if (!obey(act, start_ + offset, offset, board_->pages * kPageSize)) board_->failed = true;
    board_->act = Act::kNone;
  }
}

bool NotedMemory::obey(Act act, std::byte* at, u64 offset, u64 bytes) {
  switch (act) {
    case Act::kNone: return true;
    case Act::kWrite:
      for (u64 i = 0; i < bytes; i += kPageSize * board_->step)
        *reinterpret_cast<volatile u64*>(at + i) = board_->word;
      return true;
    case Act::kRead:
      for (u64 i = 0; i < bytes; i += kPageSize) (void)*reinterpret_cast<const volatile u64*>(at + i);
      return true;
    case Act::kReceive: {
      int ends[2];
      if (::pipe(ends) != 0) return false;
      const std::byte filling[kPageSize] = {std::byte{1}};
      bool done = true;
      for (u64 i = 0; i < bytes; i += kPageSize)
        done = done && ::write(ends[1], filling, kPageSize) == kPageSize &&
               ::read(ends[0], at + i, kPageSize) == kPageSize;
      ::close(ends[0]);
      ::close(ends[1]);
      return done;
    }
    case Act::kPin: return pin(at, bytes);
    case Act::kReceivePinned: return receive_pinned(at, bytes);
    case Act::kDiscard: return ::madvise(at, bytes, MADV_DONTNEED) == 0;
    case Act::kPunch:
      return ::fallocate(file_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                         static_cast<off_t>(bytes)) == 0;
    case Act::kPageOut:
      // Dirty pages of a file are not taken away before they are on the disk.
      if (file_.valid()) ::fsync(file_.get());
      return ::madvise(at, bytes, MADV_PAGEOUT) == 0;
    case Act::kCollapse: return ::madvise(at, bytes, kCollapse) == 0;
    case Act::kUnmap: return ::munmap(at, bytes) == 0;
    case Act::kReplace:
      return ::mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) !=
             MAP_FAILED;
    case Act::kFork: {
      const pid_t parent = ::getpid();
      const pid_t child = ::fork();
      if (child != 0) return child > 0;
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (::getppid() != parent) ::_exit(0);  // it was gone before
      for (;;) ::pause();
    }
  }
  return false;
}

bool NotedMemory::pin(std::byte* at, u64 bytes) {
  io_uring_params parameters{};
  ring_ = UniqueFd{static_cast<int>(::syscall(SYS_io_uring_setup, 1, &parameters))};
  const iovec buffer{at, bytes};
  return ring_.valid() &&
         ::syscall(SYS_io_uring_register, ring_.get(), IORING_REGISTER_BUFFERS, &buffer, 1) == 0;
}

bool NotedMemory::receive_pinned(std::byte* at, u64 bytes) {
  int ends[2];
  if (::pipe(ends) != 0) return false;
  const std::vector<std::byte> filling(bytes, std::byte{1});
  if (::write(ends[1], filling.data(), bytes) != static_cast<ssize_t>(bytes)) return false;
  const auto map_ring = [&](off_t part) {
    return static_cast<std::byte*>(
        ::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED, ring_.get(), part));
  };
  // One entry, the first, whose place in the queue is 0 as everything is at the beginning.
  io_uring_params layout{};
  const UniqueFd another{static_cast<int>(::syscall(SYS_io_uring_setup, 1, &layout))};
  std::byte* const queue = map_ring(IORING_OFF_SQ_RING);
  auto* const entry = reinterpret_cast<io_uring_sqe*>(map_ring(IORING_OFF_SQES));
  entry->opcode = IORING_OP_READ_FIXED;
  entry->fd = ends[0];
  entry->addr = reinterpret_cast<u64>(at);
  entry->len = static_cast<u32>(bytes);
  ++*reinterpret_cast<std::atomic<u32>*>(queue + layout.sq_off.tail);
  const bool done = ::syscall(SYS_io_uring_enter, ring_.get(), 1, 1, IORING_ENTER_GETEVENTS, nullptr, 0) == 1;
  ::close(ends[0]);
  ::close(ends[1]);
  return done;
}

// ---- noting ----

void Noted::start(std::vector<ByteRange> ranges) {
  if (!memory.made()) GTEST_SKIP() << "this machine has no such memory";
  ASSERT_TRUE(memory.does_each(Act::kWrite, 0, NotedMemory::kPages / 2, 3));
  auto taken = take_userfaultfd(memory.pid());
  ASSERT_TRUE(taken) << taken.error().message();
  auto made = WriteProtection::make(std::move(*taken), WriteProtection::Mode::kNote);
  if (!made && made.error().kind() == ErrorKind::kUnsupported) GTEST_SKIP() << made.error().message();
  ASSERT_TRUE(made) << made.error().message();
  if (ranges.empty()) ranges.push_back(memory.all());
  for (const ByteRange& range : ranges) {
    const auto added = made->add(range);
    ASSERT_TRUE(added) << added.error().message();
    const auto is_protected = made->protect(range);
    ASSERT_TRUE(is_protected) << is_protected.error().message();
  }
  protection = std::move(*made);
  auto opened = Pagemap::open(memory.pid());
  ASSERT_TRUE(opened) << opened.error().message();
  pagemap.emplace(std::move(*opened));
}

std::set<u64> Noted::written(ByteRange range, Pagemap::Take take) const {
  std::set<u64> pages;
  const auto told = pagemap->written(range.start, range.end, take);
  EXPECT_TRUE(told) << told.error().message();
  if (!told) return pages;
  u64 end = range.start;
  for (const ByteRange& part : *told) {
    EXPECT_TRUE(part.start >= end && part.start < part.end && part.end <= range.end);
    end = part.end;
    for (u64 at = part.start; at < part.end; at += kPageSize)
      pages.insert((at - memory.address(0)) >> kPageShift);
  }
  return pages;
}

}  // namespace vmsieve::test
