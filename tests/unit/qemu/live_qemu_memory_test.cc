// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cstring>
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "unit/qemu/real_qemu.h"
#include "vmsieve/qemu/live_memory.h"
#include "vmsieve/qemu/machine.h"

namespace vmsieve {
namespace {

using test::RealQemu;

constexpr u64 kPatternAddress = 64 * kMiB;
constexpr u64 kPatternBytes = 3 * kMiB + kPageSize;

struct Backing {
  std::string name;
  std::string object;  ///< without id and size; "" for plain -m; %s is a file's path
};

class LiveQemu : public testing::TestWithParam<std::tuple<test::QemuProgram, Backing>> {
 protected:
  std::vector<char> make_pattern() {
    std::vector<char> pattern(kPatternBytes);
    u64 state = 88172645463325252ULL;
    for (u64 i = 0; i < kPatternBytes; i += 8) {
      state ^= state << 13;
      state ^= state >> 7;
      state ^= state << 17;
      std::memcpy(pattern.data() + i, &state, 8);
    }
    std::ofstream{folder_.path() + "/pattern", std::ios::binary}.write(pattern.data(), kPatternBytes);
    return pattern;
  }

  test::TemporaryFolder folder_;
};

/// The guest's memory as QEMU itself writes it (pmemsave) and as it is read from outside.
TEST_P(LiveQemu, GuestMemoryReadsAsQemuSeesIt) {
  const auto& [program, backing] = GetParam();
  const std::vector<char> pattern = make_pattern();
  std::vector<std::string> arguments{
      "-M",
      "q35",
      "-m",
      "256",
      "-S",
      "-device",
      fmt::format("loader,file={}/pattern,addr={:#x},force-raw=on", folder_.path(), kPatternAddress)};
  if (!backing.object.empty()) {
    std::string object = backing.object;
    const auto at = object.find("%s");
    if (at != std::string::npos) object.replace(at, 2, folder_.path() + "/ram");
    arguments.insert(arguments.end(),
                     {"-object", object + ",id=mem,size=256M", "-machine", "memory-backend=mem"});
  }
  RealQemu qemu{program.path, arguments};
  if (!qemu.running()) GTEST_SKIP() << "this QEMU does not start: " << qemu.complaint();
  const auto qmp = test::must_connect(qemu.monitor());
  ASSERT_NE(qmp, nullptr);
  auto layout = read_ram_layout(*qmp, qemu.pid());
  ASSERT_TRUE(layout) << layout.error().message();
  const auto memory = LiveMemory::open(qemu.pid(), std::move(*layout));
  ASSERT_TRUE(memory) << memory.error().message();

  std::vector<char> read(kPatternBytes);
  ASSERT_TRUE((*memory)->read(GuestPhysical{kPatternAddress}, std::as_writable_bytes(std::span{read})));
  EXPECT_EQ(read, pattern);

  const PfnRange around{Pfn{kPatternAddress >> kPageShift}, 16 * kMiB >> kPageShift};
  const auto resident = (*memory)->resident(around);
  u64 pages = 0;
  for (const PfnRange& range : resident) pages += range.count;
  ASSERT_FALSE(resident.empty());
  EXPECT_EQ(resident.front().first, around.first);
  EXPECT_GE(pages, kPatternBytes >> kPageShift);
  // Up to a huge page more; where nothing can be told, all of it.
  if (backing.name != "hugetlb_shared" && backing.name != "hugetlb_private") {
    EXPECT_LE(pages, (kPatternBytes >> kPageShift) + 1024);
  }
}

const Backing kBackings[] = {
    {"plain", ""},
    {"ram_shared", "memory-backend-ram,share=on"},
    {"memfd", "memory-backend-memfd,share=on"},
    {"memfd_private", "memory-backend-memfd,share=off"},
    {"file_shared", "memory-backend-file,mem-path=%s,share=on"},
    {"file_private", "memory-backend-file,mem-path=%s,share=off"},
};

std::string instance_name(const testing::TestParamInfo<LiveQemu::ParamType>& instance) {
  return std::get<0>(instance.param).label + "_" + std::get<1>(instance.param).name;
}

INSTANTIATE_TEST_SUITE_P(Qemu, LiveQemu,
                         testing::Combine(testing::ValuesIn(test::qemu_programs()),
                                          testing::ValuesIn(kBackings)),
                         instance_name);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(LiveQemu);

}  // namespace
}  // namespace vmsieve
