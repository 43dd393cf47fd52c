// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/capture/save.h"

#include <algorithm>
#include <thread>

#include "vmsieve/base/clock.h"
#include "vmsieve/base/thread_priority.h"
#include "vmsieve/capture/live_capture.h"
#include "vmsieve/capture/live_support.h"
#include "vmsieve/capture/read_out.h"
#include "vmsieve/capture/save_steps.h"
#include "vmsieve/capture/tracked_save.h"
#include "vmsieve/disks/tidy.h"
#include "vmsieve/qemu/vm_lock.h"
#include "vmsieve/store/memory_writer.h"

namespace vmsieve {

namespace {

/// The guard kills this process only when it does not end a wait of the guest by itself.
constexpr std::chrono::seconds kGraceOfGuard{5};

unsigned worker_count(unsigned asked) {
  return asked != 0 ? asked : std::max(1U, std::thread::hardware_concurrency());
}

/// What is left when the guest runs again.
struct Captured {
  Stopped stopped;
  PagePlan plan;
};

PagePlan plan_paused(const Save& save, const FreePages& free) {
  return plan_pages(save.layout(), free.runs, free.fill, [&](u32 block, u64 first, u64 count) {
    return save.vm.memory->resident_block(block, first, count);
  });
}

/// The guest stops until its used pages are in buffers. When it fails the guest may still be stopped: the
/// guard's destructor resumes it.
Result<Captured> capture_paused(Save& save, PauseGuard& guard, CapturePipeline& pipeline, unsigned threads,
                                const ProgressFunction& progress) {
  Captured captured;
  const Stopwatch pause;
  // ---- The guest stops.
  VMSIEVE_ASSIGN(captured.stopped, stop_and_classify(save, guard, threads));

  const Stopwatch planning;
  captured.plan = plan_paused(save, captured.stopped.classified.free);
  std::vector<Chunk> chunks = cut_chunks(captured.plan, pipeline.chunk_pages());
  save.pause.plan_ms = planning.ms();

  const Stopwatch reading;
  VMSIEVE_TRY(read_out(*save.vm.memory, pipeline, std::move(chunks), threads, progress));
  if (pipeline.failed()) return Error(ErrorKind::kIo, "the store cannot be written");
  VMSIEVE_TRY(check_same_memory(save));
  save.pause.read_ms = reading.ms();

  const Stopwatch resuming;
  VMSIEVE_TRY(let_run(save, guard));
  // ---- The guest runs again.
  save.pause.resume_ms = resuming.ms();
  save.manifest.pause_ms = pause.ms() - captured.stopped.classified.ran_ms;
  return captured;
}

/// Page structures that were written since they were rehearsed are protected and read once more: the less is
/// left for the pause.
Result<void> rehearse_again(Save& save, LiveCapture& live, unsigned threads) {
  std::vector<ScannedSection>& scans = save.earlier.scans;
  if (scans.empty()) return {};
  std::vector<PhysicalExtent> extents;
  for (const ScannedSection& scan : scans)
    extents.insert(extents.end(), scan.extents.begin(), scan.extents.end());
  VMSIEVE_ASSIGN(const std::vector<bool> written, live.protect_again(extents));
  std::size_t next = 0;
  std::erase_if(scans, [&](const ScannedSection& scan) {
    const auto first = written.begin() + static_cast<std::ptrdiff_t>(next);
    next += scan.extents.size();
    return std::find(first, first + static_cast<std::ptrdiff_t>(scan.extents.size()), true) !=
           first + static_cast<std::ptrdiff_t>(scan.extents.size());
  });
  VMSIEVE_TRY(rehearse(save, threads));
  return {};
}

/// The guest stops for an instant; its used pages are read while it runs again. As above when it fails, and
/// `live` lets go of the guest's memory.
Result<Captured> capture_live(Save& save, PauseGuard& guard, CapturePipeline& pipeline, LiveCapture& live,
                              unsigned threads, const ProgressFunction& progress) {
  Captured captured;
  VMSIEVE_TRY(rehearse_again(save, live, threads));
  const Stopwatch pause;
  // ---- The guest stops.
  VMSIEVE_ASSIGN(captured.stopped, stop_and_classify(save, guard, threads));

  // After the device state: to save it, QEMU may write to the guest's memory.
  const Stopwatch freezing;
  VMSIEVE_TRY(live.freeze());
  save.pause.freeze_ms = freezing.ms();

  const Stopwatch resuming;
  VMSIEVE_TRY(let_run(save, guard));
  // ---- The guest runs again; its writes wait for what is copied next.
  save.pause.resume_ms = resuming.ms();
  save.manifest.pause_ms = pause.ms() - captured.stopped.classified.ran_ms;

  const Stopwatch copying;
  const FreePages& free = captured.stopped.classified.free;
  captured.plan = plan_pages(
      save.layout(), free.runs, free.fill,
      [&](u32 block, u64 first, u64 count) { return live.resident(block, first, count); }, Ask::kAlways);
  pipeline.open_gate();
  VMSIEVE_TRY(live.copy(captured.plan, pipeline, threads, progress));
  save.live.copy_ms = copying.ms();
  save.live.figures = live.figures();
  save.live.sections_reused = save.earlier.reused;
  VMSIEVE_TRY(check_same_memory(save));
  return captured;
}

/// How the guest's memory is taken: by one of these, or, with neither, while it stands still.
struct Way {
  std::optional<TrackedSave> tracked;
  std::unique_ptr<LiveCapture> live;
};

/// The first of what the mode allows that can be had.
Result<Way> begin_capture(Save& save, const Store& store, const PauseGuard& guard) {
  Way way;
  VMSIEVE_ASSIGN(way.tracked, begin_tracked(save, store));
  if (way.tracked || save.options.mode == SaveMode::kPaused) return way;
  VMSIEVE_ASSIGN(const RunState state, read_run_state(*save.vm.qmp));
  // A guest that stands still anyway is not disturbed by reading it.
  if (!state.running) return way;
  const Stopwatch preparing;
  auto live = start_live_capture(
      save.vm, {.longest_wait = save.options.longest_wait, .beat = [&guard] { guard.beat(); }});
  if (live.ok()) {
    save.earlier.unwritten = [capture = live->get()](const PhysicalExtent& extent) {
      return capture->is_unwritten(extent.address, extent.bytes);
    };
    way.live = std::move(*live);
    save.live.prepare_ms = preparing.ms();
    return way;
  }
  guard.end_beat();  // it may have begun to beat before it failed
  if (live.error().kind() == ErrorKind::kUnsupported) {
    auto noting = begin_noting(save);
    if (noting.ok()) {
      way.tracked = std::move(*noting);
      save.live.prepare_ms = preparing.ms();
      return way;
    }
  }
  if (live.error().kind() == ErrorKind::kVanished) return live.error();
  if (save.options.mode == SaveMode::kLive) return live.error().with_context("a live save is not possible");
  save.live.reason = live.error().message();
  save.warnings.push_back(
      fmt::format("the guest is stopped while its memory is read, for a live save is not possible: {}",
                  save.live.reason));
  return way;
}

/// For an incremental save of a VM whose writes cannot be noted: the newest checkpoint of this VM and this
/// memory, with which every page can be compared. None when there is none.
std::unique_ptr<CheckpointReader> base_to_compare_with(const Save& save, const Store& store) {
  const auto listing = store.list();
  if (!listing.ok()) return nullptr;
  const std::vector<Manifest>& all = listing->checkpoints;
  const auto fits = [&](const Manifest& m) {
    return m.vm_name == save.manifest.vm_name && (!m.vm_name.empty() || m.vm_pid == save.manifest.vm_pid) &&
           same_blocks(m, save.layout());
  };
  const auto newest = std::find_if(all.rbegin(), all.rend(), fits);
  if (newest == all.rend()) return nullptr;
  auto base = CheckpointReader::open(store, newest->id);
  return base.ok() ? std::move(*base) : nullptr;
}

/// Memory in huge pages is noted by huge pages; and where nothing is noted, everything is compared.
std::vector<bool> blocks_to_compare(const Save& save) {
  std::vector<bool> compared;
  for (const RamBlock& block : save.layout().blocks)
    compared.push_back(!save.tracked.noted || block.host_page_bytes > kPageSize);
  return compared;
}

/// What the guest's memory held, as it goes into the checkpoint.
struct Memory {
  std::vector<std::byte> device_state;
  IntrospectionRecord introspection;
  std::vector<BlockIndex> blocks;
  PageCounts counts;  ///< without the total
};

/// Waits until all pages are with the writer.
Result<CapturePipeline::Outcome> finish_writing(CapturePipeline& pipeline, u64 pages,
                                                const ProgressFunction& progress) {
  pipeline.open_gate();
  report_writing(pipeline, pages, progress);
  return pipeline.finish();
}

/// The pipeline's own error (a full disk) is the cause when it failed first.
Error cause_of(const Error& error, CapturePipeline& pipeline) {
  if (!pipeline.failed()) return error;
  auto finished = pipeline.finish();
  return finished.ok() ? error : finished.error();
}

CapturePipeline::Options pipeline_options(const Save& save, unsigned threads, const CheckpointReader* base,
                                          int nice) {
  return {.compression = save.options.compression,
          .threads = threads,
          .buffer_bytes = save.options.buffer_bytes,
          .base = base,
          .compared_blocks = blocks_to_compare(save),
          .nice = nice};
}

Result<Memory> take_tracked(Save& save, std::unique_ptr<PauseGuard> guard, MemoryObjectWriter& writer,
                            TrackedSave& tracked, unsigned threads, const ProgressFunction& progress) {
  save.manifest.mode = "live";
  save.tracked.noted = true;
  VMSIEVE_ASSIGN(auto pipeline,
                 CapturePipeline::make(writer, tracked.capture->lists(),
                                       pipeline_options(save, threads, tracked.base.get(), kBackgroundNice)));
  std::optional<Heartbeat> heartbeat(std::in_place, *guard);
  auto stopped = [&]() -> Result<Stopped> {
    VMSIEVE_TRY(copy_ahead(save, tracked, *guard, *pipeline, threads, progress));
    return capture_tracked(save, tracked, *guard, *pipeline, threads);
  }();
  heartbeat.reset();
  guard.reset();  // resumes the guest if anything failed, before anything is tidied up
  if (!stopped.ok()) return cause_of(stopped.error(), *pipeline);
  VMSIEVE_ASSIGN(auto outcome, finish_writing(*pipeline, 0, progress));
  Memory memory{std::move(stopped->device_state), stopped->classified.record, {}, {}};
  VMSIEVE_ASSIGN(memory.blocks,
                 tracked.capture->index(outcome, writer, stopped->classified.free.fill, memory.counts));
  return memory;
}

/// `disturbed` tells that a live copy was spoilt by something that a guest which stands still does not do.
Result<Memory> take_all(Save& save, std::unique_ptr<PauseGuard> guard_of_save,
                        std::unique_ptr<LiveCapture> live_of_save, MemoryObjectWriter& writer,
                        const CheckpointReader* base, unsigned threads, const ProgressFunction& progress,
                        bool& disturbed) {
  // In this order: the capture tells the guard that it is well.
  auto guard = std::move(guard_of_save);
  auto live = std::move(live_of_save);
  std::optional<Heartbeat> heartbeat;
  if (!live) heartbeat.emplace(*guard);
  VMSIEVE_ASSIGN(const FreePages rehearsed, rehearse(save, threads));
  VMSIEVE_ASSIGN(auto pipeline,
                 CapturePipeline::make(writer, save.layout().blocks.size(),
                                       pipeline_options(save, threads, base, live ? kBesideGuestNice : 0)));
  if (!live) {
    // An eighth more than the rehearsal found: the guest has not stood still since.
    const u64 pages = plan_paused(save, rehearsed).read_pages;
    pipeline->expect((pages + pages / 8) * kPageSize);
  }
  save.manifest.mode = live ? "live" : "paused";
  auto captured = live ? capture_live(save, *guard, *pipeline, *live, threads, progress)
                       : capture_paused(save, *guard, *pipeline, threads, progress);
  disturbed = live && !captured.ok() && captured.error().kind() == ErrorKind::kBusy;
  live.reset();  // lets go of the guest's memory
  heartbeat.reset();
  guard->end_beat();
  guard.reset();  // resumes the guest if anything failed, before anything is tidied up
  if (!captured.ok()) return cause_of(captured.error(), *pipeline);

  VMSIEVE_ASSIGN(auto outcome, finish_writing(*pipeline, captured->plan.read_pages, progress));
  Memory memory{std::move(captured->stopped.device_state), captured->stopped.classified.record, {}, {}};
  VMSIEVE_ASSIGN(memory.blocks,
                 build_index(save.layout(), captured->plan, outcome, base, writer, memory.counts));
  return memory;
}

Result<SaveReport> save_once(const VmAddress& address, Store& store, const SaveOptions& options,
                             const ProgressFunction& progress, bool& disturbed) {
  const Stopwatch total;
  const unsigned threads = worker_count(options.threads);
  Save save;
  save.options = options;
  save.manifest.compression = options.compression.text();
  save.manifest.periodic = options.periodic;

  // ---- The guest runs. Everything that can fail or take long comes first.
  progress({"attaching", 0, 0});
  VMSIEVE_ASSIGN(const VmLock lock, VmLock::take(address.process.pid));
  VMSIEVE_TRY(attach_and_describe(save, address));
  VMSIEVE_ASSIGN(auto guard, PauseGuard::make(*save.vm.qmp, options.longest_wait + kGraceOfGuard));
  VMSIEVE_ASSIGN(auto checkpoint, store.begin());
  VMSIEVE_ASSIGN(auto memory_object, checkpoint->create("memory"));
  MemoryObjectWriter writer(*memory_object, checkpoint->id());
  progress({"finding the kernel", 0, 0});
  VMSIEVE_TRY(find_kernel(save));
  VMSIEVE_TRY(prepare_disks(save, store, *checkpoint));
  VMSIEVE_ASSIGN(Way way, begin_capture(save, store, *guard));

  // ---- The guest stops and runs again.
  std::optional<TrackedSave>& tracked = way.tracked;
  std::unique_ptr<CheckpointReader> compared;
  if (!tracked && options.incremental) compared = base_to_compare_with(save, store);
  VMSIEVE_ASSIGN(Memory memory,
                 tracked ? take_tracked(save, std::move(guard), writer, *tracked, threads, progress)
                         : take_all(save, std::move(guard), std::move(way.live), writer, compared.get(),
                                    threads, progress, disturbed));

  VMSIEVE_ASSIGN(const ObjectRecord memory_record, writer.finish(std::move(memory.blocks)));
  VMSIEVE_ASSIGN(const ObjectRecord device_record, write_device_state(*checkpoint, memory.device_state));
  VMSIEVE_ASSIGN(const std::vector<ObjectRecord> copies, finish_disks(save, *checkpoint, progress));
  Manifest& m = save.manifest;
  m.id = checkpoint->id();
  m.introspection = std::move(memory.introspection);
  memory.counts.total = m.pages.total;
  m.pages = memory.counts;
  m.objects = {memory_record, device_record};
  m.stored_bytes = memory_record.bytes + device_record.bytes;
  for (const ObjectRecord& copy : copies) {
    m.objects.push_back(copy);
    m.stored_bytes += copy.bytes;
  }
  const CheckpointReader* const base = tracked ? tracked->base.get() : compared.get();
  if (base != nullptr) m.parent = base->manifest().id;
  save.tracked.incremental = base != nullptr;
  m.ancestors = writer.ancestors();
  m.total_ms = total.ms();
  VMSIEVE_TRY(checkpoint->commit(m));
  if (tracked) {
    // The checkpoint is there all the same.
    if (const auto finished = finish_tracked(*tracked, store, m.id); !finished.ok())
      save.warnings.push_back("the next save will be a full one: " + finished.error().message());
  }
  m.total_ms = total.ms();  // for the caller: with the commit itself
  progress({"done", m.stored_bytes, m.stored_bytes});
  DiskRecord disks = save.disk_point != nullptr ? save.disk_point->record() : DiskRecord{};
  return SaveReport{
      std::move(save.manifest), save.pause,       std::move(save.live),    std::move(save.tracked),
      save.frozen_file_systems, std::move(disks), std::move(save.warnings)};
}

}  // namespace

Result<SaveReport> save(const VmAddress& address, Store& store, const SaveOptions& options,
                        const ProgressFunction& progress) {
  // What a process that was killed has left of this VM's disks, and what this one leaves if it fails. What
  // cannot be put back together now stays noted.
  const auto tidy = [&] { (void)tidy_disks(store, progress); };
  tidy();
  bool disturbed = false;
  auto saved = save_once(address, store, options, progress, disturbed);
  if (!saved.ok()) tidy();
  if (saved.ok() || !disturbed || options.mode != SaveMode::kAny) return saved;
  SaveOptions paused = options;
  paused.mode = SaveMode::kPaused;
  const std::string why = saved.error().message();
  saved = save_once(address, store, paused, progress, disturbed);
  if (!saved.ok()) tidy();
  if (saved.ok())
    saved->warnings.push_back(fmt::format("the live save was given up for a paused one: {}", why));
  return saved;
}

}  // namespace vmsieve
