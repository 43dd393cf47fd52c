// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/proc_maps.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <algorithm>
#include <cstring>
#include <optional>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "unit/qemu/victim.h"
#include "vmsieve/base/fd.h"
#include "vmsieve/qemu/page_residency.h"
#include "vmsieve/qemu/process_memory.h"
#include "vmsieve/qemu/write_protection.h"

namespace vmsieve {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

TEST(ProcMaps, LineWithAndWithoutName) {
  const auto maps = parse_maps(
      "1000-3000 rw-s 00100000 00:2a 1034   /memfd:ram (deleted)\n"
      "3000-4000 r-xp 00000000 00:00 0\n"
      "5000-6000 ---p 00000000 00:00 0          [heap]\n");
  ASSERT_TRUE(maps) << maps.error().message();
  ASSERT_EQ(maps->size(), 3u);
  const Vma& first = (*maps)[0];
  EXPECT_EQ(first.start, 0x1000u);
  EXPECT_EQ(first.end, 0x3000u);
  EXPECT_TRUE(first.readable && first.writable && first.shared && !first.executable);
  EXPECT_EQ(first.file_offset, 0x100000u);
  EXPECT_EQ(first.device_minor, 0x2au);
  EXPECT_EQ(first.inode, 1034u);
  EXPECT_EQ(first.name, "/memfd:ram (deleted)");
  EXPECT_FALSE((*maps)[1].has_file());
  EXPECT_TRUE((*maps)[1].executable);
  EXPECT_EQ((*maps)[2].name, "[heap]");
}

TEST(ProcMaps, OtherTextIsDamaged) {
  for (const char* text :
       {"x\n", "1000\n", "1000-1000 rw-p 0 0:0 0\n", "2000-1000 rw-p 0 0:0 0\n", "1000-2000 rw-p\n",
        "1000-2000 rw-p 0 0:0 x\n", "1000-2000 rw\n", "1000-3000 rw-p 0 0:0 0\n2000-4000 rw-p 0 0:0 0\n",
        "1000-fffffffffffffffff rw-p 0 0:0 0\n"}) {
    EXPECT_FALSE(parse_maps(text)) << text;
  }
}

TEST(ProcMaps, CoveringMappingsLeaveNoGap) {
  const auto maps = parse_maps(
      "1000-3000 rw-p 00000000 00:00 0\n"
      "3000-4000 rw-p 00000000 00:00 0\n"
      "5000-6000 rw-p 00000000 00:00 0\n");
  ASSERT_TRUE(maps);
  EXPECT_EQ(covering_vmas(*maps, 0x1000, 0x3000).size(), 2u);
  EXPECT_EQ(covering_vmas(*maps, 0x3800, 0x800).size(), 1u);
  EXPECT_TRUE(covering_vmas(*maps, 0x3000, 0x2001).empty());
  EXPECT_TRUE(covering_vmas(*maps, 0x0, 0x1001).empty());
  EXPECT_TRUE(covering_vmas(*maps, 0x5000, 0x1001).empty());
  EXPECT_TRUE(covering_vmas(*maps, 0x9000, 1).empty());
  EXPECT_TRUE(covering_vmas(*maps, 0x1000, 0).empty());
  EXPECT_TRUE(covering_vmas(*maps, 0x1000, ~u64{0}).empty());
}

TEST(ProcMaps, OfThisProcess) {
  const auto maps = read_maps(::getpid());
  ASSERT_TRUE(maps) << maps.error().message();
  EXPECT_TRUE(std::any_of(maps->begin(), maps->end(), [](const Vma& v) { return v.executable; }));
  EXPECT_EQ(read_maps(999999999).error().kind(), ErrorKind::kVanished);
}

TEST(ReadMaps, ProcessWhoseMappingsAreJoinedAndSplitMeanwhile) {
  constexpr u64 kPages = 512;
  const test::Victim victim{[](test::VictimBoard& board) {
    void* const at = ::mmap(nullptr, kPages * kPageSize, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char* const memory = static_cast<char*>(at);
    for (u64 page = 0; page < kPages; page += 2) ::mprotect(memory + page * kPageSize, kPageSize, PROT_READ);
    for (;; ++board.rounds) {
      for (u64 page = 1; page < kPages; page += 2) {
        ::mprotect(memory + page * kPageSize, kPageSize, PROT_READ);
        ::mprotect(memory + page * kPageSize, kPageSize, PROT_NONE);
      }
    }
  }};
  ASSERT_TRUE(victim.makes_rounds(1));
  for (int i = 0; i < 150; ++i) {
    const auto maps = read_maps(victim.pid());
    ASSERT_TRUE(maps) << maps.error().message();
  }
}

TEST(AppendRange, JoinsWhatTouches) {
  std::vector<ByteRange> ranges;
  append_range(ranges, {0, 10});
  append_range(ranges, {10, 20});
  append_range(ranges, {15, 18});
  append_range(ranges, {30, 30});
  append_range(ranges, {40, 50});
  EXPECT_THAT(ranges, ElementsAre(ByteRange{0, 20}, ByteRange{40, 50}));
}

class PagemapOfThisProcess : public testing::Test {
 protected:
  static constexpr u64 kPages = 4096;

  void SetUp() override {
    void* at =
        ::mmap(nullptr, kPages * kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(at, MAP_FAILED);
    ASSERT_EQ(::madvise(at, kPages * kPageSize, MADV_NOHUGEPAGE), 0);
    memory_ = static_cast<char*>(at);
    auto pagemap = Pagemap::open(::getpid());
    ASSERT_TRUE(pagemap) << pagemap.error().message();
    pagemap_ = std::make_unique<Pagemap>(std::move(*pagemap));
  }
  void TearDown() override { ::munmap(memory_, kPages * kPageSize); }

  u64 address(u64 page) const { return reinterpret_cast<u64>(memory_) + page * kPageSize; }
  u64 end() const { return address(kPages); }

  char* memory_ = nullptr;
  std::unique_ptr<Pagemap> pagemap_;
};

TEST_F(PagemapOfThisProcess, BothWaysAgree) {
  for (u64 page = 0; page < kPages; page += 3) memory_[page * kPageSize] = 1;
  const auto entries = pagemap_->populated_by_entries(address(0), end());
  ASSERT_TRUE(entries) << entries.error().message();
  EXPECT_EQ(entries->size(), (kPages + 2) / 3);
  const auto scan = pagemap_->populated_by_scan(address(0), end());
  if (!scan && scan.error().kind() == ErrorKind::kUnsupported)
    GTEST_SKIP() << "this kernel has no PAGEMAP_SCAN";
  ASSERT_TRUE(scan) << scan.error().message();
  EXPECT_EQ(*scan, *entries);
}

TEST_F(PagemapOfThisProcess, ScanLeavesTheZeroPageOut) {
  volatile char sum = 0;
  for (u64 page = 0; page < 8; ++page) sum = static_cast<char>(sum + memory_[page * kPageSize]);
  memory_[3 * kPageSize] = 1;
  const auto scan = pagemap_->populated_by_scan(address(0), end());
  if (!scan && scan.error().kind() == ErrorKind::kUnsupported)
    GTEST_SKIP() << "this kernel has no PAGEMAP_SCAN";
  ASSERT_TRUE(scan) << scan.error().message();
  // Some kernels give a page of its own to whoever reads first.
  if (*scan == std::vector{ByteRange{address(0), address(8)}})
    GTEST_SKIP() << "this kernel maps no zero page";
  EXPECT_THAT(*scan, ElementsAre(ByteRange{address(3), address(4)}));
}

TEST_F(PagemapOfThisProcess, EmptyRangeHoldsNothing) {
  const auto ranges = pagemap_->populated(address(5), address(5));
  ASSERT_TRUE(ranges);
  EXPECT_TRUE(ranges->empty());
}

/// A userfaultfd of this very process, with which nothing may be written while it is protected.
class PagemapOfProtectedMemory : public PagemapOfThisProcess {
 protected:
  void SetUp() override {
    PagemapOfThisProcess::SetUp();
    UniqueFd fd{static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK))};
    if (!fd.valid()) GTEST_SKIP() << "no userfaultfd to be had";
    auto made = WriteProtection::make(std::move(fd));
    if (!made && made.error().kind() == ErrorKind::kUnsupported) GTEST_SKIP() << made.error().message();
    ASSERT_TRUE(made) << made.error().message();
    protection_ = std::move(*made);
    for (u64 page = 0; page < 8; ++page) memory_[page * kPageSize] = 1;
    ASSERT_TRUE(protection_->add({address(0), end()}));
    ASSERT_TRUE(protection_->protect({address(4), address(12)}));
  }
  void TearDown() override {
    protection_.reset();
    PagemapOfThisProcess::TearDown();
  }
  std::vector<u64> write_protected() const {
    std::vector<u64> pages;
    const auto told = pagemap_->write_protected(address(0), address(16));
    EXPECT_TRUE(told) << told.error().message();
    if (!told) return pages;
    EXPECT_EQ(told->size(), 16U);
    for (u64 page = 0; page < told->size(); ++page) {
      if ((*told)[page]) pages.push_back(page);
    }
    return pages;
  }

  std::optional<WriteProtection> protection_;
};

TEST_F(PagemapOfProtectedMemory, UntouchedPagesLookSwappedOutButNotPresent) {
  const std::vector touched{ByteRange{address(0), address(8)}};
  const std::vector with_markers{ByteRange{address(0), address(12)}};
  const auto entries = pagemap_->populated_by_entries(address(0), end(), Population::kPresent);
  ASSERT_TRUE(entries) << entries.error().message();
  EXPECT_EQ(*entries, touched);
  const auto with_swapped = pagemap_->populated(address(0), end());
  ASSERT_TRUE(with_swapped) << with_swapped.error().message();
  EXPECT_EQ(*with_swapped, with_markers);
  const auto scan = pagemap_->populated_by_scan(address(0), end(), Population::kPresent);
  if (!scan && scan.error().kind() == ErrorKind::kUnsupported)
    GTEST_SKIP() << "this kernel has no PAGEMAP_SCAN";
  ASSERT_TRUE(scan) << scan.error().message();
  EXPECT_EQ(*scan, touched);
}

TEST_F(PagemapOfProtectedMemory, UnprotectedPagesAreThoseThatHoldSomethingAndAreNot) {
  ASSERT_EQ(::madvise(memory_ + 9 * kPageSize, 2 * kPageSize, MADV_DONTNEED), 0);
  memory_[10 * kPageSize] = 1;
  const std::vector expected{ByteRange{address(0), address(4)}, ByteRange{address(10), address(11)}};
  const auto entries = pagemap_->populated_by_entries(address(0), end(), Population::kUnprotected);
  ASSERT_TRUE(entries) << entries.error().message();
  EXPECT_EQ(*entries, expected);
  const auto scan = pagemap_->populated_by_scan(address(0), end(), Population::kUnprotected);
  if (!scan && scan.error().kind() == ErrorKind::kUnsupported)
    GTEST_SKIP() << "this kernel has no PAGEMAP_SCAN";
  ASSERT_TRUE(scan) << scan.error().message();
  EXPECT_EQ(*scan, expected);
}

TEST_F(PagemapOfProtectedMemory, TellsWhichPagesAreWriteProtected) {
  EXPECT_THAT(write_protected(), ElementsAre(4, 5, 6, 7, 8, 9, 10, 11));
}

TEST_F(PagemapOfProtectedMemory, ReleasedPagesAreNotWriteProtected) {
  ASSERT_TRUE(protection_->release({address(7), address(9)}));
  EXPECT_THAT(write_protected(), ElementsAre(4, 5, 6, 9, 10, 11));
  memory_[7 * kPageSize] = 2;
}

TEST_F(PagemapOfProtectedMemory, DiscardedPagesAreNotWriteProtected) {
  ASSERT_EQ(::madvise(memory_ + 7 * kPageSize, 2 * kPageSize, MADV_DONTNEED), 0);
  EXPECT_THAT(write_protected(), ElementsAre(4, 5, 6, 9, 10, 11));
}

TEST_F(PagemapOfProtectedMemory, ReadPagesStayWriteProtected) {
  volatile char sum = 0;
  for (u64 page = 4; page < 12; ++page) sum = static_cast<char>(sum + memory_[page * kPageSize]);
  EXPECT_THAT(write_protected(), ElementsAre(4, 5, 6, 7, 8, 9, 10, 11));
}

TEST(PagemapOfAnother, ThatDiedHasVanished) {
  const pid_t child = ::fork();
  if (child == 0) {
    for (;;) ::pause();
  }
  const auto pagemap = Pagemap::open(child);
  ASSERT_TRUE(pagemap) << pagemap.error().message();
  char here = 0;
  const u64 page = round_down(reinterpret_cast<u64>(&here), kPageSize);
  EXPECT_TRUE(pagemap->write_protected(page, page + kPageSize));
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  const auto told = pagemap->write_protected(page, page + kPageSize);
  ASSERT_FALSE(told);
  EXPECT_EQ(told.error().kind(), ErrorKind::kVanished) << told.error().message();
}

TEST(PagemapOfAnother, ThatIsGoneHasVanished) {
  EXPECT_EQ(Pagemap::open(999999999).error().kind(), ErrorKind::kVanished);
}

TEST(DataRanges, OfAFileWithHoles) {
  const auto fd = make_memfd("holes");
  ASSERT_TRUE(fd);
  ASSERT_EQ(::ftruncate(fd->get(), 16 * kPageSize), 0);
  const std::vector<std::byte> page(kPageSize, std::byte{1});
  ASSERT_TRUE(pwrite_all(fd->get(), page, 3 * kPageSize, "memfd"));
  ASSERT_TRUE(pwrite_all(fd->get(), page, 8 * kPageSize, "memfd"));
  const auto ranges = data_ranges(fd->get(), 0, 16 * kPageSize);
  ASSERT_TRUE(ranges);
  EXPECT_THAT(*ranges,
              ElementsAre(ByteRange{3 * kPageSize, 4 * kPageSize}, ByteRange{8 * kPageSize, 9 * kPageSize}));
  EXPECT_THAT(*data_ranges(fd->get(), 3 * kPageSize + 5, 3 * kPageSize + 9),
              ElementsAre(ByteRange{3 * kPageSize + 5, 3 * kPageSize + 9}));
  EXPECT_TRUE(data_ranges(fd->get(), 9 * kPageSize, 99 * kPageSize)->empty());
  EXPECT_TRUE(data_ranges(fd->get(), 0, 3 * kPageSize)->empty());
}

TEST(DataRanges, OfHugePagesThatNobodyTouchedAreNone) {
  const UniqueFd fd{::memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB)};
  if (!fd.valid()) GTEST_SKIP() << "no huge pages here";
  ASSERT_EQ(::ftruncate(fd.get(), 4 * kMiB), 0);
  EXPECT_THAT(*data_ranges(fd.get(), 0, 4 * kMiB), IsEmpty());
}

TEST(DataRanges, OfWhatIsNoFileAreUnknown) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  EXPECT_EQ(data_ranges(ends[0], 0, kPageSize), std::nullopt);
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST(ProcessMemory, ReadsAndNamesWhatItCannot) {
  const char text[] = "some text of mine";
  std::vector<std::byte> bytes(sizeof text);
  ASSERT_TRUE(read_process_memory(::getpid(), HostVirtual{reinterpret_cast<u64>(text)}, bytes));
  EXPECT_EQ(std::memcmp(bytes.data(), text, sizeof text), 0);
  EXPECT_TRUE(read_process_memory(::getpid(), HostVirtual{0}, {}));
  const auto read = read_process_memory(::getpid(), HostVirtual{0x10}, bytes);
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().kind(), ErrorKind::kIo);
  EXPECT_THAT(read.error().message(), testing::HasSubstr("0x10"));
  EXPECT_EQ(read_process_memory(999999999, HostVirtual{0x10}, bytes).error().kind(), ErrorKind::kVanished);
}

}  // namespace
}  // namespace vmsieve
