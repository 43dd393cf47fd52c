// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/base/units.h"

namespace vmsieve {

/// Guest-physical memory, wherever its bytes are: in a running QEMU, in a checkpoint file, in a
/// fake made by a test.
///
/// Reads do not change the guest and must not make the host allocate memory for pages that the
/// guest never touched (those read as zeros). All calls may be made from several threads at once.
class GuestMemory {
 public:
  virtual ~GuestMemory() = default;

  /// The page frames that are RAM, ascending, not overlapping, not adjacent. Owned by this object.
  virtual std::span<const PfnRange> ram() const = 0;

  /// Copies [address, address + out.size()) into `out`. The range may cross page frames and RAM
  /// ranges that adjoin, not holes: a byte outside RAM is kDamaged (the address came from the
  /// guest) and `out` is then unspecified.
  virtual Result<void> read(GuestPhysical address, std::span<std::byte> out) const = 0;

  /// The page frames inside `range` that may hold something other than zeros: a superset of what
  /// was ever touched, ascending. The default says: all of it.
  virtual std::vector<PfnRange> resident(PfnRange range) const { return {range}; }

 protected:
  GuestMemory() = default;
  GuestMemory(const GuestMemory&) = default;
  GuestMemory& operator=(const GuestMemory&) = default;
};

}  // namespace vmsieve
