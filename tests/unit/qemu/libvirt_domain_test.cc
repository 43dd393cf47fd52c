// SPDX-License-Identifier: Apache-2.0
// What LibvirtDomain makes of a program vmsieve-libvirt that answers this or that; the real one is met in
// tests/e2e/test_libvirt.py.
#include "vmsieve/qemu/libvirt_domain.h"

#include <sys/stat.h>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace vmsieve {
namespace {

using testing::HasSubstr;

class LibvirtProgram : public testing::Test {
 protected:
  LibvirtProgram() {
    std::string folder = testing::TempDir() + "vmsieve-libvirt-XXXXXX";
    if (::mkdtemp(folder.data()) == nullptr) std::abort();
    folder_ = folder;
    path_ = std::getenv("PATH");
    ::setenv("PATH", (folder + ":" + path_).c_str(), 1);
  }
  ~LibvirtProgram() override {
    ::setenv("PATH", path_.c_str(), 1);
    std::filesystem::remove_all(folder_);
  }

  /// The program is a shell script of these lines.
  void is(const std::string& lines) const {
    const std::filesystem::path program = folder_ / "vmsieve-libvirt";
    std::ofstream{program} << "#!/bin/sh\n" << lines << "\n";
    ::chmod(program.c_str(), 0700);
  }

  static Error failure() {
    const auto domain = LibvirtDomain::open("web1", "");
    EXPECT_FALSE(domain.ok());
    return domain.ok() ? Error(ErrorKind::kUsage, "no failure") : domain.error();
  }

  std::filesystem::path folder_;
  std::string path_;
};

TEST_F(LibvirtProgram, NotInstalledIsUnsupported) {
  ::setenv("PATH", "/nowhere", 1);
  EXPECT_EQ(failure().kind(), ErrorKind::kUnsupported);
  EXPECT_THAT(failure().message(), HasSubstr("not installed"));
}

TEST_F(LibvirtProgram, ItsAnswerIsTakenAndItEndsWithTheObject) {
  is(R"(echo "{\"name\":\"$3\",\"uuid\":\"u\",\"uri\":\"$4\"}"; read -r word; touch "$0.ended")");
  {
    const auto domain = LibvirtDomain::open("web1", "test:///default");
    ASSERT_TRUE(domain.ok()) << domain.error().message();
    EXPECT_EQ((*domain)->name(), "web1");
    EXPECT_EQ((*domain)->uri(), "test:///default");
    EXPECT_EQ((*domain)->uuid(), "u");
    EXPECT_THAT((*domain)->qmp_path(), HasSubstr("libvirt-"));
  }
  EXPECT_TRUE(std::filesystem::exists(folder_ / "vmsieve-libvirt.ended"));
}

TEST_F(LibvirtProgram, ItsErrorsArePassedOn) {
  is(R"(echo '{"error":"no such domain","kind":"not-found"}')");
  EXPECT_EQ(failure().kind(), ErrorKind::kNotFound);
  EXPECT_EQ(failure().message(), "no such domain");
  is(R"(echo '{"error":"who knows","kind":"new"}')");
  EXPECT_EQ(failure().kind(), ErrorKind::kRefused);
}

TEST_F(LibvirtProgram, WhatIsNoAnswerIsAnError) {
  for (const char* lines :
       {"true", "echo", "echo nonsense", "echo '[1]'", "printf '{'", "exit 3", "kill -9 $$"}) {
    is(lines);
    EXPECT_EQ(failure().kind(), ErrorKind::kVanished) << lines;
  }
}

TEST_F(LibvirtProgram, RestoreSaysWhatLibvirtSays) {
  is(R"([ "$1 $3" = "restore paused" ] && echo '{}')");
  EXPECT_TRUE(restore_libvirt_image("/image", false, ""));
  is(R"(echo '{"error":"domain is active","kind":"refused"}'; exit 1)");
  const auto refused = restore_libvirt_image("/image", true, "");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind(), ErrorKind::kRefused);
}

}  // namespace
}  // namespace vmsieve
