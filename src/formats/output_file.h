// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <span>
#include <string>

#include "vmsieve/base/fd.h"
#include "vmsieve/base/result.h"

namespace vmsieve {

/// A file that appears under its name when it is complete, and not before: until then it has another name in
/// the same folder, and an export that fails or is dropped leaves nothing behind. What is not written is a
/// hole and reads as zeros. From one thread.
class OutputFile {
 public:
  /// kBusy when there is something of that name already. "-" is standard output; it and a FIFO take append()
  /// only. Waits until somebody reads from the FIFO. Where the file system can, a file has no name at all
  /// until it is complete, and is gone with a process that is killed.
  static Result<std::unique_ptr<OutputFile>> create(const std::string& path);
  /// Takes append() only: what create() would make of this path.
  static bool would_be_stream(const std::string& path);
  /// A pipe or the like that is open already; it takes append() only.
  static std::unique_ptr<OutputFile> stream(UniqueFd fd, std::string name);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  Result<void> append(std::span<const std::byte> bytes);
  Result<void> write_at(u64 offset, std::span<const std::byte> bytes);
  /// Makes it `bytes` long and durable, and gives it its name.
  Result<void> finish(u64 bytes);

  u64 appended_bytes() const { return appended_; }
  /// What it takes of the disk; 0 for standard output.
  u64 allocated_bytes() const;

 private:
  OutputFile(UniqueFd fd, std::string path, std::string partial, bool stream);
  Result<void> give_name();

  UniqueFd fd_;
  std::string path_;
  std::string partial_;  ///< its name until it is complete; empty where it has none
  const bool stream_;
  u64 appended_ = 0;
};

}  // namespace vmsieve
