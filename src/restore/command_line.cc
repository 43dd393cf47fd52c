// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/restore/command_line.h"

#include <algorithm>
#include <array>

#include "vmsieve/restore/option_parts.h"
#include "vmsieve/restore/option_table.h"

namespace vmsieve {

namespace {

bool is_option(const QemuOption& option, std::string_view name) {
  return !option.name.empty() && canonical_option(option.name) == canonical_option(name);
}

std::string value_of(const QemuOption& option) { return option.value.value_or(""); }

std::optional<std::string> id_of(std::string_view name, const std::string& value) {
  const std::string_view key = id_key(name);
  if (key.empty()) return std::nullopt;
  return OptionProperties{value, implied_key(name)}.get(key);
}

bool is_option_name(std::string_view name) {
  return !name.empty() && name.front() != '-' && std::ranges::all_of(name, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
  });
}

/// The options whose value is a character device in the short notation, and so may be `mon:...` or
/// `stdio` (QEMU chardev/char.c, qemu_chr_parse_compat).
constexpr auto kPorts = std::to_array<std::string_view>({"serial", "parallel", "debugcon"});

/// Given by the restore itself, or not to be done twice.
constexpr auto kNotReplayed = std::to_array<std::string_view>(
    {"incoming", "S", "loadvm", "preconfig", "dump-vmstate", "daemonize", "pidfile", "D"});

constexpr auto kMonitors = std::to_array<std::string_view>({"qmp", "qmp-pretty", "monitor", "mon"});

}  // namespace

Result<QemuCommandLine> QemuCommandLine::parse(const std::vector<std::string>& arguments) {
  QemuCommandLine line;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (!argument.starts_with('-')) {
      line.options_.push_back({"", argument});
      continue;
    }
    // One more dash makes no difference (QEMU system/vl.c, lookup_opt).
    std::string name = argument.substr(argument.starts_with("--") ? 2 : 1);
    if (name.empty() || name.starts_with('-')) {
      return make_error(ErrorKind::kUnsupported, "argument {} of the QEMU command line, {}, is no option",
                        i + 1, argument);
    }
    const OptionShape shape = option_shape(name);
    const bool more = i + 1 < arguments.size();
    if (shape == OptionShape::kArgument && !more) {
      return make_error(ErrorKind::kUnsupported,
                        "the QEMU command line ends with {}, which takes an argument", argument);
    }
    const bool takes = shape == OptionShape::kArgument ||
                       (shape == OptionShape::kUnknown && more && !arguments[i + 1].starts_with('-'));
    std::optional<std::string> value;
    if (takes) value = arguments[++i];
    line.options_.push_back({std::move(name), std::move(value)});
  }
  return line;
}

std::vector<std::string> QemuCommandLine::arguments() const {
  std::vector<std::string> out;
  for (const QemuOption& option : options_) {
    if (!option.name.empty()) out.push_back("-" + option.name);
    if (option.value) out.push_back(*option.value);
  }
  return out;
}

bool QemuCommandLine::has(std::string_view name) const {
  return std::ranges::any_of(options_, [&](const QemuOption& o) { return is_option(o, name); });
}

void QemuCommandLine::replace(const std::string& name, std::optional<std::string> value) {
  const auto first = std::ranges::find_if(options_, [&](const QemuOption& o) { return is_option(o, name); });
  if (first == options_.end()) {
    options_.push_back({name, std::move(value)});
    return;
  }
  *first = {name, std::move(value)};
  options_.erase(std::remove_if(std::next(first), options_.end(),
                                [&](const QemuOption& o) { return is_option(o, name); }),
                 options_.end());
}

void QemuCommandLine::remove(std::string_view name) {
  std::erase_if(options_, [&](const QemuOption& o) { return is_option(o, name); });
}

Result<void> QemuCommandLine::set(const std::string& assignment) {
  const std::size_t equals = assignment.find('=');
  const std::string name = assignment.substr(0, equals);
  std::optional<std::string> value;
  if (equals != std::string::npos) value = assignment.substr(equals + 1);

  if (!is_option_name(name)) {
    return make_error(ErrorKind::kUsage, "--set {}: what stands before '=' must be a QEMU option's name",
                      assignment);
  }
  if (option_shape(name) == OptionShape::kFlag && value) {
    return make_error(ErrorKind::kUsage, "--set {}: QEMU's -{} takes no argument", assignment, name);
  }
  if (option_shape(name) == OptionShape::kArgument && !value) {
    return make_error(ErrorKind::kUsage, "--set {}: QEMU's -{} takes an argument, --set {}=VALUE", assignment,
                      name, name);
  }

  if (is_option({name, {}}, "machine")) {
    merge_machine(split_parts(*value));
    return {};
  }
  if (name == "accel") {
    remove_machine_property("accel");
    remove("enable-kvm");
    replace(name, value);
    return {};
  }
  const std::optional<std::string> id = value ? id_of(name, *value) : std::nullopt;
  if (!id) {
    replace(name, value);
    return {};
  }
  const auto same = std::ranges::find_if(
      options_, [&](const QemuOption& o) { return is_option(o, name) && id_of(name, value_of(o)) == id; });
  if (same == options_.end()) {
    options_.push_back({name, value});
  } else {
    same->value = value;
  }
  return {};
}

void QemuCommandLine::merge_machine(const std::vector<std::string>& parts) {
  // QEMU itself merges all -machine options, the last one given wins (system/vl.c).
  std::string type;
  std::vector<std::string> properties;
  const auto take = [&](const std::vector<std::string>& from) {
    for (std::size_t i = 0; i < from.size(); ++i) {
      const std::string key{part_key(from[i], i == 0, "type")};
      if (key == "type") {
        type = from[i].starts_with("type=") ? from[i].substr(5) : from[i];
        continue;
      }
      std::erase_if(properties, [&](const std::string& p) { return part_key(p, false, "") == key; });
      properties.push_back(from[i]);
    }
  };
  for (const QemuOption& option : options_) {
    if (is_option(option, "machine")) take(split_parts(value_of(option)));
  }
  take(parts);
  if (!type.empty()) properties.insert(properties.begin(), type);
  if (properties.empty()) {
    remove("machine");
  } else {
    replace("machine", join_parts(properties));
  }
}

void QemuCommandLine::remove_machine_property(std::string_view key) {
  for (QemuOption& option : options_) {
    if (!is_option(option, "machine")) continue;
    std::vector<std::string> kept;
    const std::vector<std::string> parts = split_parts(value_of(option));
    for (std::size_t i = 0; i < parts.size(); ++i) {
      if (part_key(parts[i], i == 0, "type") != key) kept.push_back(parts[i]);
    }
    option.value = join_parts(kept);
  }
  std::erase_if(options_, [](const QemuOption& o) { return is_option(o, "machine") && value_of(o).empty(); });
}

void QemuCommandLine::pin_machine(const std::string& versioned) {
  merge_machine({"type=" + escape_commas(versioned)});
}

void QemuCommandLine::pin_accelerator(const std::string& accelerator) {
  const auto accelerator_of = [](const QemuOption& o) {
    return OptionProperties{value_of(o), implied_key("accel")}.get("accel").value_or("");
  };
  bool named = has("enable-kvm") || has("accel");
  if (std::ranges::any_of(options_, [&](const QemuOption& o) {
        return is_option(o, "accel") && accelerator_of(o) == accelerator;
      })) {
    std::erase_if(options_, [&](const QemuOption& o) {
      return is_option(o, "accel") && accelerator_of(o) != accelerator;
    });
  }
  for (const QemuOption& option : options_) {
    if (!is_option(option, "machine")) continue;
    const auto list = OptionProperties{value_of(option), implied_key("machine")}.get("accel");
    named = named || list;
    if (list && (":" + *list + ":").find(":" + accelerator + ":") != std::string::npos) {
      merge_machine({"accel=" + accelerator});
      return;
    }
  }
  if (!named && !accelerator.empty()) options_.push_back({"accel", accelerator});
}

void QemuCommandLine::renew_generation_id() {
  for (QemuOption& option : options_) {
    if (!is_option(option, "device")) continue;
    const OptionProperties properties{value_of(option), implied_key("device")};
    if (properties.get("driver") != "vmgenid") continue;
    const auto id = properties.get("id");
    option.value = id ? fmt::format("vmgenid,id={},guid=auto", escape_commas(*id)) : "vmgenid,guid=auto";
  }
}

void QemuCommandLine::strip_for_restore() {
  for (const std::string_view name : kNotReplayed) remove(name);
  remove_monitors();
  detach_from_terminal();
}

void QemuCommandLine::remove_monitors() {
  std::vector<std::string> chardevs;
  for (const QemuOption& option : options_) {
    const std::string value = value_of(option);
    if (is_option(option, "mon")) {
      if (auto id = OptionProperties{value, implied_key("mon")}.get("chardev")) chardevs.push_back(*id);
    } else if (std::ranges::find(kMonitors, option.name) != kMonitors.end() &&
               value.starts_with("chardev:")) {
      chardevs.push_back(value.substr(8));
    }
  }
  for (const std::string_view name : kMonitors) remove(name);
  for (const std::string& id : chardevs) {
    if (refers_to_chardev(id)) continue;  // a multiplexer, shared with a port of the guest
    std::erase_if(options_, [&](const QemuOption& o) {
      return is_option(o, "chardev") && id_of("chardev", value_of(o)) == id;
    });
  }
  for (QemuOption& option : options_) {
    const bool port = std::ranges::find(kPorts, option.name) != kPorts.end();
    if (port && value_of(option).starts_with("mon:")) option.value = option.value->substr(4);
  }
}

bool QemuCommandLine::refers_to_chardev(const std::string& id) const {
  return std::ranges::any_of(options_, [&](const QemuOption& option) {
    if (option.name.empty() || is_option(option, "chardev")) return false;
    if (value_of(option) == "chardev:" + id) return true;
    const OptionProperties properties{value_of(option), implied_key(option.name)};
    return std::ranges::any_of(properties.all(), [&](const auto& property) { return property.second == id; });
  });
}

void QemuCommandLine::detach_from_terminal() {
  bool serial_given = has("nodefaults") || has("serial");
  for (QemuOption& option : options_) {
    const std::string value = value_of(option);
    const OptionProperties properties{value, implied_key(option.name)};
    if (std::ranges::find(kPorts, option.name) != kPorts.end()) {
      if (value == "stdio") option.value = "null";
    } else if (is_option(option, "chardev") && properties.get("backend") == "stdio") {
      option.value = "null,id=" + escape_commas(properties.get("id").value_or(""));
      if (properties.on("mux")) *option.value += ",mux=on";
    } else if (is_option(option, "display") && properties.get("type") == "curses") {
      option.value = "none";
    } else if (is_option(option, "device") && properties.get("driver") == "isa-serial") {
      serial_given = true;  // QEMU system/vl.c, default_list: then there is no default port
    } else if (is_option(option, "global") &&
               (properties.get("driver") == "isa-serial" || value.starts_with("isa-serial."))) {
      serial_given = true;
    }
  }
  if (has("curses")) {
    remove("curses");
    replace("display", "none");
  }
  // -nographic stays, since firmware sees it; only its default serial port would be on the terminal.
  if (has("nographic") && !serial_given) options_.push_back({"serial", "null"});
}

}  // namespace vmsieve
