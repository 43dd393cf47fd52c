// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/restore/restore.h"

#include <fcntl.h>
#include <algorithm>
#include <memory>
#include <thread>

#include "vmsieve/base/clock.h"
#include "vmsieve/qemu/frozen_file_systems.h"
#include "vmsieve/qemu/machine.h"
#include "vmsieve/qemu/process.h"
#include "vmsieve/restore/clone_memory.h"
#include "vmsieve/restore/command_line.h"
#include "vmsieve/restore/executable_version.h"
#include "vmsieve/restore/fresh_memory.h"
#include "vmsieve/restore/image_check.h"
#include "vmsieve/restore/launch.h"
#include "vmsieve/restore/lazy_start.h"
#include "vmsieve/restore/memory_filler.h"
#include "vmsieve/restore/missing_guard.h"
#include "vmsieve/restore/obstacles.h"
#include "vmsieve/restore/preflight.h"
#include "vmsieve/restore/qmp_place.h"
#include "vmsieve/restore/ram_files.h"
#include "vmsieve/store/checkpoint_reader.h"

namespace vmsieve {

namespace {

using std::chrono::milliseconds;

constexpr unsigned kMostThreads = 4;
constexpr milliseconds kLoadTimeout{120000};

Result<QemuCommandLine> build_command_line(const Manifest& manifest, const RestoreOptions& options,
                                           const RestoredDisks& disks) {
  if (manifest.command_line.empty()) {
    return make_error(ErrorKind::kDamaged, "checkpoint {} has no QEMU command line", manifest.id);
  }
  VMSIEVE_ASSIGN(QemuCommandLine line,
                 QemuCommandLine::parse({manifest.command_line.begin() + 1, manifest.command_line.end()}));
  line.pin_machine(manifest.machine_type);
  line.pin_accelerator(manifest.accelerator);
  line.strip_for_restore();
  VMSIEVE_TRY(forget_clone_memory(line));
  VMSIEVE_TRY(disks.put_into(line, manifest.working_directory));
  for (const std::string& assignment : options.set) VMSIEVE_TRY(line.set(assignment));

  std::vector<std::string> arguments = line.arguments();
  arguments.insert(arguments.end(), options.extra_arguments.begin(), options.extra_arguments.end());
  return QemuCommandLine::parse(arguments);
}

Result<QmpPlace> claim_place(const Manifest& manifest, const RestoreOptions& options) {
  if (options.qmp_path) return claim_qmp_place(*options.qmp_path);
  return claim_default_qmp_place(manifest.command_line, manifest.working_directory, manifest.vm_name,
                                 manifest.id);
}

bool shall_run(const Manifest& manifest, AfterRestore after) {
  return after == AfterRestore::kRunning || (after == AfterRestore::kAsSaved && manifest.was_running);
}

unsigned thread_count(unsigned asked) {
  return asked != 0 ? asked : std::clamp(std::thread::hardware_concurrency(), 1U, kMostThreads);
}

/// The index with another byte for the pages that were left out.
MemoryIndex with_omitted_fill(MemoryIndex index, u8 fill) {
  for (BlockIndex& block : index.blocks) {
    for (PageRun& run : block.runs) {
      if (run.kind == RunKind::kFree) run.fill = fill;
    }
  }
  return index;
}

/// One restore on its way.
struct Work {
  std::shared_ptr<const CheckpointReader> reader;
  std::optional<MemoryIndex> changed;
  std::vector<std::byte> device_state;
  unsigned threads = 1;
  bool old_bytes_show = false;
  bool directly = false;  ///< into the new QEMU's memory, if it goes, rather than through the stream
  WorkingSet working_set;
  bool record = false;
  std::vector<bool> brought_elsewhere;
  std::unique_ptr<FrameFeed> feed;
  std::unique_ptr<PageServer> server;

  const MemoryIndex& index() const { return changed ? *changed : reader->index(); }
  void start_decoding() {
    if (!server) reader->expect_one_pass();
    feed = std::make_unique<FrameFeed>(*reader, frame_jobs(index(), brought_elsewhere), threads);
  }
};

/// What was noted of an earlier restore; a hint that is damaged is as good as none.
WorkingSet read_working_set(const Store& store, const CheckpointReader& reader) {
  const auto text = store.read_hint(reader.manifest().id);
  if (!text) return {};
  auto frames = decode_working_set(*text, reader.index().frames.size());
  return frames ? std::move(*frames) : WorkingSet{};
}

/// Lets the server have the new QEMU's main memory. None where that cannot be had; `reason` says why.
Result<void> try_lazy(Work& work, RunningQemu& qemu, RestoreMode mode, std::string& reason) {
  auto lazy = start_lazy(work.reader, work.index(), qemu.qmp(), {qemu.pid(), qemu.log_path()},
                         {.threads = work.threads, .first = work.working_set, .record = work.record});
  if (lazy.ok()) {
    work.server = std::move(lazy->server);
    work.brought_elsewhere = std::move(lazy->brought);
    return {};
  }
  const ErrorKind kind = lazy.error().kind();
  const bool cannot =
      kind == ErrorKind::kUnsupported || kind == ErrorKind::kPermission || kind == ErrorKind::kBusy;
  if (!cannot || mode == RestoreMode::kLazy)
    return lazy.error().with_context("a lazy restore is not possible");
  reason = lazy.error().message();
  return {};
}

/// Fills the new QEMU's main memory, all of it. Where that does not go, the stream will.
Result<void> try_directly(Work& work, RunningQemu& qemu, const ProgressFunction& progress, SentPages& sent) {
  auto fresh = find_fresh_memory(work.reader->manifest(), work.index(), qemu.qmp(), qemu.pid());
  auto filled = fresh ? fill_memory(*work.reader, work.index(), *fresh, qemu.pid(), work.threads, progress)
                      : Result<SentPages>{fresh.error()};
  if (filled) {
    sent = *filled;
    work.brought_elsewhere = std::move(fresh->brought);
    return {};
  }
  const ErrorKind kind = filled.error().kind();
  if (kind == ErrorKind::kUnsupported || kind == ErrorKind::kPermission) return {};
  return filled.error();
}

/// All but the stream's end, which begins with the device state: from there on QEMU runs the guest as soon as
/// it has it all.
Result<SentPages> load(const Work& work, RunningQemu& qemu, const ProgressFunction& progress, u64& bytes) {
  const Manifest& manifest = work.reader->manifest();
  VMSIEVE_ASSIGN(const StreamFormat format, read_stream_format(qemu.qmp(), work.device_state));
  MigrationStreamWriter writer{[&](std::span<const std::byte> chunk) {
                                 bytes += chunk.size();
                                 return qemu.send(chunk);
                               },
                               manifest.machine_type, stream_layout(work.index()).blocks, format};
  VMSIEVE_TRY(writer.begin());
  VMSIEVE_ASSIGN(const SentPages sent, send_memory(manifest.blocks, work.index(), *work.feed, writer,
                                                   work.old_bytes_show, work.brought_elsewhere, progress));
  VMSIEVE_TRY(writer.finish(work.device_state));
  qemu.close_stream();
  return sent;
}

/// The guest runs by itself if QEMU was not started with -S; `cont` is for a device state that says
/// otherwise.
Result<bool> make_run(RunningQemu& qemu, bool run) {
  VMSIEVE_ASSIGN(RunState state, read_run_state(qemu.qmp()));
  if (run && !state.running) {
    VMSIEVE_TRY(qemu.qmp().execute("cont"));
    VMSIEVE_ASSIGN(state, read_run_state(qemu.qmp()));
  }
  if (run != state.running) {
    return make_error(ErrorKind::kRefused,
                      "the new QEMU has loaded the checkpoint and the guest is in state {}", state.status);
  }
  return state.running;
}

/// The steps with the new QEMU, whose own words explain most errors.
Result<void> bring_back(Work& work, RunningQemu& qemu, RestoreMode mode, bool run,
                        const ProgressFunction& progress, RestoreReport& report) {
  VMSIEVE_TRY(check_blocks(work.reader->manifest(), qemu.qmp()));

  // ---- the new QEMU gets the checkpoint; it ends by itself if we do ----
  SentPages filled;
  if (work.feed == nullptr) {
    // Before the device state: to load it, QEMU reads the guest's memory.
    if (work.directly) {
      VMSIEVE_TRY(try_directly(work, qemu, progress, filled));
    } else {
      VMSIEVE_TRY(try_lazy(work, qemu, mode, report.eager_reason));
    }
    work.start_decoding();
  }
  VMSIEVE_ASSIGN(report.sent, load(work, qemu, progress, report.stream_bytes));
  report.sent.data += filled.data;
  report.sent.fill += filled.fill;
  VMSIEVE_TRY(qemu.wait_until_loaded(kLoadTimeout));
  VMSIEVE_ASSIGN(report.running, make_run(qemu, run));
  // ---- the guest is back ----
  return {};
}

/// The checkpoint, opened and checked.
Result<Work> open_checkpoint(const Store& store, const std::string& id, const RestoreOptions& options) {
  Work work;
  VMSIEVE_ASSIGN(work.reader, CheckpointReader::open(store, id));
  VMSIEVE_ASSIGN(work.device_state, work.reader->device_state());
  work.threads = thread_count(options.threads);
  if (options.omitted_fill) work.changed = with_omitted_fill(work.reader->index(), *options.omitted_fill);
  return work;
}

Result<RestoredDisks> make_disks(Store& store, const Manifest& manifest, const RestoreOptions& options,
                                 const std::string& number = "") {
  if (options.disks_as_they_are) return RestoredDisks{};
  return RestoredDisks::make(store, manifest, options.disks, number);
}

/// Of a checkpoint that was taken with the guest's file systems frozen.
void thaw(const Manifest& manifest, RestoreReport& report) {
  constexpr milliseconds kThawPatience{10000};
  if (!manifest.frozen) return;
  Result<void> thawed = Error(ErrorKind::kRefused, "the guest stands still");
  if (report.running) {
    const auto process = read_qemu_process(report.pid);
    thawed = process.ok() ? thaw_file_systems(*process, kThawPatience) : Result<void>(process.error());
  }
  if (thawed) return;
  report.warnings.push_back(fmt::format(
      "the guest's file systems are frozen, as they were for the checkpoint, until its agent is told "
      "guest-fsfreeze-thaw: {}",
      thawed.error().message()));
}

Result<void> check_executable(const Manifest& manifest, const std::string& executable) {
  VMSIEVE_ASSIGN(const std::string version, read_executable_version(executable));
  return check_version(manifest, version);
}

/// What this host must have, and what is in the way; the files that RAM will be in.
Result<RamFileCheck> check_surroundings(const Manifest& manifest, const QemuCommandLine& command_line,
                                        bool disks_as_they_are) {
  VMSIEVE_TRY(check_disks(manifest, disks_as_they_are));
  VMSIEVE_TRY(check_accelerator(command_line));
  VMSIEVE_TRY(check_obstacles(command_line, manifest.working_directory));
  return check_ram_files(find_ram_files(command_line, manifest.working_directory));
}

Result<std::unique_ptr<RunningQemu>> start_qemu(const Manifest& manifest, const RestoreOptions& options,
                                                const std::string& executable, const QemuCommandLine& line,
                                                std::vector<int> inherited, RestoreReport& report) {
  VMSIEVE_ASSIGN(QmpPlace place, claim_place(manifest, options));
  auto started = RunningQemu::start({.executable = executable,
                                     .arguments = line.arguments(),
                                     .working_directory = manifest.working_directory,
                                     .stopped = !shall_run(manifest, options.after),
                                     .inherited = std::move(inherited),
                                     .timeout = options.start_timeout},
                                    std::move(place));
  if (!started) {
    // The reason may be that it is an older one, or no QEMU at all.
    VMSIEVE_TRY(check_executable(manifest, executable));
    return started.error();
  }
  std::unique_ptr<RunningQemu> qemu = std::move(*started);
  VMSIEVE_TRY(check_version(manifest, qemu->qmp().version()));
  report.pid = qemu->pid();
  report.executable = executable;
  report.arguments = line.arguments();
  report.qmp_path = qemu->qmp_path();
  report.log_path = qemu->log_path();
  report.qemu_version = qemu->qmp().version();
  report.machine_type = manifest.machine_type;
  report.was_running = manifest.was_running;
  return qemu;
}

/// Options for clone `number`.
RestoreOptions numbered_options(RestoreOptions options, unsigned number) {
  for (std::string& assignment : options.set) assignment = numbered(assignment, number);
  for (std::string& argument : options.extra_arguments) argument = numbered(argument, number);
  if (options.qmp_path) options.qmp_path = numbered(*options.qmp_path, number);
  return options;
}

/// What only one can have, a clone must not share with the next: it would be emptied, or refused when the
/// first of them runs.
Result<void> check_apart(const QemuCommandLine& one, const QemuCommandLine& other,
                         const std::string& working_directory, const std::optional<std::string>& qmp_path) {
  if (qmp_path && numbered(*qmp_path, 1) == numbered(*qmp_path, 2))
    return make_error(ErrorKind::kUsage, "--qmp {}: each clone needs its own, as in --qmp {}.{{n}}",
                      *qmp_path, *qmp_path);
  const std::vector<std::string> files = outputs_of(one, working_directory);
  for (const std::string& file : outputs_of(other, working_directory)) {
    if (std::ranges::find(files, file) == files.end()) continue;
    return make_error(ErrorKind::kIncompatible,
                      "all clones would have {}: give each its own, as in --set serial=file:PATH{{n}}", file);
  }
  return {};
}

/// Files of its own behind RAM that is no main memory, and devices that fill memory, do not go with memory
/// that is there from the beginning.
Result<void> check_clone_memory(const QemuCommandLine& line, const std::string& working_directory) {
  std::vector<RamFile> files = find_ram_files(line, working_directory);
  std::erase_if(files, [](const RamFile& file) { return file.path.starts_with("/proc/self/fd/"); });
  VMSIEVE_ASSIGN(const RamFileCheck check, check_ram_files(files));
  if (!check.to_clear.empty() || check.old_bytes_show || fills_memory_itself(line))
    return Error(ErrorKind::kUnsupported, "this VM cannot be cloned: something else fills its memory");
  return {};
}

}  // namespace

Result<Restored> restore(Store& store, const std::string& id, const RestoreOptions& options,
                         const ProgressFunction& progress) {
  const Stopwatch watch;
  if (progress) progress({"checking the checkpoint", 0, 0});
  VMSIEVE_ASSIGN(Work work, open_checkpoint(store, id, options));
  const Manifest& manifest = work.reader->manifest();
  if (!options.disks_as_they_are)
    VMSIEVE_TRY(check_copies(store, *work.reader, options.mode == RestoreMode::kEager));
  VMSIEVE_ASSIGN(RestoredDisks disks, make_disks(store, manifest, options));
  VMSIEVE_ASSIGN(const QemuCommandLine command_line, build_command_line(manifest, options, disks));
  VMSIEVE_ASSIGN(const std::string executable,
                 find_executable(options.qemu_executable.value_or(manifest.qemu_executable)));
  const auto ram_files = check_surroundings(manifest, command_line, options.disks_as_they_are);
  if (!ram_files) {
    // A QEMU that is too old would be all the more of a reason.
    VMSIEVE_TRY(check_executable(manifest, executable));
    return ram_files.error();
  }
  work.old_bytes_show = ram_files->old_bytes_show || fills_memory_itself(command_line);

  RestoreReport report;
  work.record = options.record;
  if (options.mode != RestoreMode::kEager && !options.record)
    work.working_set = read_working_set(store, *work.reader);
  const std::string only_by_qemu =
      work.old_bytes_show ? "its memory holds something already" : why_not_lazy(command_line);
  work.directly = options.mode == RestoreMode::kEager && only_by_qemu.empty();
  if (options.mode != RestoreMode::kEager) {
    report.eager_reason = only_by_qemu;
    if (options.mode == RestoreMode::kLazy && !report.eager_reason.empty()) {
      return make_error(ErrorKind::kUnsupported, "a lazy restore is not possible: {}", report.eager_reason);
    }
  }

  if (progress) progress({"starting QEMU", 0, 0});
  if (!only_by_qemu.empty()) work.start_decoding();
  // To ask a program for its version takes as long as half of QEMU's start, so the started one tells it
  // where nothing is done before that.
  if (!ram_files->to_clear.empty()) VMSIEVE_TRY(check_executable(manifest, executable));
  VMSIEVE_TRY(clear_ram_files(ram_files->to_clear));
  VMSIEVE_ASSIGN(const auto qemu, start_qemu(manifest, options, executable, command_line, {}, report));
  report.start_ms = watch.ms();
  const bool run = shall_run(manifest, options.after);
  if (const auto back = bring_back(work, *qemu, options.mode, run, progress, report); !back) {
    // What the server has met is the cause of what QEMU has, unless it is QEMU's own end.
    const auto cause = work.server != nullptr ? work.server->error() : std::nullopt;
    return cause && cause->kind() != ErrorKind::kVanished ? *cause : qemu->explain(back.error());
  }

  qemu->detach();
  if (const auto kept = disks.keep(store); !kept) report.warnings.push_back(kept.error().message());
  report.disks = disks.overlays();
  report.abandoned = disks.abandoned();
  report.lazy = work.server != nullptr;
  report.ready_ms = watch.ms();
  thaw(manifest, report);
  const bool records = report.lazy && work.working_set.empty();
  return Restored{std::move(report), std::move(work.server), records};
}

Result<void> keep_working_set(Store& store, const std::string& id, const PageServer& server) {
  return store.write_hint(id, encode_working_set(server.working_set()));
}

Result<std::vector<RestoreReport>> restore_clones(Store& store, const std::string& id,
                                                  const RestoreOptions& options, unsigned count,
                                                  const ProgressFunction& progress) {
  const Stopwatch watch;
  if (progress) progress({"checking the checkpoint", 0, 0});
  VMSIEVE_ASSIGN(Work work, open_checkpoint(store, id, options));
  const Manifest& manifest = work.reader->manifest();
  VMSIEVE_ASSIGN(const std::string executable,
                 find_executable(options.qemu_executable.value_or(manifest.qemu_executable)));
  VMSIEVE_TRY(check_executable(manifest, executable));
  VMSIEVE_TRY(check_disks(manifest, options.disks_as_they_are));
  if (!options.disks_as_they_are)
    VMSIEVE_TRY(check_copies(store, *work.reader, options.mode == RestoreMode::kEager));
  // What is wrong with one of them is said before any is started.
  std::vector<RestoredDisks> disks;
  std::vector<QemuCommandLine> lines;
  for (unsigned number = 1; number <= count; ++number) {
    VMSIEVE_ASSIGN(RestoredDisks own_disks, make_disks(store, manifest, options, std::to_string(number)));
    VMSIEVE_ASSIGN(QemuCommandLine line,
                   build_command_line(manifest, numbered_options(options, number), own_disks));
    disks.push_back(std::move(own_disks));
    line.renew_generation_id();
    VMSIEVE_TRY(check_accelerator(line));
    // Others who work on a guest's memory would not see what is private to it.
    if (const std::string why = why_not_lazy(line); !why.empty())
      return make_error(ErrorKind::kUnsupported, "this VM cannot be cloned: {}", why);
    VMSIEVE_TRY(check_obstacles(line, manifest.working_directory));
    lines.push_back(std::move(line));
  }
  if (count > 1) VMSIEVE_TRY(check_apart(lines[0], lines[1], manifest.working_directory, options.qmp_path));
  VMSIEVE_ASSIGN(const CloneMemory memory,
                 CloneMemory::make(*work.reader, work.index(), work.threads, progress));
  work.brought_elsewhere = memory.blocks();

  std::vector<std::unique_ptr<MissingGuard>> guards;  // if we are killed, none stays
  std::vector<std::unique_ptr<RunningQemu>> qemus;
  std::vector<RestoreReport> reports;
  for (unsigned number = 1; number <= count; ++number) {
    const RestoreOptions own = numbered_options(options, number);
    if (progress) progress({"starting QEMU", number, count});
    // Once more: it may want what a clone before it has taken.
    VMSIEVE_TRY(check_obstacles(lines[number - 1], manifest.working_directory));
    VMSIEVE_ASSIGN(const QemuCommandLine line,
                   memory.behind(std::move(lines[number - 1]), LaunchOptions::kFirstInherited));
    VMSIEVE_TRY(check_clone_memory(line, manifest.working_directory));
    RestoreReport& report = reports.emplace_back();
    VMSIEVE_ASSIGN(auto qemu, start_qemu(manifest, own, executable, line, memory.descriptors(), report));
    report.start_ms = watch.ms();
    // Once it has its memory nothing else would end it with us.
    VMSIEVE_ASSIGN(const UniqueFd process, open_process(qemu->pid()));
    VMSIEVE_ASSIGN(const UniqueFd log, open_file(qemu->log_path(), O_WRONLY | O_APPEND));
    VMSIEVE_ASSIGN(auto guard, MissingGuard::make(process.get(), log.get()));
    guards.push_back(std::move(guard));
    work.start_decoding();
    const auto back =
        bring_back(work, *qemu, RestoreMode::kEager, shall_run(manifest, own.after), progress, report);
    if (!back) return qemu->explain(back.error()).with_context(fmt::format("clone {}", number));
    report.ready_ms = watch.ms();
    report.disks = disks[number - 1].overlays();
    thaw(manifest, report);
    qemus.push_back(std::move(qemu));
  }
  for (const auto& qemu : qemus) qemu->detach();
  for (RestoredDisks& own : disks) VMSIEVE_TRY(own.keep(store));
  for (const auto& guard : guards) guard->dismiss();
  return reports;
}

}  // namespace vmsieve
