// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "vmsieve/guest/page_tables.h"

namespace vmsieve {

/// How arm64 translates addresses of the kernel's half: what TCR_EL1 says of TTBR1_EL1 (Arm ARM,
/// D24.2.206, D8.2).
struct Arm64Translation {
  u32 page_shift = 12;  ///< the granule: 12, 14 or 16
  u32 va_bits = 48;     ///< 64 - T1SZ; see possible()
  bool lpa2 = false;    ///< TCR_EL1.DS: 52-bit addresses with granules of 4 and 16 KiB

  /// 25 to 52 address bits, more than 48 with 4 and 16 KiB only under LPA2, which 64 KiB does not have.
  bool possible() const;
  friend bool operator==(const Arm64Translation&, const Arm64Translation&) = default;
};

/// The tables of the kernel's half at `top`; `translation` must be possible().
PageTableRoot arm64_page_tables(GuestPhysical top, const Arm64Translation& translation);

/// Bytes of the table at the top.
u64 arm64_top_table_bytes(const Arm64Translation& translation);

}  // namespace vmsieve
