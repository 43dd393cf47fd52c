// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "vmsieve/base/fd.h"
#include "vmsieve/base/result.h"
#include "vmsieve/base/units.h"
#include "vmsieve/qemu/page_residency.h"

namespace vmsieve {

/// Write protection of another process's memory by userfaultfd (Documentation/admin-guide/mm/
/// userfaultfd.rst): a thread that writes to a protected page waits until the page is released.
/// Also kernel threads that write for the process (KVM, vhost). Addresses are that process's; ranges are
/// half-open, and whole pages of the memory behind them.
///
/// Or, asynchronous (kNote): the kernel lets the write through at once and takes the page's protection away,
/// which Pagemap::written() tells of. Any memory can be protected so, files on disks too.
///
/// The protection lives as long as this object: when it goes, or its process dies, whoever waits goes on.
/// All calls may be made from several threads. No descriptor of it may be inherited by another process.
class WriteProtection {
 public:
  enum class Mode { kWait, kNote };

  /// Takes a userfaultfd that belongs to the other process and nothing was yet asked of (take_userfaultfd()).
  /// kUnsupported when the kernel cannot do all that is needed: pages that were never touched protected too
  /// (UFFD_FEATURE_WP_UNPOPULATED, Linux 6.4), shared memory and huge pages
  /// (UFFD_FEATURE_WP_HUGETLBFS_SHMEM, 5.19); for kNote UFFD_FEATURE_WP_ASYNC (6.7).
  static Result<WriteProtection> make(UniqueFd userfaultfd, Mode mode = Mode::kWait);

  /// Prepares a range; nothing is protected yet. kUnsupported when its memory cannot be protected (a file of
  /// a file system on a disk), kBusy when another userfaultfd has it.
  Result<void> add(ByteRange range);

  /// From the return on, every write to the range waits. About 4 ms a GiB.
  Result<void> protect(ByteRange range) const;
  /// Writes to the range go through again, those that wait first of all.
  Result<void> release(ByteRange range) const;

  /// kWait only. Waits up to `timeout_ms` for writes that wait: the addresses of their pages, in no order,
  /// maybe more than once each. Empty when there was none in time.
  Result<std::vector<u64>> wait_for_writes(int timeout_ms) const;

  /// The descriptor, and with it the duty to end the protection; for a process that is forked.
  int descriptor() const { return fd_.get(); }
  /// The protection goes on until the last process that has the descriptor closes it.
  void hand_over() { fd_.reset(); }

  /// Ends the protection of all ranges that were added: whoever waits goes on. Calls of other threads that
  /// are under way may fail.
  void end() const;

  WriteProtection(WriteProtection&&) = default;
  WriteProtection& operator=(WriteProtection&&) = default;
  ~WriteProtection();

 private:
  explicit WriteProtection(UniqueFd fd) : fd_(std::move(fd)) {}
  Result<void> change(ByteRange range, u64 mode, const char* what) const;

  UniqueFd fd_;
  std::vector<ByteRange> ranges_;
};

}  // namespace vmsieve
