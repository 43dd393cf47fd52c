// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace vmsieve {

/// Where running programs of this user keep what is gone after a reboot: /run/vmsieve, for others than root
/// $XDG_RUNTIME_DIR/vmsieve. Made (0700) if it is not there; empty where there is no place for it.
std::string runtime_folder();

}  // namespace vmsieve
