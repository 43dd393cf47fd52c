// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/formats/output_file.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace vmsieve {
namespace {

namespace fs = std::filesystem;

class OutputFileTest : public testing::Test {
 protected:
  OutputFileTest() {
    std::string path = testing::TempDir() + "/output_file_XXXXXX";
    if (::mkdtemp(path.data()) == nullptr) std::abort();
    folder_ = path;
  }
  ~OutputFileTest() override { fs::remove_all(folder_); }
  std::string path() const { return folder_ / "out"; }
  std::size_t files() const {
    return static_cast<std::size_t>(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()));
  }
  static std::span<const std::byte> bytes(std::string_view text) { return std::as_bytes(std::span{text}); }

  fs::path folder_;
};

TEST_F(OutputFileTest, AppearsWhenItIsComplete) {
  auto file = OutputFile::create(path());
  ASSERT_TRUE(file) << file.error().message();
  ASSERT_TRUE((*file)->append(bytes("abc")));
  ASSERT_TRUE((*file)->write_at(kMiB, bytes("xyz")));
  EXPECT_FALSE(fs::exists(path()));
  const auto finished = (*file)->finish(2 * kMiB);
  ASSERT_TRUE(finished) << finished.error().message();
  EXPECT_EQ(fs::file_size(path()), 2 * kMiB);
  EXPECT_EQ((*file)->appended_bytes(), 3U);
  EXPECT_LT((*file)->allocated_bytes(), kMiB);
  file->reset();
  EXPECT_EQ(files(), 1U);
}

TEST_F(OutputFileTest, LeavesNothingBehindWhenItIsDropped) {
  auto file = OutputFile::create(path());
  ASSERT_TRUE(file && (*file)->append(bytes("abc")));
  file->reset();
  EXPECT_EQ(files(), 0U);
}

TEST_F(OutputFileTest, ReplacesNothing) {
  std::ofstream(path()) << "mine";
  EXPECT_EQ(OutputFile::create(path()).error().kind(), ErrorKind::kBusy);
  fs::remove(path());
  auto file = OutputFile::create(path());
  ASSERT_TRUE(file);
  std::ofstream(path()) << "mine";
  EXPECT_EQ((*file)->finish(0).error().kind(), ErrorKind::kBusy);
  file->reset();
  EXPECT_EQ(fs::file_size(path()), 4U);
  EXPECT_EQ(files(), 1U);
}

TEST_F(OutputFileTest, NamesTheFolderThatIsNotThere) {
  const auto file = OutputFile::create("/nowhere/at/all");
  ASSERT_FALSE(file);
  EXPECT_EQ(file.error().kind(), ErrorKind::kNotFound);
  EXPECT_THAT(file.error().message(), testing::HasSubstr("/nowhere/at"));
}

}  // namespace
}  // namespace vmsieve
