// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/machine.h"

#include "vmsieve/qemu/arm64_vcpus.h"
#include "vmsieve/qemu/monitor_text.h"

namespace vmsieve {

namespace {

using Json = QmpClient::Json;

Error no_sense(std::string_view command) {
  return make_error(ErrorKind::kDamaged, "QEMU's answer to {} lacks what it must hold", command);
}

/// Where the vCPUs that run kernel code are in physical memory. A guest that runs on may leave any of
/// it behind between the questions.
Result<void> ask_physical(QmpClient& qmp, std::vector<Arm64Vcpu>& vcpus) {
  for (Arm64Vcpu& vcpu : vcpus) {
    if (vcpu.exception_level() != 1) continue;
    VMSIEVE_ASSIGN(const Json reply, qmp.execute("human-monitor-command",
                                                 Json{{"command-line", fmt::format("gva2gpa {:#x}", vcpu.pc)},
                                                      {"cpu-index", vcpu.index}}));
    if (reply.is_string()) vcpu.pc_physical = parse_gva2gpa(reply.get_ref<const std::string&>());
  }
  return {};
}

Result<Vcpus> read_arm64_vcpus(QmpClient& qmp) {
  VMSIEVE_ASSIGN(const RunState state, read_run_state(qmp));
  VMSIEVE_ASSIGN(const std::string text, qmp.human("info registers -a"));
  VMSIEVE_ASSIGN(std::vector<Arm64Vcpu> vcpus, parse_arm64_registers(text));
  if (state.running) {
    VMSIEVE_TRY(ask_physical(qmp, vcpus));
  } else {
    // On a running machine this would stop it.
    VMSIEVE_ASSIGN(const std::vector<std::byte> device_state, save_device_state(qmp));
    add_arm64_system_registers(device_state, vcpus);
  }
  return Vcpus{std::move(vcpus)};
}

}  // namespace

Result<Vcpus> read_vcpus(QmpClient& qmp) {
  VMSIEVE_ASSIGN(const Json target, qmp.execute("query-target"));
  const std::string architecture = json_string(target, "arch");
  if (architecture.empty()) return no_sense("query-target");
  if (architecture == "aarch64") return read_arm64_vcpus(qmp);
  if (architecture == "x86_64" || architecture == "i386") {
    VMSIEVE_ASSIGN(const std::string text, qmp.human("info registers -a"));
    VMSIEVE_ASSIGN(std::vector<X86Vcpu> vcpus, parse_info_registers(text));
    return Vcpus{std::move(vcpus)};
  }
  VMSIEVE_ASSIGN(const Json vcpus, qmp.execute("query-cpus-fast"));
  if (!vcpus.is_array()) return no_sense("query-cpus-fast");
  return Vcpus{UnknownVcpus{architecture, vcpus.size()}};
}

Result<std::string> read_machine_type(QmpClient& qmp) {
  constexpr std::string_view kSuffix = "-machine";
  VMSIEVE_ASSIGN(const Json reply, qmp.execute("qom-get", Json{{"path", "/machine"}, {"property", "type"}}));
  if (!reply.is_string()) return no_sense("qom-get /machine type");
  std::string type = reply.get<std::string>();
  if (type.ends_with(kSuffix)) type.resize(type.size() - kSuffix.size());
  return type;
}

Result<RunState> read_run_state(QmpClient& qmp) {
  VMSIEVE_ASSIGN(const Json reply, qmp.execute("query-status"));
  RunState state{json_true(reply, "running"), json_string(reply, "status")};
  if (state.status.empty()) return no_sense("query-status");
  return state;
}

Result<std::string> read_accelerator(QmpClient& qmp) {
  VMSIEVE_ASSIGN(const Json reply, qmp.execute("query-kvm"));
  return std::string{json_true(reply, "enabled") ? "kvm" : "tcg"};
}

Result<void> check_migratable(QmpClient& qmp) {
  VMSIEVE_ASSIGN(const Json reply, qmp.execute("query-migrate"));
  if (!reply.is_object()) return no_sense("query-migrate");
  const auto reasons = reply.find("blocked-reasons");
  if (reasons == reply.end()) return {};
  std::string text;
  if (reasons->is_array()) {
    for (const Json& reason : *reasons) {
      if (reason.is_string()) text += (text.empty() ? "" : "; ") + reason.get_ref<const std::string&>();
    }
  }
  if (text.empty()) return no_sense("query-migrate");
  return make_error(ErrorKind::kRefused, "QEMU cannot save the state of this machine: {}", text);
}

Result<std::vector<WritableDisk>> read_writable_disks(QmpClient& qmp) {
  VMSIEVE_ASSIGN(const Json reply, qmp.execute("query-block"));
  if (!reply.is_array()) return no_sense("query-block");
  std::vector<WritableDisk> disks;
  for (const Json& device : reply) {
    if (!device.is_object()) return no_sense("query-block");
    // A drive without a medium has no "inserted".
    const auto inserted = device.find("inserted");
    if (inserted == device.end() || !inserted->is_object() || json_true(*inserted, "ro")) continue;
    std::string name = json_string(device, "device");
    if (name.empty()) name = json_string(*inserted, "node-name");
    if (name.empty()) name = json_string(device, "qdev");
    WritableDisk disk{.device = std::move(name),
                      .file = json_string(*inserted, "file"),
                      .drive = json_string(device, "device"),
                      .qdev = json_string(device, "qdev"),
                      .node = json_string(*inserted, "node-name"),
                      .driver = json_string(*inserted, "drv"),
                      .detect_zeroes = json_string(*inserted, "detect_zeroes")};
    if (const auto image = inserted->find("image"); image != inserted->end() && image->is_object()) {
      disk.virtual_bytes = json_u64(*image, "virtual-size").value_or(0);
      disk.encrypted = json_true(*image, "encrypted");
    }
    if (const auto cache = inserted->find("cache"); cache != inserted->end()) {
      disk.direct = json_true(*cache, "direct");
      disk.no_flush = json_true(*cache, "no-flush");
    }
    disks.push_back(std::move(disk));
  }
  return disks;
}

std::optional<std::string> image_path(const std::string& file) {
  constexpr unsigned kMaxLevels = 32;
  if (file.starts_with("json:")) {
    const Json whole = Json::parse(file.begin() + 5, file.end(), nullptr, /*allow_exceptions=*/false);
    const Json* node = &whole;
    for (unsigned level = 0; level < kMaxLevels && node->is_object(); ++level) {
      const auto inner = node->find("file");
      if (inner == node->end() || !inner->is_object()) break;
      node = &*inner;
    }
    const std::string driver = json_string(*node, "driver");
    const std::string path = json_string(*node, "filename");
    if ((driver != "file" && driver != "host_device") || path.empty()) return std::nullopt;
    return path;
  }
  const std::string path = file.starts_with("file:") ? file.substr(5) : file;
  // A protocol: a colon before the first slash (QEMU block.c, path_has_protocol).
  const std::size_t colon = path.find(':');
  if (path.empty() || (colon != std::string::npos && colon < path.find('/'))) return std::nullopt;
  return path;
}

}  // namespace vmsieve
