// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/capture/save.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>

#include <fmt/chrono.h>

#include "vmsieve/base/clock.h"
#include "vmsieve/capture/attach.h"
#include "vmsieve/capture/page_plan.h"
#include "vmsieve/capture/pipeline.h"
#include "vmsieve/qemu/pause_guard.h"
#include "vmsieve/store/memory_writer.h"

namespace vmsieve {

namespace {

/// How often a stop that fell inside the allocator's lock is repeated before the zone is saved in
/// full. 700 stops of a busy guest met none, so three in a row are no accident.
constexpr int kClassifyTries = 3;

std::string utc_now() {
  const auto now = std::chrono::system_clock::now();
  const auto ms =
      std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count() % 1000;
  return fmt::format("{:%Y-%m-%dT%H:%M:%S}.{:03}Z", fmt::gmtime(std::chrono::system_clock::to_time_t(now)),
                     ms);
}

unsigned worker_count(unsigned asked) {
  return asked != 0 ? asked : std::max(1U, std::thread::hardware_concurrency());
}

/// What is known of the guest's memory at the stop.
struct Classified {
  FreePages free;
  IntrospectionRecord record;
};

/// Everything that one save needs, built up while the guest runs.
struct Save {
  AttachedVm vm;
  SaveOptions options;
  Manifest manifest;
  PauseParts pause;
  std::vector<std::string> warnings;
  KernelSearch search;
  u64 estimated_read_pages = 0;

  std::string blocks_text;  ///< `info ramblock` as it was when the layout was read

  const RamLayout& layout() const { return vm.memory->layout(); }
};

Result<void> describe_machine(Save& save) {
  Manifest& m = save.manifest;
  QmpClient& qmp = *save.vm.qmp;
  VMSIEVE_ASSIGN(m.machine_type, read_machine_type(qmp));
  VMSIEVE_ASSIGN(m.accelerator, read_accelerator(qmp));
  VMSIEVE_ASSIGN(const Vcpus vcpus, read_vcpus(qmp));
  m.vcpus = vcpu_count(vcpus);
  VMSIEVE_ASSIGN(const std::vector<WritableDisk> disks, read_writable_disks(qmp));
  for (const WritableDisk& disk : disks) {
    m.writable_disks.push_back({disk.device, disk.file});
    save.warnings.push_back(
        fmt::format("the writable disk {} ({}) is not part of this checkpoint: keep a copy of it from the "
                    "moment of the save",
                    disk.device, disk.file));
  }
  m.vm_name = save.vm.process.name;
  m.vm_pid = static_cast<u64>(save.vm.process.pid);
  m.qemu_version = qmp.version();
  m.qemu_package = qmp.package();
  m.qemu_executable = save.vm.process.executable;
  m.command_line = save.vm.process.arguments;
  m.working_directory = save.vm.process.working_directory;
  for (const RamBlock& block : save.layout().blocks) {
    m.blocks.push_back(
        {block.name, block.used_bytes, block.max_bytes, block.host_page_bytes, block.guest_ram});
    m.guest_bytes += block.used_bytes;
    m.pages.total += round_up(block.used_bytes, kPageSize) >> kPageShift;
  }
  for (const RamMapping& mapping : save.layout().mappings) {
    m.mappings.push_back({mapping.address.value, mapping.bytes, mapping.block, mapping.block_offset});
  }
  return {};
}

/// Memory that is gone reads as zeros, not as an error. So ask once all is read whether QEMU is still
/// there and still has the RAM blocks that were read (nothing was plugged or unplugged meanwhile).
Result<void> check_same_memory(Save& save) {
  VMSIEVE_ASSIGN(const std::string now, save.vm.qmp->human("info ramblock"));
  if (now == save.blocks_text) return {};
  return Error(ErrorKind::kBusy, "memory was plugged or unplugged while the checkpoint was taken: try again");
}

PagePlan make_plan(const Save& save, const FreePages& free) {
  return plan_pages(save.layout(), free.runs, free.fill, [&](u32 block, u64 first, u64 count) {
    return save.vm.memory->resident_block(block, first, count);
  });
}

/// Finds the kernel and classifies once while the guest runs: the answer is worth nothing as a
/// proof, but tells how much will be read, and brings page tables and page structures into the
/// host's caches (a cold first pass takes ten times as long).
Result<void> rehearse(Save& save, unsigned threads) {
  FreePages free;
  if (!save.options.introspection) {
    save.search.reason = "introspection was switched off";
  } else {
    VMSIEVE_ASSIGN(save.search, search_kernel(save.vm));
  }
  if (save.search.kernel) {
    auto rehearsed = classify(save.vm, save.search, GuestState::kRunning, save.options.kinds, threads);
    if (rehearsed.ok()) {
      free = std::move(*rehearsed);
    } else if (is_peer_failure(rehearsed.error())) {
      return rehearsed.error();
    }
  }
  save.estimated_read_pages = make_plan(save, free).read_pages;
  return {};
}

/// Classifies the stopped guest. A doubtful zone gets another chance after the guest has run for a
/// millisecond (the stop may have met the allocator in the middle of its work).
Result<Classified> classify_stopped(Save& save, PauseGuard& guard, unsigned threads) {
  Classified result;
  result.record.kernel = save.search.kernel ? save.search.kernel->release() : "";
  result.record.reason = save.search.reason;
  if (!save.search.kernel) return result;
  for (int attempt = 1;; ++attempt) {
    const Stopwatch watch;
    auto free = classify(save.vm, save.search, GuestState::kStopped, save.options.kinds, threads);
    result.record.classify_ms = watch.ms();
    if (!free) {
      if (is_peer_failure(free.error())) return free.error();
      result.record.reason = free.error().message();
      return result;
    }
    result.free = std::move(*free);
    if (result.free.doubts.empty() || attempt == kClassifyTries || !guard.was_running()) break;
    VMSIEVE_TRY(guard.resume());
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    VMSIEVE_TRY(guard.stop());
  }
  result.record.used = result.free.count > 0;
  result.record.free_pages = {result.free.buddy, result.free.per_cpu, result.free.hugetlb,
                              result.free.offline};
  result.record.vmcoreinfo = save.search.kernel->vmcoreinfo().text();
  result.record.vmcoreinfo_address = save.search.kernel->vmcoreinfo_address().value;
  for (const std::string& doubt : result.free.doubts) {
    result.record.reason += (result.record.reason.empty() ? "" : "; ") + doubt;
  }
  return result;
}

/// Reads one chunk's pages into a buffer and hands it on.
Result<void> read_chunk(const LiveMemory& memory, CapturePipeline& pipeline, Chunk chunk) {
  std::byte* buffer = pipeline.acquire();
  if (buffer == nullptr) return {};  // the pipeline has failed and tells why in finish()
  std::byte* to = buffer;
  for (const BlockPages& run : chunk.runs) {
    const u64 bytes = run.pages * kPageSize;
    if (auto read = memory.read_block(chunk.block, run.first_page * kPageSize, {to, bytes}); !read.ok()) {
      pipeline.cancel(buffer);
      return read.error();
    }
    to += bytes;
  }
  pipeline.submit(std::move(chunk), buffer);
  return {};
}

/// Reads all chunks with `threads` threads; returns when the last page is in a buffer.
Result<void> read_out(const LiveMemory& memory, CapturePipeline& pipeline, std::vector<Chunk> chunks,
                      unsigned threads, const ProgressFunction& progress) {
  std::atomic<std::size_t> next = 0;
  std::mutex error_mutex;
  std::optional<Error> error;
  u64 total = 0;
  for (const Chunk& chunk : chunks) total += chunk.pages * kPageSize;
  std::atomic<u64> done = 0;
  auto reader = [&](bool reports) {
    for (std::size_t i = next++; i < chunks.size() && !pipeline.failed(); i = next++) {
      const u64 bytes = chunks[i].pages * kPageSize;
      if (auto read = read_chunk(memory, pipeline, std::move(chunks[i])); !read.ok()) {
        const std::lock_guard lock(error_mutex);
        if (!error) error = read.error();
        next = chunks.size();
      }
      done += bytes;
      if (reports) progress({"reading", done, total});
    }
  };
  std::vector<std::thread> helpers;
  for (unsigned i = 1; i < threads; ++i) helpers.emplace_back(reader, false);
  reader(true);
  for (std::thread& helper : helpers) helper.join();
  if (error) return *error;
  return {};
}

/// The complete index of every block: what was known without reading, and what was read.
std::vector<BlockIndex> build_index(const Save& save, const PagePlan& plan,
                                    CapturePipeline::Outcome& outcome) {
  std::vector<BlockIndex> blocks;
  for (std::size_t i = 0; i < plan.blocks.size(); ++i) {
    std::vector<PageRun>& runs = outcome.runs[i];
    runs.insert(runs.end(), plan.blocks[i].known.begin(), plan.blocks[i].known.end());
    std::sort(runs.begin(), runs.end(),
              [](const PageRun& a, const PageRun& b) { return a.first_page < b.first_page; });
    BlockIndex block{save.layout().blocks[i].name, save.layout().blocks[i].used_bytes, {}};
    for (const PageRun& run : runs) {
      PageRun* last = block.runs.empty() ? nullptr : &block.runs.back();
      if (last != nullptr && last->kind == run.kind && run.kind != RunKind::kData && last->fill == run.fill) {
        last->pages += run.pages;
      } else {
        block.runs.push_back(run);
      }
    }
    blocks.push_back(std::move(block));
  }
  return blocks;
}

/// Tells the user how far the encoding is, until all is encoded or failed.
void report_writing(const CapturePipeline& pipeline, u64 pages, const ProgressFunction& progress) {
  while (!pipeline.failed() && pipeline.done_pages() < pages) {
    progress({"writing", pipeline.done_pages() * kPageSize, pages * kPageSize});
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

Result<ObjectRecord> write_device_state(CheckpointWriter& checkpoint, std::span<const std::byte> state) {
  VMSIEVE_ASSIGN(auto object, checkpoint.create("device"));
  VMSIEVE_TRY(object->append(state));
  VMSIEVE_TRY(object->finish());
  return ObjectRecord{"device", state.size(), checksum(state)};
}

/// What the pause yields.
struct Stopped {
  IntrospectionRecord introspection;
  std::vector<std::byte> device_state;
  PagePlan plan;
};

/// The pause, from stop to resume. When it fails the guest may still be stopped: the guard's
/// destructor resumes it.
Result<Stopped> capture_stopped(Save& save, PauseGuard& guard, CapturePipeline& pipeline, unsigned threads,
                                const ProgressFunction& progress) {
  Stopped stopped;
  const Stopwatch pause;
  VMSIEVE_TRY(guard.stop());
  save.pause.stop_ms = pause.ms();
  // ---- The guest stands still.
  save.manifest.was_running = guard.was_running();
  save.manifest.created = utc_now();
  const Stopwatch classifying;
  VMSIEVE_ASSIGN(Classified classified, classify_stopped(save, guard, threads));
  stopped.introspection = std::move(classified.record);
  save.pause.classify_ms = classifying.ms();

  const Stopwatch device;
  VMSIEVE_ASSIGN(stopped.device_state, save_device_state(*save.vm.qmp));
  save.pause.device_ms = device.ms();

  const Stopwatch planning;
  stopped.plan = make_plan(save, classified.free);
  std::vector<Chunk> chunks = cut_chunks(stopped.plan, pipeline.chunk_pages());
  save.pause.plan_ms = planning.ms();

  const Stopwatch reading;
  VMSIEVE_TRY(read_out(*save.vm.memory, pipeline, std::move(chunks), threads, progress));
  if (pipeline.failed()) return Error(ErrorKind::kIo, "the store cannot be written");
  VMSIEVE_TRY(check_same_memory(save));
  save.pause.read_ms = reading.ms();

  const Stopwatch resuming;
  VMSIEVE_TRY(guard.resume());
  // ---- The guest runs again.
  save.pause.resume_ms = resuming.ms();
  save.manifest.pause_ms = pause.ms();
  return stopped;
}

}  // namespace

Result<SaveReport> save_paused(const VmAddress& address, Store& store, const SaveOptions& options,
                               const ProgressFunction& progress) {
  const Stopwatch total;
  const unsigned threads = worker_count(options.threads);
  Save save;
  save.options = options;
  save.manifest.mode = "paused";
  save.manifest.compression = options.compression.text();

  // ---- The guest runs. Everything that can fail or take long comes first.
  progress({"attaching", 0, 0});
  VMSIEVE_ASSIGN(save.vm, attach(address));
  VMSIEVE_ASSIGN(save.blocks_text, save.vm.qmp->human("info ramblock"));
  VMSIEVE_TRY(check_migratable(*save.vm.qmp));
  VMSIEVE_TRY(describe_machine(save));
  VMSIEVE_ASSIGN(auto guard, PauseGuard::make(*save.vm.qmp));
  VMSIEVE_ASSIGN(auto checkpoint, store.begin());
  VMSIEVE_ASSIGN(auto memory_object, checkpoint->create("memory"));
  MemoryObjectWriter memory_writer(*memory_object, checkpoint->id());
  progress({"finding the kernel", 0, 0});
  VMSIEVE_TRY(rehearse(save, threads));
  VMSIEVE_ASSIGN(auto pipeline, CapturePipeline::make(memory_writer, save.layout().blocks.size(),
                                                      {.compression = options.compression,
                                                       .threads = threads,
                                                       .buffer_bytes = options.buffer_bytes}));
  // An eighth more than the rehearsal found: the guest has not stood still since.
  pipeline->prefault((save.estimated_read_pages + save.estimated_read_pages / 8) * kPageSize);

  // ---- The guest stops and runs again: capture_stopped().
  auto stopped = capture_stopped(save, *guard, *pipeline, threads, progress);
  guard.reset();  // resumes the guest if anything failed, before anything is tidied up
  if (!stopped.ok()) {
    // The pipeline's own error (a full disk) is the cause when it failed first.
    if (pipeline->failed()) VMSIEVE_TRY(pipeline->finish());
    return stopped.error();
  }

  pipeline->open_gate();
  report_writing(*pipeline, stopped->plan.read_pages, progress);
  VMSIEVE_ASSIGN(CapturePipeline::Outcome outcome, pipeline->finish());
  VMSIEVE_ASSIGN(const ObjectRecord memory, memory_writer.finish(build_index(save, stopped->plan, outcome)));
  VMSIEVE_ASSIGN(const ObjectRecord device_object, write_device_state(*checkpoint, stopped->device_state));

  Manifest& m = save.manifest;
  m.id = checkpoint->id();
  m.introspection = stopped->introspection;
  m.pages.free = stopped->plan.free_pages;
  m.pages.zero = outcome.counts.zero + stopped->plan.untouched_pages;
  m.pages.fill = outcome.counts.fill;
  m.pages.saved = outcome.counts.saved;
  m.objects = {memory, device_object};
  m.stored_bytes = memory.bytes + device_object.bytes;
  m.total_ms = total.ms();
  VMSIEVE_TRY(checkpoint->commit(m));
  m.total_ms = total.ms();  // for the caller: with the commit itself
  progress({"done", m.stored_bytes, m.stored_bytes});
  return SaveReport{std::move(save.manifest), save.pause, std::move(save.warnings)};
}

}  // namespace vmsieve
