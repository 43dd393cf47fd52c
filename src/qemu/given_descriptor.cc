// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/given_descriptor.h"

#include "vmsieve/qemu/qmp_wire.h"

namespace vmsieve {

namespace {

using Json = QmpClient::Json;

constexpr const char* kMark = "vmsieve";
constexpr u64 kMaxDescriptor = u64{1} << 30;

}  // namespace

Result<GivenDescriptor> give_descriptor(QmpClient& qmp, int fd, QmpClient::Milliseconds patience) {
  VMSIEVE_ASSIGN(const Json added, qmp.execute("add-fd", Json{{"opaque", kMark}}, patience, fd));
  const auto set = json_u64(added, "fdset-id");
  const auto number = json_u64(added, "fd");
  if (!set || !number || *number > kMaxDescriptor)
    return make_error(ErrorKind::kDamaged, "QEMU's answer to add-fd lacks what it must hold");
  return GivenDescriptor{*set, *number};
}

Result<void> take_back_descriptor(QmpClient& qmp, const GivenDescriptor& given) {
  VMSIEVE_TRY(qmp.execute("remove-fd", Json{{"fdset-id", given.set}}));
  return {};
}

Result<void> take_back_left_descriptors(QmpClient& qmp) {
  VMSIEVE_ASSIGN(const Json sets, qmp.execute("query-fdsets"));
  if (!sets.is_array()) return Error(ErrorKind::kDamaged, "QEMU's answer to query-fdsets is no list");
  for (const Json& set : sets) {
    const auto number = json_u64(set, "fdset-id");
    const auto fds = set.is_object() ? set.find("fds") : set.end();
    if (!number || fds == set.end() || !fds->is_array()) continue;
    for (const Json& one : *fds) {
      const auto fd = json_u64(one, "fd");
      if (!fd || json_string(one, "opaque") != kMark) continue;
      // It may go by itself meanwhile: QEMU closes what nobody has opened when its last monitor is closed.
      (void)qmp.execute("remove-fd", Json{{"fdset-id", *number}, {"fd", *fd}});
    }
  }
  return {};
}

}  // namespace vmsieve
