// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include "vmsieve/base/result.h"
#include "vmsieve/disks/image_file.h"
#include "vmsieve/disks/qemu_img.h"

namespace vmsieve {

namespace fs = std::filesystem;

inline void put(std::string& bytes, std::size_t at, u64 value, std::size_t size) {
  for (std::size_t i = 0; i < size; ++i) bytes[at + i] = static_cast<char>(value >> (8 * (size - 1 - i)));
}

/// The first bytes of a qcow2 image of version 3 that has `name` at `offset`.
inline std::string header(u64 offset, u64 length, std::string_view name) {
  std::string bytes(104, '\0');
  bytes.replace(0, 4, "QFI\xfb");
  put(bytes, 4, 3, 4);
  put(bytes, 8, offset, 8);
  put(bytes, 16, length, 4);
  put(bytes, 20, 16, 4);
  put(bytes, 24, 1 << 20, 8);
  return bytes + std::string{name};
}

inline std::string header_of(std::string_view name) { return header(104, name.size(), name); }

/// Files in a folder of the test's own.
class ImageFile : public testing::Test {
 protected:
  ImageFile() {
    std::string pattern = (fs::temp_directory_path() / "vmsieve-test-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) std::abort();
    folder_ = fs::canonical(pattern).string();
  }
  ~ImageFile() override {
    std::error_code ignored;
    fs::remove_all(folder_, ignored);
  }

  std::string path(const std::string& name) const { return folder_ + "/" + name; }

  std::string write(const std::string& name, std::string_view content) const {
    std::ofstream file(path(name), std::ios::binary | std::ios::trunc);
    file.write(content.data(), static_cast<std::streamsize>(content.size()));
    EXPECT_TRUE(file) << name;
    return path(name);
  }

  /// One of no content with only a header, over `backing`; no backing file when that is empty.
  std::string write_qcow2(const std::string& name, std::string_view backing) const {
    return write(name, backing.empty() ? header(0, 0, "") : header_of(backing));
  }

  /// By qemu-img.
  std::string create(const std::string& name, const std::string& backing = "") const {
    std::vector<std::string> arguments{"create", "-q", "-f", "qcow2"};
    if (!backing.empty())
      arguments.insert(arguments.end(), {"-F", backing.ends_with("raw") ? "raw" : "qcow2", "-b", backing});
    arguments.insert(arguments.end(), {path(name), "1M"});
    const auto made = run_qemu_img(arguments);
    EXPECT_TRUE(made.ok()) << made.error().message();
    return path(name);
  }

  std::string folder_;
};

}  // namespace vmsieve
