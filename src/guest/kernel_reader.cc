// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/guest/kernel_reader.h"

#include <algorithm>
#include <vector>

namespace vmsieve {

std::optional<std::string> KernelReader::text(GuestVirtual address, u64 max_bytes) const {
  std::string result;
  while (result.size() < max_bytes) {
    const GuestVirtual at = address + result.size();
    std::vector<std::byte> bytes(std::min(max_bytes - result.size(), kPageSize - at.value % kPageSize));
    if (!read_virtual(memory_, tables_, at, bytes).ok()) {
      if (result.empty()) return std::nullopt;
      break;
    }
    for (const std::byte byte : bytes) {
      const auto c = static_cast<char>(byte);
      if (c == '\0') return result;
      // UTF-8 passes, control characters do not.
      result.push_back((static_cast<u8>(byte) < 0x20 || c == 0x7f) ? '?' : c);
    }
  }
  return result;
}

}  // namespace vmsieve
