// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "vmsieve/base/result.h"

namespace vmsieve {

/// One option of a QEMU command line: `-name` without the dashes, and its argument if it has one.
/// A bare argument (a disk image) has an empty name.
struct QemuOption {
  std::string name;
  std::optional<std::string> value;
  friend bool operator==(const QemuOption&, const QemuOption&) = default;
};

/// A QEMU command line taken apart (QEMU qemu-options.hx tells which options take an argument; an option
/// that no known release has takes the next argument if that does not begin with '-'). Options that are not
/// asked about stay as they are and where they are.
class QemuCommandLine {
 public:
  /// `arguments` without argv[0]. kUnsupported when QEMU itself would not take them: a lone dash, a last
  /// option whose argument is missing.
  static Result<QemuCommandLine> parse(const std::vector<std::string>& arguments);

  std::vector<std::string> arguments() const;
  const std::vector<QemuOption>& options() const { return options_; }
  bool has(std::string_view name) const;

  /// Replaces every option `name` by one with `value` (at the place of the first), or adds it.
  void replace(const std::string& name, std::optional<std::string> value);
  void remove(std::string_view name);

  /// `--set OPTION=VALUE`: `serial=file:OUT`, `nic=none`; `--set OPTION` for one without argument. kUsage
  /// says what is wrong with it.
  ///  - Options that may stand more than once with a name of their own (-netdev, -device, -object, ...):
  ///    a value with an id replaces the one of that id, or is added; others stay.
  ///  - `machine`: its properties are merged, those given win.
  ///  - `accel`: replaces the accelerator in every spelling.
  ///  - All others: every such option is replaced by this one.
  Result<void> set(const std::string& assignment);

  /// The machine type pinned to `versioned` (for example pc-q35-7.2), other machine properties kept.
  void pin_machine(const std::string& versioned);

  /// Of several accelerators to choose from (`-accel kvm -accel tcg`, `accel=kvm:tcg`) only `accelerator`
  /// stays: device state differs between them. Where none is named it is added: a QEMU called qemu-kvm
  /// takes KVM if it can (QEMU system/vl.c, configure_accelerators). Where only others are named nothing is
  /// changed.
  void pin_accelerator(const std::string& accelerator);

  /// A disk whose image is the first of `chain` (absolute paths) that the command line names has the qcow2
  /// image `overlay` instead, which says itself what it is backed by. Its node names, caches and what is to
  /// become of discarded blocks stay; what only the old image's format knows goes. False when none of the
  /// chain is named (`-drive file=`, `-blockdev`, -hda and the like, a bare argument).
  bool replace_image(const std::vector<std::string>& chain, const std::string& overlay,
                     const std::string& working_directory);

  /// `-device vmgenid` with a new identifier at each start (QEMU hw/acpi/vmgenid.c): the guest is told that
  /// it is not the one that it was.
  void renew_generation_id();

  /// Removes what a restore gives itself and what must not be done twice:
  ///  - QMP and human monitors in every spelling (-qmp, -qmp-pretty, -monitor, -mon, `mon:` in -serial and
  ///    the like), with the -chardev that nobody else uses;
  ///  - -incoming, -S, -loadvm, -preconfig, -dump-vmstate; -daemonize, -pidfile, -D (the log and the
  ///    process belong to the restore).
  /// The new QEMU runs in the background: what was connected to the terminal (`stdio`, -nographic's serial
  /// port, `-display curses`) is connected to nothing. The guest's devices stay the same.
  void strip_for_restore();

 private:
  void merge_machine(const std::vector<std::string>& parts);
  void remove_machine_property(std::string_view key);
  void remove_monitors();
  void detach_from_terminal();
  bool refers_to_chardev(const std::string& id) const;

  std::vector<QemuOption> options_;
};

}  // namespace vmsieve
