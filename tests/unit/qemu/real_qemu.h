// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <sys/types.h>

#include "vmsieve/qemu/qmp.h"

namespace vmsieve::test {

/// A QEMU program that is installed here.
struct QemuProgram {
  std::string path;
  std::string label;  ///< "system", "lab10": names the test instances
};

/// The system's qemu-system-x86_64 and the lab's newer one (scripts/lab.sh), as far as they exist.
std::vector<QemuProgram> qemu_programs();

/// A new empty folder that goes away with the object.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

/// A real QEMU with no kernel (the guest sits in its firmware), killed by its pid with the object, and by
/// the kernel if the test dies.
class RealQemu {
 public:
  /// Starts `program` with `arguments` and two QMP monitors, and waits until both listen. Ends the
  /// test program when it cannot be started: `complaint` is what QEMU printed.
  RealQemu(const std::string& program, const std::vector<std::string>& arguments);
  ~RealQemu();
  RealQemu(const RealQemu&) = delete;
  RealQemu& operator=(const RealQemu&) = delete;

  bool running() const { return pid_ > 0; }
  const std::string& complaint() const { return complaint_; }
  pid_t pid() const { return pid_; }
  std::string monitor() const { return folder_.path() + "/qmp"; }
  /// Another monitor, to look at the guest while the first one is in use.
  std::string second_monitor() const { return folder_.path() + "/qmp2"; }
  const std::string& folder() const { return folder_.path(); }
  /// SIGKILL and reap.
  void kill();

 private:
  TemporaryFolder folder_;
  pid_t pid_ = -1;
  std::string complaint_;
};

/// Connects or fails the test.
std::unique_ptr<QmpClient> must_connect(const std::string& path);

/// `query-status` through its own connection.
std::string status_of(const std::string& monitor);

}  // namespace vmsieve::test
