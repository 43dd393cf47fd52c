// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "vmsieve/base/fd.h"
#include "vmsieve/base/result.h"
#include "vmsieve/base/units.h"
#include "vmsieve/qemu/page_residency.h"

namespace vmsieve {

/// Another process's memory whose pages are still to come, by userfaultfd (Documentation/admin-guide/mm/
/// userfaultfd.rst, missing mode): a thread that touches a page that is not there waits until it is placed,
/// kernel threads that work for the process (KVM, vhost) too. Private anonymous memory, memfds, tmpfs files
/// and huge pages; not files of other file systems. Addresses are that process's; ranges are half-open and
/// whole pages of the memory behind them.
///
/// When the last descriptor of the userfaultfd is closed before end(), in whatever process, the kernel lets
/// all go on, and missing pages read as zeros. Whoever must not let that happen keeps one in the process
/// whose memory it is (RemoteUserfaultfd).
///
/// All calls may be made from several threads.
class MissingPages {
 public:
  /// Takes a userfaultfd that belongs to the other process and nothing was yet asked of. kUnsupported when
  /// the kernel cannot do it for shared memory and huge pages (Linux 4.11).
  static Result<MissingPages> make(UniqueFd userfaultfd);

  /// From the return on, pages of the range that are not there are missing. kUnsupported when its memory
  /// cannot be served so, kBusy when another userfaultfd has it.
  Result<void> add(ByteRange range);

  /// Puts bytes where pages are missing, and wakes who waits for them. Each page appears whole. kDamaged when
  /// one is there already, kVanished when the process or the mapping has gone.
  Result<void> place(u64 address, std::span<const std::byte> bytes) const;
  /// The same with zeros, as far as pages are missing; those that are there stay, and nobody waits any more
  /// for one of the range. Not for huge pages (the kernel cannot: place() zeros).
  Result<void> place_zeros(ByteRange range) const;
  /// Whoever waits for a page of the range looks again.
  void wake(ByteRange range) const;

  /// Waits up to `timeout_ms` for threads that wait for a page: the addresses, rounded down to kPageSize,
  /// in no order, maybe more than once each. Empty when there was none in time. kVanished when the process
  /// has gone.
  Result<std::vector<u64>> wait_for_faults(int timeout_ms) const;

  /// Nothing of the ranges is missing any more: what was not placed reads as zeros from now on.
  void end() const;

  int descriptor() const { return fd_.get(); }

 private:
  explicit MissingPages(UniqueFd fd) : fd_(std::move(fd)) {}

  UniqueFd fd_;
  std::vector<ByteRange> ranges_;
};

}  // namespace vmsieve
