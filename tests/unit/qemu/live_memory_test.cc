// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/live_memory.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <algorithm>
#include <cstring>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmsieve/base/fd.h"

namespace vmsieve {
namespace {

using testing::HasSubstr;

constexpr u64 kBlockPages = 64;
constexpr u64 kBlockBytes = kBlockPages * kPageSize;

/// Memory of this very process, mapped in the ways in which QEMU maps guest RAM.
class Mapped {
 public:
  Mapped(u64 bytes, int flags, int fd = -1, u64 offset = 0) : bytes_(bytes) {
    void* at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, fd, static_cast<off_t>(offset));
    start_ = at == MAP_FAILED ? nullptr : static_cast<std::byte*>(at);
  }
  ~Mapped() {
    if (start_ != nullptr) ::munmap(start_, bytes_);
  }
  Mapped(const Mapped&) = delete;
  Mapped& operator=(const Mapped&) = delete;

  bool ok() const { return start_ != nullptr; }
  std::byte* page(u64 index) const { return start_ + index * kPageSize; }
  void fill(u64 index, u8 value) const { std::memset(page(index), value, kPageSize); }
  HostVirtual host() const { return HostVirtual{reinterpret_cast<u64>(start_)}; }

 private:
  std::byte* start_ = nullptr;
  u64 bytes_;
};

RamBlock block_at(const Mapped& memory, u64 bytes = kBlockBytes) {
  return {"ram", bytes, bytes, kPageSize, memory.host(), true};
}

RamLayout layout_of(const Mapped& memory, u64 bytes = kBlockBytes) {
  return {{block_at(memory, bytes)}, {{GuestPhysical{0}, bytes, 0, 0}}};
}

std::unique_ptr<LiveMemory> must_open(RamLayout layout, pid_t pid = ::getpid()) {
  auto memory = LiveMemory::open(pid, std::move(layout));
  if (!memory) {
    ADD_FAILURE() << memory.error().message();
    return nullptr;
  }
  return std::move(*memory);
}

/// The byte that each page of the block is filled with; -1 when it is not filled evenly.
std::vector<int> fills(const LiveMemory& memory, u64 pages = kBlockPages) {
  std::vector<std::byte> bytes(pages * kPageSize);
  const auto read = memory.read_block(0, 0, bytes);
  EXPECT_TRUE(read) << read.error().message();
  std::vector<int> result;
  for (u64 i = 0; i < pages; ++i) {
    const std::span page{bytes.data() + i * kPageSize, kPageSize};
    const bool even = std::all_of(page.begin(), page.end(), [&](std::byte b) { return b == page[0]; });
    result.push_back(even ? std::to_integer<int>(page[0]) : -1);
  }
  return result;
}

std::vector<int> expect_fills(std::initializer_list<std::pair<u64, int>> pages, u64 count = kBlockPages) {
  std::vector<int> result(count);
  for (const auto& [page, value] : pages) result[page] = value;
  return result;
}

std::vector<u64> resident_pages(const LiveMemory& memory, u64 first = 0, u64 count = kBlockPages) {
  std::vector<u64> pages;
  for (const auto& run : memory.resident_block(0, first, count)) {
    for (u64 i = 0; i < run.count; ++i) pages.push_back(run.first + i);
  }
  return pages;
}

u64 allocated_pages(int fd) {
  struct stat info {};
  EXPECT_EQ(::fstat(fd, &info), 0);
  return static_cast<u64>(info.st_blocks) * 512 / kPageSize;
}

UniqueFd sized_memfd(u64 bytes = kBlockBytes) {
  auto fd = make_memfd("test");
  EXPECT_TRUE(fd && ::ftruncate(fd->get(), static_cast<off_t>(bytes)) == 0);
  return std::move(*fd);
}

TEST(LiveMemory, PrivateAnonymousMemory) {
  const Mapped ram{kBlockBytes, MAP_PRIVATE | MAP_ANONYMOUS};
  ram.fill(3, 0xaa);
  ram.fill(4, 0xbb);
  ram.fill(63, 0xcc);
  const auto memory = must_open(layout_of(ram));
  ASSERT_NE(memory, nullptr);
  EXPECT_EQ(fills(*memory), expect_fills({{3, 0xaa}, {4, 0xbb}, {63, 0xcc}}));
  EXPECT_THAT(resident_pages(*memory), testing::ElementsAre(3, 4, 63));
  EXPECT_THAT(resident_pages(*memory, 4, 10), testing::ElementsAre(4));
}

TEST(LiveMemory, ReadingPagesThatWereNeverTouchedMakesNoneResident) {
  const Mapped ram{kBlockBytes, MAP_PRIVATE | MAP_ANONYMOUS};
  const auto memory = must_open(layout_of(ram));
  ASSERT_NE(memory, nullptr);
  EXPECT_EQ(fills(*memory), expect_fills({}));
  EXPECT_THAT(resident_pages(*memory), testing::ElementsAre());
}

TEST(LiveMemory, BlockInSeveralMappings) {
  const Mapped ram{kBlockBytes, MAP_PRIVATE | MAP_ANONYMOUS};
  for (u64 i = 0; i < kBlockPages; ++i) ram.fill(i, static_cast<u8>(i + 1));
  // A different advice splits the mapping in three.
  ASSERT_EQ(::madvise(ram.page(10), 5 * kPageSize, MADV_DONTDUMP), 0);
  const auto memory = must_open(layout_of(ram));
  ASSERT_NE(memory, nullptr);
  const auto values = fills(*memory);
  for (u64 i = 0; i < kBlockPages; ++i) EXPECT_EQ(values[i], static_cast<int>(i + 1));
  EXPECT_EQ(resident_pages(*memory).size(), kBlockPages);
  EXPECT_EQ(memory->resident_block(0, 0, kBlockPages).size(), 1u) << "adjoining runs are joined";
}

TEST(LiveMemory, SharedMemfdIsReadWithoutAllocatingItsHoles) {
  const UniqueFd fd = sized_memfd();
  const Mapped ram{kBlockBytes, MAP_SHARED, fd.get()};
  ram.fill(7, 0x77);
  const u64 before = allocated_pages(fd.get());
  const auto memory = must_open(layout_of(ram));
  ASSERT_NE(memory, nullptr);
  EXPECT_EQ(fills(*memory), expect_fills({{7, 0x77}}));
  EXPECT_EQ(allocated_pages(fd.get()), before);
  EXPECT_THAT(resident_pages(*memory), testing::ElementsAre(7));
}

TEST(LiveMemory, SharedMemoryWrittenByAnotherMappingIsResident) {
  const UniqueFd fd = sized_memfd();
  const Mapped ram{kBlockBytes, MAP_SHARED, fd.get()};
  const Mapped backend{kBlockBytes, MAP_SHARED, fd.get()};
  backend.fill(9, 0x99);
  const auto memory = must_open(layout_of(ram));
  ASSERT_NE(memory, nullptr);
  EXPECT_THAT(resident_pages(*memory), testing::ElementsAre(9));
  EXPECT_EQ(fills(*memory)[9], 0x99);
}

TEST(LiveMemory, MappingFromTheMiddleOfAFile) {
  const UniqueFd fd = sized_memfd(2 * kBlockBytes);
  const Mapped ram{kBlockBytes, MAP_SHARED, fd.get(), 16 * kPageSize};
  const std::vector<std::byte> page(kPageSize, std::byte{0x42});
  ASSERT_TRUE(pwrite_all(fd.get(), page, 18 * kPageSize, "memfd"));
  const auto memory = must_open(layout_of(ram));
  ASSERT_NE(memory, nullptr);
  EXPECT_EQ(fills(*memory), expect_fills({{2, 0x42}}));
  EXPECT_THAT(resident_pages(*memory), testing::ElementsAre(2));
}

TEST(LiveMemory, SharedAnonymousMemory) {
  const Mapped ram{kBlockBytes, MAP_SHARED | MAP_ANONYMOUS};
  ram.fill(5, 0x55);
  const auto memory = must_open(layout_of(ram));
  ASSERT_NE(memory, nullptr);
  EXPECT_EQ(fills(*memory), expect_fills({{5, 0x55}}));
  EXPECT_THAT(resident_pages(*memory), testing::ElementsAre(5));
}

TEST(LiveMemory, PrivateFileMappingShowsTheFileAndWhatWasWrittenOverIt) {
  const UniqueFd fd = sized_memfd();
  const std::vector<std::byte> page(kPageSize, std::byte{0x11});
  ASSERT_TRUE(pwrite_all(fd.get(), page, 20 * kPageSize, "memfd"));
  ASSERT_TRUE(pwrite_all(fd.get(), page, 21 * kPageSize, "memfd"));
  const Mapped ram{kBlockBytes, MAP_PRIVATE, fd.get()};
  ram.fill(21, 0x22);
  ram.fill(30, 0x33);
  const auto memory = must_open(layout_of(ram));
  ASSERT_NE(memory, nullptr);
  EXPECT_EQ(fills(*memory), expect_fills({{20, 0x11}, {21, 0x22}, {30, 0x33}}));
  EXPECT_THAT(resident_pages(*memory), testing::IsSupersetOf({20, 21, 30}));
}

TEST(LiveMemory, PrivateFileMappingIsReadWithoutAllocatingTheFilesHoles) {
  const UniqueFd fd = sized_memfd();
  const Mapped ram{kBlockBytes, MAP_PRIVATE, fd.get()};
  ram.fill(30, 0x33);
  const u64 before = allocated_pages(fd.get());
  const auto memory = must_open(layout_of(ram));
  ASSERT_NE(memory, nullptr);
  EXPECT_EQ(fills(*memory), expect_fills({{30, 0x33}}));
  EXPECT_EQ(allocated_pages(fd.get()), before);
}

TEST(LiveMemory, UnalignedReadsOfAPrivateFileMapping) {
  const UniqueFd fd = sized_memfd();
  const Mapped ram{kBlockBytes, MAP_PRIVATE, fd.get()};
  for (u64 i = 0; i < kBlockPages; i += 2) ram.fill(i, static_cast<u8>(i + 1));
  const auto memory = must_open(layout_of(ram));
  ASSERT_NE(memory, nullptr);
  std::vector<std::byte> bytes(3 * kPageSize);
  ASSERT_TRUE(memory->read_block(0, kPageSize - 1, bytes));
  EXPECT_EQ(bytes[0], std::byte{1});
  EXPECT_EQ(bytes[1], std::byte{0});
  EXPECT_EQ(bytes[kPageSize], std::byte{0});
  EXPECT_EQ(bytes[kPageSize + 1], std::byte{3});
  EXPECT_EQ(bytes[2 * kPageSize + 1], std::byte{0});
}

TEST(LiveMemory, FileOnDiskShared) {
  char path[] = "/var/tmp/vmsieve-live-XXXXXX";
  const UniqueFd fd{::mkstemp(path)};
  ASSERT_TRUE(fd.valid());
  ::unlink(path);
  ASSERT_EQ(::ftruncate(fd.get(), kBlockBytes), 0);
  const Mapped ram{kBlockBytes, MAP_SHARED, fd.get()};
  ram.fill(12, 0x12);
  const auto memory = must_open(layout_of(ram));
  ASSERT_NE(memory, nullptr);
  EXPECT_EQ(fills(*memory), expect_fills({{12, 0x12}}));
  EXPECT_THAT(resident_pages(*memory), testing::Contains(12));
}

TEST(LiveMemory, BlockOfTwoFilesSideBySide) {
  const UniqueFd low = sized_memfd();
  const UniqueFd high = sized_memfd();
  const Mapped ram{kBlockBytes, MAP_SHARED, low.get()};
  const u64 half = kBlockBytes / 2;
  ASSERT_NE(
      ::mmap(ram.page(kBlockPages / 2), half, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, high.get(), 0),
      MAP_FAILED);
  ram.fill(31, 0x31);
  ram.fill(32, 0x32);
  const auto memory = must_open(layout_of(ram));
  ASSERT_NE(memory, nullptr);
  EXPECT_EQ(fills(*memory), expect_fills({{31, 0x31}, {32, 0x32}}));
  EXPECT_THAT(resident_pages(*memory), testing::ElementsAre(31, 32));
}

/// Huge pages for one test, if the host has them to give.
class HugePages {
 public:
  static constexpr const char* kSetting = "/proc/sys/vm/nr_hugepages";
  explicit HugePages(int count) {
    if (auto text = read_text_file(kSetting, 64)) before_ = *text;
    set(std::to_string(std::atoi(before_.c_str()) + count));
  }
  ~HugePages() { set(before_); }
  HugePages(const HugePages&) = delete;
  HugePages& operator=(const HugePages&) = delete;
  static int free() {
    const auto text = read_text_file("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", 64);
    return text ? std::atoi(text->c_str()) : 0;
  }

 private:
  static void set(const std::string& count) {
    if (auto fd = open_file(kSetting, O_WRONLY)) {
      (void)write_all(fd->get(), std::as_bytes(std::span{count.data(), count.size()}), kSetting).ok();
    }
  }
  std::string before_ = "0";
};

constexpr u64 kHugeBytes = 2 * kMiB;
constexpr u64 kHugePages = kHugeBytes / kPageSize;

TEST(LiveMemory, PrivateHugePagesAreReadWithoutTakingAnyFromThePool) {
  const HugePages pool{4};
  if (HugePages::free() < 4) GTEST_SKIP() << "no huge pages to be had";
  const Mapped ram{2 * kHugeBytes, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB};
  ASSERT_TRUE(ram.ok());
  ram.fill(kHugePages + 1, 0x88);
  const int before = HugePages::free();
  const auto memory = must_open(layout_of(ram, 2 * kHugeBytes));
  ASSERT_NE(memory, nullptr);
  EXPECT_EQ(fills(*memory, 2 * kHugePages), expect_fills({{kHugePages + 1, 0x88}}, 2 * kHugePages));
  EXPECT_EQ(HugePages::free(), before);
  const auto runs = memory->resident_block(0, 0, 2 * kHugePages);
  ASSERT_EQ(runs.size(), 1u);
  EXPECT_EQ(runs[0].first, kHugePages);
  EXPECT_EQ(runs[0].count, kHugePages);
}

TEST(LiveMemory, SharedHugePagesAreReadWithoutTakingAnyFromThePool) {
  const HugePages pool{4};
  if (HugePages::free() < 4) GTEST_SKIP() << "no huge pages to be had";
  const UniqueFd fd{::memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB)};
  ASSERT_EQ(::ftruncate(fd.get(), 2 * kHugeBytes), 0);
  const Mapped ram{2 * kHugeBytes, MAP_SHARED, fd.get()};
  ASSERT_TRUE(ram.ok());
  ram.fill(kHugePages + 1, 0x88);
  const int before = HugePages::free();
  const auto memory = must_open(layout_of(ram, 2 * kHugeBytes));
  ASSERT_NE(memory, nullptr);
  EXPECT_EQ(fills(*memory, 2 * kHugePages), expect_fills({{kHugePages + 1, 0x88}}, 2 * kHugePages));
  EXPECT_EQ(HugePages::free(), before);
  EXPECT_THAT(resident_pages(*memory, 0, 2 * kHugePages), testing::Contains(kHugePages + 1));
}

TEST(LiveMemory, KnowsWhatIsMappedFromAFile) {
  const auto fd = make_memfd("ram");
  ASSERT_TRUE(fd);
  ASSERT_EQ(::ftruncate(fd->get(), kBlockBytes), 0);
  const Mapped anonymous{kBlockBytes, MAP_PRIVATE | MAP_ANONYMOUS};
  const Mapped shared_anonymous{kBlockBytes, MAP_SHARED | MAP_ANONYMOUS};
  const Mapped shared{kBlockBytes, MAP_SHARED, fd->get()};
  const Mapped copied_on_write{kBlockBytes, MAP_PRIVATE, fd->get()};
  const auto memory = must_open(
      {{block_at(anonymous), block_at(shared_anonymous), block_at(shared), block_at(copied_on_write)}, {}});
  ASSERT_NE(memory, nullptr);
  EXPECT_FALSE(memory->has_file(0));
  EXPECT_TRUE(memory->has_file(1));
  EXPECT_TRUE(memory->has_file(2));
  EXPECT_TRUE(memory->has_file(3));
}

TEST(LiveMemory, GuestAddressesFollowTheMappings) {
  const Mapped ram{kBlockBytes, MAP_PRIVATE | MAP_ANONYMOUS};
  for (u64 i = 0; i < kBlockPages; ++i) ram.fill(i, static_cast<u8>(i + 1));
  RamLayout layout{{block_at(ram)}, {}};
  // Pages 0-9, a hole of 6 pages, pages 20-29, adjoining it pages 10-19.
  layout.mappings = {{GuestPhysical{0}, 10 * kPageSize, 0, 0},
                     {GuestPhysical{16 * kPageSize}, 10 * kPageSize, 0, 20 * kPageSize},
                     {GuestPhysical{26 * kPageSize}, 10 * kPageSize, 0, 10 * kPageSize}};
  const auto memory = must_open(layout);
  ASSERT_NE(memory, nullptr);
  EXPECT_THAT(std::vector<PfnRange>(memory->ram().begin(), memory->ram().end()),
              testing::ElementsAre(PfnRange{Pfn{0}, 10}, PfnRange{Pfn{16}, 20}));
  std::vector<std::byte> two(2);
  ASSERT_TRUE(memory->read(GuestPhysical{26 * kPageSize - 1}, two));
  EXPECT_EQ(two[0], std::byte{30});
  EXPECT_EQ(two[1], std::byte{11});
  const auto resident = memory->resident({Pfn{5}, 25});
  EXPECT_THAT(resident, testing::ElementsAre(PfnRange{Pfn{5}, 5}, PfnRange{Pfn{16}, 14}));
  EXPECT_EQ(memory->layout().mappings.size(), 3u);
}

TEST(LiveMemory, AddressOutsideRamIsDamaged) {
  const Mapped ram{kBlockBytes, MAP_PRIVATE | MAP_ANONYMOUS};
  RamLayout layout{{block_at(ram)}, {{GuestPhysical{kMiB}, kBlockBytes, 0, 0}}};
  const auto memory = must_open(layout);
  ASSERT_NE(memory, nullptr);
  std::vector<std::byte> bytes(16);
  for (const u64 address : {u64{0}, kMiB - 1, kMiB + kBlockBytes, kMiB + kBlockBytes - 8, ~u64{0}, ~u64{7}}) {
    const auto read = memory->read(GuestPhysical{address}, bytes);
    ASSERT_FALSE(read) << address;
    EXPECT_EQ(read.error().kind(), ErrorKind::kDamaged);
  }
  EXPECT_THAT(memory->resident({Pfn{~u64{0} - 1}, ~u64{0}}), testing::ElementsAre());
}

TEST(LiveMemory, ReadBeyondTheBlockIsRefused) {
  const Mapped ram{kBlockBytes, MAP_PRIVATE | MAP_ANONYMOUS};
  const auto memory = must_open(layout_of(ram));
  ASSERT_NE(memory, nullptr);
  std::vector<std::byte> bytes(16);
  EXPECT_FALSE(memory->read_block(0, kBlockBytes - 15, bytes));
  EXPECT_FALSE(memory->read_block(0, ~u64{0}, bytes));
  EXPECT_FALSE(memory->read_block(1, 0, bytes));
  EXPECT_TRUE(memory->read_block(0, kBlockBytes, {}));
  EXPECT_TRUE(memory->resident_block(1, 0, 1).empty());
  EXPECT_TRUE(memory->resident_block(0, kBlockPages, 1).empty());
}

TEST(LiveMemory, UsedLengthNeedNotBeWholePages) {
  const Mapped ram{kBlockBytes, MAP_PRIVATE | MAP_ANONYMOUS};
  ram.fill(0, 0x10);
  RamLayout layout{{block_at(ram, 100)}, {}};
  const auto memory = must_open(layout);
  ASSERT_NE(memory, nullptr);
  std::vector<std::byte> bytes(kPageSize);
  EXPECT_TRUE(memory->read_block(0, 0, bytes));
  EXPECT_THAT(resident_pages(*memory), testing::ElementsAre(0));
}

TEST(LiveMemory, EmptyBlockIsTaken) {
  RamLayout layout{{RamBlock{"empty", 0, 0, kPageSize, HostVirtual{0}, false}}, {}};
  const auto memory = must_open(layout);
  ASSERT_NE(memory, nullptr);
  EXPECT_TRUE(memory->resident_block(0, 0, 1).empty());
  EXPECT_TRUE(memory->ram().empty());
}

TEST(LiveMemory, MemoryThatGoesAwayIsAnErrorNamingTheBlock) {
  const Mapped ram{kBlockBytes, MAP_PRIVATE | MAP_ANONYMOUS};
  const auto memory = must_open(layout_of(ram));
  ASSERT_NE(memory, nullptr);
  ram.fill(8, 0xaa);
  ASSERT_EQ(::mprotect(ram.page(8), kPageSize, PROT_NONE), 0);
  std::vector<std::byte> bytes(kBlockBytes);
  const auto read = memory->read_block(0, 0, bytes);
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().kind(), ErrorKind::kIo);
  EXPECT_THAT(read.error().message(), HasSubstr("'ram'"));
}

TEST(LiveMemory, BlockThatIsNotMappedIsRefused) {
  const Mapped ram{kBlockBytes, MAP_PRIVATE | MAP_ANONYMOUS};
  RamLayout layout = layout_of(ram, u64{1} << 50);
  const auto memory = LiveMemory::open(::getpid(), layout);
  ASSERT_FALSE(memory);
  EXPECT_EQ(memory.error().kind(), ErrorKind::kDamaged);
}

TEST(LiveMemory, MappingsThatMakeNoSenseAreRefused) {
  const Mapped ram{kBlockBytes, MAP_PRIVATE | MAP_ANONYMOUS};
  const auto kind = [&](std::vector<RamMapping> mappings) {
    const auto memory = LiveMemory::open(::getpid(), {{block_at(ram)}, std::move(mappings)});
    return memory.ok() ? "ok" : std::string{to_string(memory.error().kind())};
  };
  EXPECT_EQ(kind({{GuestPhysical{0}, kPageSize, 1, 0}}), "usage");
  EXPECT_EQ(kind({{GuestPhysical{0}, kBlockBytes, 0, kPageSize}}), "usage");
  EXPECT_EQ(kind({{GuestPhysical{0}, kPageSize, 0, ~u64{0} - 4095}}), "usage");
  EXPECT_EQ(kind({{GuestPhysical{1}, kPageSize, 0, 0}}), "usage");
  EXPECT_EQ(kind({{GuestPhysical{0}, 0, 0, 0}}), "usage");
  EXPECT_EQ(kind({{GuestPhysical{~u64{0} - 4095}, 2 * kPageSize, 0, 0}}), "usage");
  EXPECT_EQ(kind({{GuestPhysical{kPageSize}, kPageSize, 0, 0}, {GuestPhysical{0}, kPageSize, 0, 0}}),
            "usage");
}

TEST(LiveMemory, ProcessThatIsGoneHasVanished) {
  const Mapped ram{kBlockBytes, MAP_PRIVATE | MAP_ANONYMOUS};
  ram.fill(0, 1);
  const pid_t child = ::fork();
  if (child == 0) {
    for (;;) ::pause();
  }
  const auto memory = must_open(layout_of(ram), child);
  ASSERT_NE(memory, nullptr);
  std::vector<std::byte> bytes(kPageSize);
  EXPECT_TRUE(memory->read_block(0, 0, bytes));
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  const auto read = memory->read_block(0, 0, bytes);
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().kind(), ErrorKind::kVanished);
  // Nothing is known any more: every page counts.
  EXPECT_EQ(resident_pages(*memory).size(), kBlockPages);
  EXPECT_EQ(LiveMemory::open(child, layout_of(ram)).error().kind(), ErrorKind::kVanished);
}

TEST(LiveMemory, SeveralThreadsReadAtOnce) {
  const UniqueFd fd = sized_memfd();
  const Mapped ram{kBlockBytes, MAP_SHARED, fd.get()};
  for (u64 i = 0; i < kBlockPages; i += 2) ram.fill(i, static_cast<u8>(i + 1));
  const auto memory = must_open(layout_of(ram));
  ASSERT_NE(memory, nullptr);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int round = 0; round < 50; ++round) {
        std::vector<std::byte> page(kPageSize);
        for (u64 i = 0; i < kBlockPages; ++i) {
          EXPECT_TRUE(memory->read(GuestPhysical{i * kPageSize}, page));
          EXPECT_EQ(page[17], i % 2 == 0 ? static_cast<std::byte>(i + 1) : std::byte{0});
        }
        EXPECT_EQ(resident_pages(*memory).size(), kBlockPages / 2);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace vmsieve
