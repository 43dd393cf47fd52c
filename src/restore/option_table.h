// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

namespace vmsieve {

/// Does a QEMU option take an argument?
enum class OptionShape { kFlag, kArgument, kUnknown };

/// By QEMU's table qemu-options.hx, the union of the releases from 5.2 to 11: an option that one
/// of them knows has the same shape in all. `name` without dashes.
OptionShape option_shape(std::string_view name);

/// One name for the options that have two: "M" is "machine", "h" is "help".
std::string_view canonical_option(std::string_view name);

/// For options that may stand more than once, each with a name of its own: the key that carries
/// the name ("id", "node-name"); empty for all others.
std::string_view id_key(std::string_view name);

/// The key that the first part of the option's value has when it is given without one
/// (`-netdev user,...` is `type=user`); empty when there is none.
std::string_view implied_key(std::string_view name);

}  // namespace vmsieve
