// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/capture/save_steps.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <thread>

#include <fmt/chrono.h>

#include "vmsieve/base/clock.h"
#include "vmsieve/capture/base_layer.h"
#include "vmsieve/capture/run_layers.h"
#include "vmsieve/disks/image_file.h"
#include "vmsieve/qemu/given_descriptor.h"
#include "vmsieve/store/memory_writer.h"

namespace vmsieve {

namespace {

/// How long the guest runs before it is stopped again, when it was stopped inside the allocator's lock or in
/// firmware; the zone, or all of it, is saved in full after that. The first is enough unless the host has no
/// core for the vCPU in question: on one with two busy processes for each core, 1 save of 400 found three
/// stops, 1 ms apart, in one and the same section.
constexpr std::array<std::chrono::milliseconds, 5> kRunAgain{
    std::chrono::milliseconds{1}, std::chrono::milliseconds{4}, std::chrono::milliseconds{16},
    std::chrono::milliseconds{64}, std::chrono::milliseconds{256}};

Result<void> describe_machine(Save& save) {
  Manifest& m = save.manifest;
  QmpClient& qmp = *save.vm.qmp;
  VMSIEVE_ASSIGN(m.machine_type, read_machine_type(qmp));
  VMSIEVE_ASSIGN(m.accelerator, read_accelerator(qmp));
  VMSIEVE_ASSIGN(const Vcpus vcpus, read_vcpus(qmp));
  m.vcpus = vcpu_count(vcpus);
  VMSIEVE_ASSIGN(save.disks, read_writable_disks(qmp));
  for (const WritableDisk& disk : save.disks) m.writable_disks.push_back({disk.device, disk.file});
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

}  // namespace

Result<void> attach_and_describe(Save& save, const VmAddress& address) {
  VMSIEVE_ASSIGN(save.vm, attach(address));
  if (address.libvirt) {
    VMSIEVE_ASSIGN(std::string xml, read_domain_xml(*save.vm.qmp));
    save.manifest.libvirt = {address.libvirt->uri(), address.libvirt->name(), std::move(xml)};
  }
  VMSIEVE_ASSIGN(save.blocks_text, save.vm.qmp->human("info ramblock"));
  VMSIEVE_TRY(check_migratable(*save.vm.qmp));
  // Housekeeping: a save does not fail for it.
  (void)take_back_left_descriptors(*save.vm.qmp);
  return describe_machine(save);
}

Result<void> check_same_memory(Save& save) {
  VMSIEVE_ASSIGN(const std::string now, save.vm.qmp->human("info ramblock"));
  if (now == save.blocks_text) return {};
  return Error(ErrorKind::kBusy, "memory was plugged or unplugged while the checkpoint was taken: try again");
}

namespace {

bool names(const std::vector<std::string>& command_line, const std::string& text) {
  return std::ranges::any_of(
      command_line, [&](const std::string& argument) { return argument.find(text) != std::string::npos; });
}

/// A restore puts a disk in the place of what the command line names.
bool is_named(const std::vector<std::string>& command_line, const SavedDisk& disk) {
  return std::ranges::any_of(disk.chain, [&](const std::string& path) {
    return names(command_line, path.substr(path.rfind('/') + 1));  // it may be a relative one
  });
}

/// Of the chain of the checkpoint after which a VM went on with `overlay`, what its command line names.
std::vector<std::string> earlier_chain(const Store& store, const std::string& overlay,
                                       const std::vector<std::string>& command_line) {
  const auto ids = store.disk_records();
  if (!ids) return {};
  for (const auto* list : {&ids->checkpoints, &ids->forsaken}) {
    for (const std::string& id : *list) {
      const auto text = store.read_disks(id);
      const auto record = text ? decode_disks(*text) : Result<DiskRecord>{text.error()};
      if (!record) continue;
      for (const SavedDisk& disk : record->disks) {
        if (disk.overlay != overlay) continue;
        std::vector<std::string> named = disk.chain;
        std::erase_if(named, [&](const std::string& path) { return !names(command_line, path); });
        return named;
      }
    }
  }
  return {};
}

}  // namespace

Result<void> prepare_disks(Save& save, const Store& store, CheckpointWriter& checkpoint) {
  if (save.disks.empty()) return {};
  const std::optional<DiskWay> way = save.options.disks.way;
  if (!way) {
    for (const WritableDisk& disk : save.disks) {
      save.warnings.push_back(
          fmt::format("the writable disk {} ({}) is not part of this checkpoint: keep a copy of it from the "
                      "moment of the save",
                      disk.device, disk.file));
    }
    return {};
  }
  VMSIEVE_ASSIGN(
      save.disk_point,
      DiskPoint::prepare(
          *save.vm.qmp, save.disks,
          {.checkpoint = checkpoint.id(),
           .way = *way,
           .folder = save.options.disks.folder,
           .working_directory = save.vm.process.working_directory,
           .libvirt = !save.manifest.libvirt.xml.empty(),
           .note = [&](const DiskRecord& record) { return checkpoint.note_disks(encode_disks(record)); },
           .earlier_chain =
               [&](const std::string& file) {
                 const auto& line = save.vm.process.arguments;
                 auto chain = earlier_chain(store, file, line);
                 if (!chain.empty() || names(line, file)) return chain;
                 // One that nobody else can be meant by; of several, which is whose cannot be told.
                 auto gone = gone_overlays_in(line, file);
                 return gone.size() == 1 ? gone : chain;
               },
           .copy_file = [&](u64 number) { return checkpoint.create_file(disk_object(number)); }}));
  save.manifest.disks = to_string(*way);
  for (const SavedDisk& disk : save.disk_point->record().disks) {
    // libvirt's XML names them, and what is in a cluster the command line in its own notation.
    if (!save.manifest.libvirt.xml.empty() || !disk.source.empty()) continue;
    if (is_named(save.vm.process.arguments, disk)) continue;
    save.warnings.push_back(fmt::format(
        "the VM's command line does not name its disk {}: a restore will need --disks-as-they-are, and --set",
        disk.image));
  }
  return {};
}

Result<std::vector<ObjectRecord>> finish_disks(Save& save, CheckpointWriter& checkpoint,
                                               const ProgressFunction& progress) {
  std::vector<ObjectRecord> copies;
  if (save.disk_point == nullptr) return copies;
  VMSIEVE_ASSIGN(const DiskRecord record, save.disk_point->finish(progress));
  for (u64 i = 0; record.way == DiskWay::kCopy && i < record.disks.size(); ++i) {
    VMSIEVE_ASSIGN(ObjectRecord copy, checkpoint.finish_file(disk_object(i)));
    copies.push_back(std::move(copy));
  }
  return copies;
}

Result<void> find_kernel(Save& save) {
  if (!save.options.introspection) {
    save.search.reason = "introspection was switched off";
    return {};
  }
  VMSIEVE_ASSIGN(save.search, search_kernel(save.vm));
  return {};
}

Result<FreePages> rehearse(Save& save, unsigned threads) {
  FreePages free;
  if (!save.search.kernel) return free;
  auto rehearsed =
      classify(save.vm, save.search, GuestState::kRunning, save.options.kinds, threads, &save.earlier);
  if (rehearsed.ok()) return rehearsed;
  if (is_peer_failure(rehearsed.error())) return rehearsed.error();
  return free;
}

Result<Classified> classify_stopped(Save& save, PauseGuard& guard, unsigned threads) {
  Classified result;
  result.record.kernel = save.search.kernel ? save.search.kernel->release() : "";
  result.record.reason = save.search.reason;
  if (!save.search.kernel) return result;
  auto look = [&] {
    const Stopwatch watch;
    auto free =
        classify(save.vm, save.search, GuestState::kStopped, save.options.kinds, threads, &save.earlier);
    result.record.classify_ms = watch.ms();
    return free;
  };
  auto free = look();
  for (const auto time : kRunAgain) {
    const bool settled = free.ok() ? free->doubts.empty() : is_peer_failure(free.error());
    if (settled || !guard.was_running()) break;
    VMSIEVE_TRY(guard.resume());
    const Stopwatch running;
    std::this_thread::sleep_for(time);
    result.ran_ms += running.ms();
    VMSIEVE_TRY(guard.stop());
    free = look();
  }
  if (!free.ok()) {
    if (is_peer_failure(free.error())) return free.error();
    result.record.reason = free.error().message();
    return result;
  }
  result.free = *std::move(free);
  result.record.used = result.free.count > 0;
  result.record.free_pages = {result.free.buddy, result.free.per_cpu, result.free.hugetlb,
                              result.free.offline};
  result.record.vmcoreinfo = save.search.kernel->vmcoreinfo().text();
  result.record.vmcoreinfo_address = save.search.kernel->witness().address.value;
  for (const std::string& doubt : result.free.doubts) {
    result.record.reason += (result.record.reason.empty() ? "" : "; ") + doubt;
  }
  return result;
}

Result<Stopped> stop_and_classify(Save& save, PauseGuard& guard, unsigned threads) {
  VMSIEVE_ASSIGN(const RunState before, read_run_state(*save.vm.qmp));
  // The agent of a guest that stands still does not answer, and nothing is under way there.
  if (save.options.quiesce && before.running) {
    VMSIEVE_ASSIGN(save.frozen, FrozenFileSystems::freeze(save.vm.process, *save.options.quiesce));
    save.frozen_file_systems = save.frozen->count();
    save.manifest.frozen = true;
  }
  const Stopwatch stopping;
  VMSIEVE_TRY(guard.stop());
  save.pause.stop_ms = stopping.ms();
  save.manifest.was_running = save.options.was_running.value_or(guard.was_running());
  save.manifest.created = utc_now();

  Stopped stopped;
  const Stopwatch classifying;
  VMSIEVE_ASSIGN(stopped.classified, classify_stopped(save, guard, threads));
  save.pause.classify_ms = classifying.ms() - stopped.classified.ran_ms;

  const Stopwatch device;
  VMSIEVE_ASSIGN(stopped.device_state, save_device_state(*save.vm.qmp));
  save.pause.device_ms = device.ms();

  // Last: whatever fails before it leaves the disks as they are.
  const Stopwatch disks;
  if (save.disk_point != nullptr) VMSIEVE_TRY(save.disk_point->take());
  save.pause.disks_ms = disks.ms();
  return stopped;
}

Result<void> let_run(Save& save, PauseGuard& guard) {
  VMSIEVE_TRY(guard.resume());
  if (save.frozen == nullptr) return {};
  // One that stands still, as its owner wants it, thaws them when it runs.
  const auto thawed = guard.was_running() ? save.frozen->thaw() : Result<void>{};
  if (!thawed)
    save.warnings.push_back("the guest's file systems are not thawed yet: " + thawed.error().message());
  save.frozen.reset();
  return {};
}

Result<std::vector<BlockIndex>> build_index(const RamLayout& layout, const PagePlan& plan,
                                            CapturePipeline::Outcome& outcome, const CheckpointReader* base,
                                            MemoryObjectWriter& writer, PageCounts& counts) {
  BaseLayer layer(base);
  std::vector<BlockIndex> blocks;
  for (u32 i = 0; i < plan.blocks.size(); ++i) {
    std::vector<PageRun>& runs = outcome.runs[i];
    runs.insert(runs.end(), plan.blocks[i].known.begin(), plan.blocks[i].known.end());
    const auto same = layer.runs(i, outcome.same[i]);
    runs.insert(runs.end(), same.begin(), same.end());
    sort_runs(runs);
    BlockIndex block{layout.blocks[i].name, layout.blocks[i].used_bytes, {}};
    block.runs = joined(runs);
    VMSIEVE_TRY(layer.adopt(block.runs, writer));
    count_pages(block.runs, counts);
    blocks.push_back(std::move(block));
  }
  return blocks;
}

Result<ObjectRecord> write_device_state(CheckpointWriter& checkpoint, std::span<const std::byte> state) {
  VMSIEVE_ASSIGN(auto object, checkpoint.create("device"));
  VMSIEVE_TRY(object->append(state));
  VMSIEVE_TRY(object->finish());
  return ObjectRecord{"device", state.size(), checksum(state)};
}

void report_writing(const CapturePipeline& pipeline, u64 pages, const ProgressFunction& progress) {
  while (!pipeline.failed() && pipeline.done_pages() < pages) {
    progress({"writing", pipeline.done_pages() * kPageSize, pages * kPageSize});
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

}  // namespace vmsieve
