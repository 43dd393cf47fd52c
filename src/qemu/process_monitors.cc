// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/process_monitors.h"

#include <algorithm>

#include "vmsieve/base/numbers.h"
#include "vmsieve/qemu/option_string.h"
#include "vmsieve/qemu/qmp_wire.h"

namespace vmsieve {

namespace {

/// QEMU takes options with one dash or two.
std::string_view option_name(std::string_view argument) {
  if (!argument.starts_with('-')) return {};
  argument.remove_prefix(argument.starts_with("--") ? 2 : 1);
  return argument;
}

/// Calls `visit(name, value)` for each option that is followed by another argument.
template <typename Visitor>
void for_each_option(const std::vector<std::string>& arguments, Visitor visit) {
  for (std::size_t i = 1; i + 1 < arguments.size(); ++i) {
    const std::string_view name = option_name(arguments[i]);
    if (!name.empty()) visit(name, std::string_view{arguments[i + 1]});
  }
}

/// Does QEMU listen (else it is the client, and nobody can connect to it)? A path, no abstract name.
bool listens_on_path(const OptionString& options) {
  const std::string server = options.get("server").value_or("off");
  return server != "off" && server != "no" && server != "false" && options.get("abstract") != "on";
}

std::optional<MonitorSocket> socket_of_chardev(const OptionString& options) {
  if (options.get("backend") != "socket" || !listens_on_path(options)) return std::nullopt;
  if (const auto path = options.get("path")) return MonitorSocket{*path, std::nullopt};
  if (const auto fd = options.get("fd")) {
    if (const auto number = parse_number(*fd)) return MonitorSocket{{}, number};
  }
  return std::nullopt;
}

/// The argument of -qmp is a character device in its short form (chardev/char.c,
/// qemu_chr_parse_compat): "unix:PATH,server=on".
std::optional<MonitorSocket> socket_of_short_form(std::string_view text) {
  constexpr std::string_view kUnix = "unix:";
  if (!text.starts_with(kUnix)) return std::nullopt;
  const OptionString options{text.substr(kUnix.size()), "path"};
  const auto path = options.get("path");
  if (!listens_on_path(options) || !path || path->empty()) return std::nullopt;
  return MonitorSocket{*path, std::nullopt};
}

std::map<std::string, MonitorSocket> listening_chardevs(const std::vector<std::string>& arguments) {
  std::map<std::string, MonitorSocket> chardevs;
  for_each_option(arguments, [&](std::string_view name, std::string_view value) {
    if (name != "chardev") return;
    const OptionString options{value, "backend"};
    const auto id = options.get("id");
    const auto socket = socket_of_chardev(options);
    if (id && socket) chardevs[*id] = *socket;
  });
  return chardevs;
}

}  // namespace

std::optional<std::string> guest_agent_socket(const std::vector<std::string>& arguments) {
  constexpr std::string_view kAgent = "org.qemu.guest_agent.0";
  const auto chardevs = listening_chardevs(arguments);
  std::optional<std::string> path;
  for_each_option(arguments, [&](std::string_view name, std::string_view value) {
    if (name != "device") return;
    std::string port, chardev;
    if (value.starts_with('{')) {
      const auto json = nlohmann::json::parse(value, nullptr, /*allow_exceptions=*/false);
      port = json_string(json, "name");
      chardev = json_string(json, "chardev");
    } else {
      const OptionString options{value, "driver"};
      port = options.get("name").value_or("");
      chardev = options.get("chardev").value_or("");
    }
    const auto socket = chardevs.find(chardev);
    if (port == kAgent && socket != chardevs.end() && !socket->second.path.empty())
      path = socket->second.path;
  });
  return path;
}

std::vector<MonitorSocket> monitor_sockets(const std::vector<std::string>& arguments) {
  const std::map<std::string, MonitorSocket> chardevs = listening_chardevs(arguments);

  std::vector<MonitorSocket> sockets;
  const auto add_chardev = [&](const std::string& id) {
    const auto chardev = chardevs.find(id);
    if (chardev != chardevs.end()) sockets.push_back(chardev->second);
  };
  for_each_option(arguments, [&](std::string_view name, std::string_view value) {
    constexpr std::string_view kChardev = "chardev:";
    if (name == "qmp" || name == "qmp-pretty") {
      if (value.starts_with(kChardev)) return add_chardev(std::string{value.substr(kChardev.size())});
      if (const auto socket = socket_of_short_form(value)) sockets.push_back(*socket);
    } else if (name == "mon") {
      const OptionString options{value, "chardev"};
      if (options.get("mode") == "control") add_chardev(options.get("chardev").value_or(""));
    }
  });
  return sockets;
}

std::string guest_name(const std::vector<std::string>& arguments) {
  std::string guest;
  for_each_option(arguments, [&](std::string_view name, std::string_view value) {
    if (name == "name") guest = OptionString{value, "guest"}.get("guest").value_or(guest);
  });
  return guest;
}

bool is_qemu_program(std::string_view program) {
  constexpr std::string_view kDeleted = " (deleted)";
  if (program.ends_with(kDeleted)) program.remove_suffix(kDeleted.size());
  const std::size_t slash = program.rfind('/');
  if (slash != std::string_view::npos) program.remove_prefix(slash + 1);
  return program.starts_with("qemu-system-") || program == "qemu-kvm";
}

std::vector<std::string> split_cmdline(std::string_view cmdline) {
  std::vector<std::string> arguments;
  while (!cmdline.empty()) {
    const std::size_t end = std::min(cmdline.find('\0'), cmdline.size());
    arguments.emplace_back(cmdline.substr(0, end));
    cmdline.remove_prefix(std::min(end + 1, cmdline.size()));
  }
  return arguments;
}

std::optional<u64> start_ticks_of_stat(std::string_view stat) {
  std::size_t at = stat.rfind(')');
  if (at == std::string_view::npos) return std::nullopt;
  ++at;
  // Behind the name comes field 3.
  for (int field = 3;; ++field) {
    at = stat.find_first_not_of(" \n", at);
    if (at == std::string_view::npos) return std::nullopt;
    const std::size_t end = std::min(stat.find_first_of(" \n", at), stat.size());
    if (field == 22) return parse_number(stat.substr(at, end - at));
    at = end;
  }
}

std::map<u64, std::string> unix_socket_paths(std::string_view net_unix) {
  // Num RefCount Protocol Flags Type St Inode Path (proc_pid_net(5)).
  constexpr int kInodeColumn = 6;
  std::map<u64, std::string> paths;
  while (!net_unix.empty()) {
    const std::size_t line_end = std::min(net_unix.find('\n'), net_unix.size());
    std::string_view line = net_unix.substr(0, line_end);
    net_unix.remove_prefix(std::min(line_end + 1, net_unix.size()));

    std::string_view column;
    int index = -1;
    while (index < kInodeColumn && !line.empty()) {
      line.remove_prefix(std::min(line.find_first_not_of(' '), line.size()));
      const std::size_t end = std::min(line.find(' '), line.size());
      column = line.substr(0, end);
      line.remove_prefix(end);
      ++index;
    }
    const auto inode = parse_number(column);
    if (index != kInodeColumn || !inode || line.size() < 2 || line[1] == '@') continue;
    paths[*inode] = std::string{line.substr(1)};
  }
  return paths;
}

}  // namespace vmsieve
