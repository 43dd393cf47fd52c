// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <sys/types.h>

#include "vmsieve/base/fd.h"
#include "vmsieve/base/result.h"
#include "vmsieve/qemu/page_residency.h"
#include "vmsieve/qemu/ram_layout.h"
#include "vmsieve/qemu/write_protection.h"

namespace vmsieve {

/// What is known of a VM whose writes are noted between its checkpoints.
struct TrackingRecord {
  struct Block {
    std::string name;
    u64 used_bytes = 0;
    ByteRange host;  ///< in QEMU
    friend bool operator==(const Block&, const Block&) = default;
  };

  pid_t qemu = 0;
  std::string vm_name;
  std::string store;
  /// The checkpoint since whose instant every write is noted; empty when there is none.
  std::string checkpoint;
  std::string why_none;       ///< one sentence, when there is none
  std::vector<Block> blocks;  ///< whose writes are noted

  friend bool operator==(const TrackingRecord&, const TrackingRecord&) = default;
};

std::string encode_tracking_record(const TrackingRecord& record);
/// kDamaged when it is not whole: a writer was killed.
Result<TrackingRecord> decode_tracking_record(std::string_view text);

/// The blocks of a layout, as a record has them.
std::vector<TrackingRecord::Block> tracked_blocks(const RamLayout& layout);

/// The writes of one VM are noted by the kernel (WriteProtection, kNote) as long as a process of ours, the
/// holder, keeps the userfaultfd open; Pagemap::written() asks about them, from any process. What is known is
/// in a file, `tracked-PID` in runtime_folder(), on which the holder has a record lock (fcntl(2)): the
/// kernel tells who holds it, and drops it with the holder. The holder ends with QEMU.
///
/// docs/incremental.md has the argument why no write is missed. Changes need the VM's VmLock.
class Tracking {
 public:
  /// None when the VM is not tracked, or no more.
  static Result<std::optional<Tracking>> find(pid_t qemu);
  /// Takes over a protection (kNote) of all `record.blocks` and forks the holder. Before large buffers are
  /// made: what is in memory is shared with it copy-on-write. kIo when there is no place for the file.
  static Result<Tracking> start(WriteProtection protection, const TrackingRecord& record);

  const TrackingRecord& record() const { return record_; }
  pid_t holder() const { return holder_; }
  /// Before the noted writes are taken: from here on no checkpoint is the one they are noted since.
  Result<void> forget_checkpoint(const std::string& why);
  /// After the commit.
  Result<void> set_checkpoint(const std::string& store, const std::string& checkpoint);
  /// Is the holder still there? Asked after writes were taken: then all were noted.
  bool is_held() const;
  /// Kills the holder; the VM is not tracked any more.
  Result<void> end();

 private:
  Tracking(std::string path, UniqueFd file, pid_t holder, TrackingRecord record)
      : path_(std::move(path)), file_(std::move(file)), holder_(holder), record_(std::move(record)) {}
  Result<void> write();

  std::string path_;
  UniqueFd file_;
  pid_t holder_ = -1;
  TrackingRecord record_;
};

}  // namespace vmsieve
