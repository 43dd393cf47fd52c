// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/guest_ram.h"

#include <set>

namespace vmsieve {

namespace {

using Json = QmpClient::Json;

/// "child<pc-dimm>" -> "pc-dimm"; empty for a property that is no child.
std::string child_type(const Json& property) {
  constexpr std::string_view kChild = "child<";
  const std::string type = json_string(property, "type");
  if (!type.starts_with(kChild) || !type.ends_with('>')) return {};
  return type.substr(kChild.size(), type.size() - kChild.size() - 1);
}

bool is_ram_device(const std::string& type) {
  return type == "pc-dimm" || type == "virtio-mem" || type.starts_with("virtio-mem-");
}

/// Adds the memory objects that non-RAM devices of this container use.
Result<void> find_device_memory(QmpClient& qmp, const std::string& container, std::set<std::string>& ids) {
  VMSIEVE_ASSIGN(const Json devices, qmp.execute("qom-list", Json{{"path", container}}));
  if (!devices.is_array()) {
    return make_error(ErrorKind::kDamaged, "QEMU's answer to qom-list {} is no list", container);
  }
  for (const Json& device : devices) {
    const std::string type = child_type(device);
    if (type.empty() || is_ram_device(type)) continue;
    const std::string path = container + "/" + json_string(device, "name");
    auto memdev = qmp.execute("qom-get", Json{{"path", path}, {"property", "memdev"}});
    // Most devices have no such property.
    if (!memdev && memdev.error().kind() == ErrorKind::kRefused) continue;
    if (!memdev) return memdev.error();
    if (!memdev->is_string()) continue;
    const auto& object = memdev->get_ref<const std::string&>();
    ids.insert(object.substr(object.rfind('/') + 1));
  }
  return {};
}

}  // namespace

Result<std::vector<MemoryObject>> read_ram_objects(QmpClient& qmp) {
  std::set<std::string> device_memory;
  VMSIEVE_TRY(find_device_memory(qmp, "/machine/peripheral", device_memory));
  VMSIEVE_TRY(find_device_memory(qmp, "/machine/peripheral-anon", device_memory));

  VMSIEVE_ASSIGN(const Json memdevs, qmp.execute("query-memdev"));
  if (!memdevs.is_array()) return make_error(ErrorKind::kDamaged, "QEMU's answer to query-memdev is no list");
  std::vector<MemoryObject> objects;
  for (const Json& memdev : memdevs) {
    const std::string id = json_string(memdev, "id");
    if (id.empty() || device_memory.contains(id)) continue;
    objects.push_back({id, json_u64(memdev, "size").value_or(0)});
  }
  return objects;
}

}  // namespace vmsieve
