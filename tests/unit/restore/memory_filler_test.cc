// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/restore/memory_filler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "unit/restore/restored_memory.h"

namespace vmsieve {
namespace {

using testing::HasSubstr;

class MemoryFillerTest : public RestoredMemoryTest {
 protected:
  Result<SentPages> fill(const ProgressFunction& progress = {}) {
    VMSIEVE_ASSIGN(const auto reader, CheckpointReader::open(*store_, kId));
    const FreshMemory fresh{reader_.layout(), {true}, {0}};
    return fill_memory(*reader, reader->index(), fresh, reader_.pid(), 2, progress);
  }
};

INSTANTIATE_TEST_SUITE_P(Memory, MemoryFillerTest, testing::Bool(), [](const auto& instance) {
  return instance.param ? std::string("shared") : std::string("private");
});

TEST_P(MemoryFillerTest, EveryPageIsWhatWasSaved) {
  Progress last;
  const auto sent = fill([&last](const Progress& progress) { last = progress; });
  ASSERT_TRUE(sent) << sent.error().message();
  EXPECT_EQ(sent->data + sent->fill, kPages / 4 * 3);
  EXPECT_EQ(last.total_bytes, sent->data * kPageSize);
  reader_.board().go = true;
  EXPECT_TRUE(reader_.is_done());
  EXPECT_EQ(reader_.board().checked, kPages);
  EXPECT_EQ(reader_.board().wrong, 0U);
}

TEST_P(MemoryFillerTest, ADamagedFrameEndsIt) {
  damage();
  const auto sent = fill();
  ASSERT_FALSE(sent);
  EXPECT_EQ(sent.error().kind(), ErrorKind::kDamaged);
  EXPECT_THAT(sent.error().message(), HasSubstr("checksum"));
}

TEST_P(MemoryFillerTest, AProcessThatIsGoneIsSaidToBe) {
  ::kill(reader_.pid(), SIGKILL);
  ASSERT_EQ(reader_.end_signal(), SIGKILL);
  const auto sent = fill();
  ASSERT_FALSE(sent);
  EXPECT_EQ(sent.error().kind(), ErrorKind::kVanished);
}

}  // namespace
}  // namespace vmsieve
