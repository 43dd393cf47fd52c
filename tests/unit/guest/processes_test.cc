// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/guest/processes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/fake_user_space.h"

namespace vmsieve {
namespace {

using ::testing::ElementsAre;
using vmsieve::testing::FakeUserSpace;
using vmsieve::testing::FakeUserSpaceOptions;

constexpr GuestVirtual kStack{0xffff'c900'0000'4000};

Result<GuestProcesses> list(FakeUserSpace& space) {
  return list_processes(space.memory(), space.kernel(), space.symbols());
}

TEST(ListProcesses, TellsNamesMemoryAndStacks) {
  FakeUserSpace space;
  space.add_process(1, "init", 10, 20, 30, kStack);
  space.add_process(2, "kthreadd", 0, 0, 0, kStack + 0x4000);
  const auto found = list(space);
  ASSERT_TRUE(found.ok()) << found.error().message();
  EXPECT_TRUE(found->complete);
  EXPECT_EQ(found->stack_bytes, 8192u);
  ASSERT_EQ(found->processes.size(), 2u);
  const GuestProcess& init = found->processes[0];
  EXPECT_EQ(init.pid, 1u);
  EXPECT_EQ(init.name, "init");
  EXPECT_EQ(init.file_pages, 10u);
  EXPECT_EQ(init.anonymous_pages, 20u);
  EXPECT_EQ(init.shared_pages, 30u);
  EXPECT_EQ(init.resident_pages(), 60u);
  EXPECT_FALSE(init.kernel);
  EXPECT_THAT(init.stacks, ElementsAre(kStack));
  EXPECT_TRUE(found->processes[1].kernel);
}

TEST(ListProcesses, CountersWithoutCpusAreUnderstood) {
  FakeUserSpace space(FakeUserSpaceOptions{.counters_by_cpu = false});
  space.add_process(7, "old", 1, 2, 3, kStack);
  const auto found = list(space);
  ASSERT_TRUE(found.ok());
  EXPECT_EQ(found->processes.at(0).anonymous_pages, 2u);
  EXPECT_EQ(found->processes.at(0).shared_pages, 3u);
}

TEST(ListProcesses, BrokenListIsIncomplete) {
  FakeUserSpace space;
  const GuestPhysical task = space.add_process(1, "init", 1, 1, 1, kStack);
  space.memory().write_le(task + FakeUserSpace::kTasks, u64{0});
  const auto found = list(space);
  ASSERT_TRUE(found.ok());
  EXPECT_FALSE(found->complete);
  EXPECT_EQ(found->processes.size(), 1u);
}

TEST(ListProcesses, ControlCharactersAreNotShown) {
  FakeUserSpace space;
  space.add_process(1, "a\x1b[2Jb", 1, 1, 1, kStack);
  EXPECT_EQ(list(space)->processes.at(0).name, "a?[2Jb");
}

TEST(ListProcesses, KernelWithoutTheTypesIsUnsupported) {
  FakeUserSpace space(FakeUserSpaceOptions{.task_types = false});
  const auto found = list(space);
  ASSERT_FALSE(found.ok());
  EXPECT_EQ(found.error().kind(), ErrorKind::kUnsupported);
}

}  // namespace
}  // namespace vmsieve
