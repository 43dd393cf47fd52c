// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <sys/types.h>

#include "vmsieve/base/progress.h"
#include "vmsieve/base/result.h"
#include "vmsieve/restore/memory_sender.h"
#include "vmsieve/restore/page_server.h"
#include "vmsieve/restore/restored_disks.h"
#include "vmsieve/store/store.h"

namespace vmsieve {

/// Does the guest run when it is back?
enum class AfterRestore {
  kAsSaved,  ///< if it ran when the checkpoint was taken
  kRunning,
  kStopped,
};

/// When does the guest run: at once, its memory coming in as it is touched and beside that (PageServer), or
/// when all of its memory is there?
enum class RestoreMode {
  kAny,    ///< at once where that is possible
  kLazy,   ///< at once, or not at all
  kEager,  ///< every frame is read and checked before the guest runs
};

struct RestoreOptions {
  RestoreMode mode = RestoreMode::kAny;
  std::optional<std::string> qemu_executable = std::nullopt;  ///< --qemu; else the recorded one
  std::optional<std::string> qmp_path = std::nullopt;         ///< --qmp; else claim_default_qmp_place()
  std::vector<std::string> set = {};                          ///< --set, in order: QemuCommandLine::set()
  std::vector<std::string> extra_arguments = {};              ///< behind all others, as they are
  /// The guest's writable disks are, or hold, what they held when the checkpoint was taken: those of the
  /// command line are used, also when the checkpoint has others.
  bool disks_as_they_are = false;
  RestoredDiskOptions disks = {};
  AfterRestore after = AfterRestore::kAsSaved;
  /// For tests: pages that were left out as free read as this byte. A guest must not be able to tell.
  std::optional<u8> omitted_fill = std::nullopt;
  /// Of a lazy restore: notes anew what the guest wants first (keep_working_set()), and goes by nothing
  /// that was noted before.
  bool record = false;
  unsigned threads = 0;  ///< that decode, and bring memory in; 0: as many as there are cores, at most 4
  std::chrono::milliseconds start_timeout{120000};
};

struct RestoreReport {
  pid_t pid = 0;
  std::string vm;  ///< libvirt:NAME, where the guest is libvirt's: no monitor, no log, no arguments then
  std::string executable;
  std::vector<std::string> arguments;  ///< without argv[0], monitor and -incoming
  std::string qmp_path;
  std::string log_path;
  std::string qemu_version;
  std::string machine_type;
  bool was_running = false;           ///< at the checkpoint
  bool running = false;               ///< now
  bool lazy = false;                  ///< memory is still to come
  std::string eager_reason;           ///< why not; empty when it was asked for
  std::vector<std::string> warnings;  ///< for the user, one sentence each
  std::vector<std::string> disks;     ///< files that the guest writes to, made for it; some may have no name
  /// Files that the saved VM wrote to, whose place the guest has taken: RestoredDiskOptions::instead.
  std::vector<std::string> abandoned;
  SentPages sent;
  u64 stream_bytes = 0;
  double start_ms = 0;  ///< until the new QEMU answered
  double ready_ms = 0;  ///< until the guest ran (or stands, complete)
};

/// A guest that is back.
struct Restored {
  RestoreReport report;
  /// Of a lazy restore: brings the memory in from now on. Its end before all is there ends the new QEMU too.
  std::unique_ptr<PageServer> server;
  /// Was it asked for, or was none there: after server->wait(), keep_working_set() is to be called.
  bool records = false;
};

/// Leaves with the checkpoint what a guest that was restored from it wanted first: the next lazy restore
/// brings that in before all else.
Result<void> keep_working_set(Store& store, const std::string& id, const PageServer& server);

/// Brings a guest back in a new QEMU with the recorded command line. What describes the checkpoint is checked
/// before anything starts, every frame before its pages reach the guest. When this returns an error, or the
/// process dies in the middle, the new QEMU is ended, and the guest in it has not run an instruction (save
/// when the monitor of a QEMU that has taken everything stops answering: it is ended then too).
///
/// What a checkpoint's manifest says is run as a program: restore only checkpoints whose origin is trusted.
///
/// The new QEMU is a child of this process, in a session of its own; a program that lives on collects
/// its exit status with wait_for_exit() (launch.h).
Result<Restored> restore(Store& store, const std::string& id, const RestoreOptions& options,
                         const ProgressFunction& progress = {});

/// Brings back `count` guests of one checkpoint, all or none, whose memory is shared as long as it is not
/// written to (CloneMemory). "{n}" in `set`, `extra_arguments` and `qmp_path` stands for the clone's number,
/// from 1 on. A VM Generation ID is made anew; all else that the guests think they are is the same in each:
/// MAC addresses, UUID, machine-id, host name, random seeds that were drawn before. `mode` does not matter:
/// memory is there before the first one runs.
Result<std::vector<RestoreReport>> restore_clones(Store& store, const std::string& id,
                                                  const RestoreOptions& options, unsigned count,
                                                  const ProgressFunction& progress = {});

}  // namespace vmsieve
