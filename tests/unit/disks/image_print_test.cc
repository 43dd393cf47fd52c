// SPDX-License-Identifier: Apache-2.0
// FilePrint: has a file changed?
#include <chrono>
#include <fstream>
#include <functional>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "unit/disks/image_fixture.h"

namespace vmsieve {
namespace {

using testing::HasSubstr;

constexpr u64 kHead = 64 << 10;
constexpr u64 kSample = 4096;
constexpr u64 kBlocks = 62;

class Print : public ImageFile {
 protected:
  FilePrint print() const {
    const auto print = print_of(path("disk"));
    EXPECT_TRUE(print.ok()) << print.error().message();
    return print.ok() ? *print : FilePrint{};
  }

  /// Changes the file, but not its mtime.
  void change(const std::function<void()>& how) const {
    const auto modified = fs::last_write_time(path("disk"));
    how();
    fs::last_write_time(path("disk"), modified);
  }

  void flip(u64 offset) const {
    change([&] {
      std::fstream file(path("disk"), std::ios::binary | std::ios::in | std::ios::out);
      file.seekg(static_cast<std::streamoff>(offset));
      const char c = static_cast<char>(file.get() ^ 1);
      file.seekp(static_cast<std::streamoff>(offset));
      file.put(c);
      EXPECT_TRUE(file) << offset;
    });
  }

  /// A byte at this offset changes the sample, and nothing else of the print.
  void expect_seen(u64 offset) const {
    const FilePrint before = print();
    flip(offset);
    const FilePrint after = print();
    EXPECT_NE(after.sample, before.sample) << offset;
    EXPECT_EQ(after.bytes, before.bytes);
    EXPECT_EQ(after.modified_ns, before.modified_ns);
    flip(offset);
    EXPECT_EQ(print(), before) << offset;
  }
};

TEST_F(Print, IsTheSameOfTheSameFile) {
  write("disk", std::string(100000, 'x'));
  const FilePrint first = print();
  EXPECT_EQ(print(), first);
  EXPECT_EQ(first.bytes, 100000u);
  struct stat info {};
  ASSERT_EQ(::stat(path("disk").c_str(), &info), 0);
  EXPECT_EQ(first.modified_ns,
            static_cast<u64>(info.st_mtim.tv_sec) * 1'000'000'000 + static_cast<u64>(info.st_mtim.tv_nsec));
  EXPECT_NE(first.sample, 0u);
}

TEST_F(Print, ChangesWithTheHeadTheTailAndEveryBlockBetween) {
  constexpr u64 kBytes = 8 << 20;
  write("disk", std::string(kBytes, '\0'));
  for (const u64 offset : {u64{0}, u64{1}, kHead - 1, kBytes - kSample, kBytes - 1}) expect_seen(offset);
  constexpr u64 kStep = (kBytes - kHead) / (kBlocks + 1);
  for (u64 i = 1; i <= kBlocks; ++i) {
    expect_seen(kHead + i * kStep);
    if (i % 10 == 0) expect_seen(kHead + i * kStep + kSample - 1);
  }
}

TEST_F(Print, SeesEveryByteOfASmallFile) {
  for (const u64 bytes : {u64{1}, u64{4095}, u64{4096}, kHead, kHead + 1, kHead + kSample}) {
    write("disk", std::string(bytes, '\0'));
    for (u64 offset = 0; offset < bytes; offset += std::max<u64>(1, bytes / 7)) expect_seen(offset);
    expect_seen(bytes - 1);
  }
}

TEST_F(Print, ChangesWithTheSize) {
  for (const u64 bytes : {u64{0}, u64{100}, kHead, u64{1} << 20}) {
    write("disk", std::string(bytes, '\0'));
    const FilePrint before = print();
    EXPECT_EQ(before.bytes, bytes);
    change([&] { fs::resize_file(path("disk"), bytes + 1); });
    const FilePrint after = print();
    EXPECT_EQ(after.bytes, bytes + 1);
    EXPECT_EQ(after.modified_ns, before.modified_ns);
  }
}

TEST_F(Print, ChangesWithTheTimeOfTheLastChange) {
  write("disk", "content");
  const FilePrint before = print();
  fs::last_write_time(path("disk"), fs::last_write_time(path("disk")) + std::chrono::nanoseconds{1});
  const FilePrint after = print();
  EXPECT_EQ(after.modified_ns, before.modified_ns + 1);
  EXPECT_EQ(after.sample, before.sample);
}

TEST_F(Print, OfALargeFileOnlyPartIsRead) {
  write("disk", "");
  fs::resize_file(path("disk"), u64{1} << 40);
  EXPECT_EQ(print().bytes, u64{1} << 40);
  expect_seen((u64{1} << 40) - 1);
}

TEST_F(Print, WhatIsNoFileHasNone) {
  EXPECT_EQ(print_of(path("none")).error().kind(), ErrorKind::kNotFound);
  ASSERT_EQ(::mkfifo(path("pipe").c_str(), 0600), 0);
  for (const std::string& other : {folder_, path("pipe"), std::string{"/dev/zero"}}) {
    const auto print = print_of(other);
    ASSERT_FALSE(print.ok()) << other;
    EXPECT_EQ(print.error().kind(), ErrorKind::kUnsupported) << other;
    EXPECT_THAT(print.error().message(), HasSubstr(other));
  }
}

class CheckPrint : public Print {
 protected:
  CheckPrint() {
    disk_.image = write("disk", std::string(kHead, 'x'));
    disk_.print = print();
  }
  std::string fault() const {
    const auto checked = check_print(disk_);
    if (checked.ok()) return "";
    EXPECT_EQ(checked.error().kind(), ErrorKind::kIncompatible);
    EXPECT_THAT(checked.error().message(), HasSubstr(disk_.image));
    return checked.error().message();
  }
  SavedDisk disk_;
};

TEST_F(CheckPrint, AnImageAsItWasIsTaken) { EXPECT_EQ(fault(), ""); }

TEST_F(CheckPrint, TellsWhatHasChanged) {
  flip(100);
  EXPECT_THAT(fault(), HasSubstr("its content has changed"));
  flip(100);
  EXPECT_EQ(fault(), "");
  fs::last_write_time(disk_.image, fs::last_write_time(disk_.image) - std::chrono::hours{1});
  EXPECT_THAT(fault(), HasSubstr("the time of its last change has changed"));
  fs::resize_file(disk_.image, kHead - 1);
  EXPECT_THAT(fault(), HasSubstr("its size has changed"));
}

TEST_F(CheckPrint, AnImageThatIsGoneIsNotFound) {
  fs::remove(disk_.image);
  EXPECT_EQ(check_print(disk_).error().kind(), ErrorKind::kNotFound);
}

}  // namespace
}  // namespace vmsieve
