// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "vmsieve/store/directory_io.h"
#include "vmsieve/store/store.h"
#include "vmsieve/store/write_queue.h"

namespace vmsieve {

/// What a checkpoint's writer knows of one of its objects while its ObjectWriter lives elsewhere.
struct ObjectProgress {
  std::string name;
  u64 bytes = 0;
  bool finished = false;
};

/// An object of a directory store being written, past the page cache where the file system allows it: that
/// does not push the host's own working set out, and is several times as fast. Bytes are gathered in buffers
/// of kStagingBytes, or written from where they are (append_in_place()); where the kernel has io_uring,
/// several writes are under way at once, into room that was allocated ahead, since a file that grows takes
/// one at a time (fs/ext4/file.c, ext4_dio_write_checks()).
///
/// After a failed write every later call fails with the same error.
class DirectoryObjectWriter : public ObjectWriter {
 public:
  static constexpr u64 kStagingBytes = kMiB;
  /// What O_DIRECT wants of addresses, offsets and lengths, on every disk of 512 or 4096-byte sectors.
  static constexpr u64 kDirectAlignment = 4096;

  /// Makes the file, which must not be there. `progress` is updated by finish().
  static Result<std::unique_ptr<ObjectWriter>> make(const Directory& folder, const std::string& name,
                                                    std::shared_ptr<ObjectProgress> progress);
  ~DirectoryObjectWriter() override;

  Result<void> append(std::span<const std::byte> bytes) override;
  Result<void> append_in_place(std::span<const std::byte> bytes, std::function<void()> release) override;
  bool settle_one() override;
  u64 size() const override { return written_ + staged_; }
  Result<void> finish() override;
  /// Does the file system take O_DIRECT?
  bool direct() const { return direct_; }
  /// Are several writes under way at once?
  bool queued() const { return queue_ != nullptr; }

 private:
  struct FreeStaging {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  using Staging = std::unique_ptr<std::byte, FreeStaging>;

  DirectoryObjectWriter(UniqueFd fd, std::string path, std::shared_ptr<ObjectProgress> progress);
  Result<void> check_open() const;
  Result<void> take_staging();
  Result<void> begin(std::span<const std::byte> bytes, std::function<void()> release);
  Result<void> write_out(std::span<const std::byte> bytes, u64 offset);
  void allocate_ahead(u64 end);
  void end(const WriteQueue::Ended& ended);
  void settle_all();
  Result<void> flush();
  Result<void> push_out_of_page_cache();
  bool stop_direct();
  Error fail(Error error);

  UniqueFd fd_;
  std::string path_;
  std::shared_ptr<ObjectProgress> progress_;
  std::unique_ptr<WriteQueue> queue_;  ///< none where it cannot be had, or would not help
  std::size_t staging_count_ = 0;      ///< buffers of kStagingBytes that were made
  std::vector<Staging> spare_;         ///< those that nobody uses
  Staging staging_;                    ///< the one that is being filled
  u64 staged_ = 0;                     ///< bytes in staging_
  u64 written_ = 0;                    ///< bytes handed to the kernel
  u64 allocated_ = 0;                  ///< bytes that the file has room for
  u64 pushed_ = 0;                     ///< bytes known to be on the disk and dropped from the page cache
  bool direct_ = false;
  std::optional<Error> failed_;
};

/// An object of a directory store. The file stays readable when it is removed meanwhile, and a shared lock on
/// it keeps a sweep from taking bytes of it.
class DirectoryObjectReader : public ObjectReader {
 public:
  /// kBusy when a sweep has been taking bytes of it for half a minute.
  static Result<std::unique_ptr<ObjectReader>> open(const Directory& folder, const std::string& name);

  u64 size() const override { return size_; }
  Result<void> read(u64 offset, std::span<std::byte> out) const override;
  void expect_one_pass() const override;

 private:
  Result<void> read_direct(u64 offset, std::span<std::byte> out) const;
  Result<void> read_without_direct(u64 offset, std::span<std::byte> out) const;

  DirectoryObjectReader(FileLock file, std::string path, u64 size)
      : file_(std::move(file)), path_(std::move(path)), size_(size) {}

  FileLock file_;
  std::string path_;
  u64 size_;
  mutable std::atomic<bool> direct_ = false;  ///< the descriptor is O_DIRECT
};

}  // namespace vmsieve
