// SPDX-License-Identifier: Apache-2.0
// VMCOREINFO text of any kind: parsed, asked for everything that the program asks for, and made into
// a kernel and a page layout.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "vmsieve/guest/linux_kernel.h"
#include "vmsieve/guest/vmcoreinfo.h"
#include "vmsieve/pages/page_layout.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace vmsieve;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  auto info = VmcoreInfo::parse(text);
  if (!info.ok()) return 0;
  VMSIEVE_CHECK(!info->release().empty() && info->text().size() <= VmcoreInfo::kMaxTextBytes);
  const auto layout = PageLayout::from(*info);
  if (layout.ok()) {
    VMSIEVE_CHECK(layout->page_bytes >= 32 && layout->type_offset + 4 <= layout->page_bytes);
    VMSIEVE_CHECK(layout->orders >= 1 && layout->orders <= kMaxOrders);
  }
  (void)LinuxKernel::from_vmcoreinfo(*std::move(info), GuestPhysical{0});
  return 0;
}
