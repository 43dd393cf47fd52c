// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/formats/import_dump.h"

#include <algorithm>
#include <thread>

#include "vmsieve/base/clock.h"
#include "vmsieve/capture/save_steps.h"
#include "vmsieve/formats/elf_dump.h"
#include "vmsieve/guest/vmcoreinfo_search.h"
#include "vmsieve/store/memory_writer.h"

namespace vmsieve {

namespace {

/// The kernel that a note tells of, where its text is in memory.
Result<LinuxKernel> kernel_of_note(const ElfDump& dump, unsigned threads) {
  const std::string& text = dump.head().vmcoreinfo;
  if (text.empty()) return Error(ErrorKind::kNotFound, "");
  VMSIEVE_ASSIGN(const auto candidates, search_vmcoreinfo(dump, threads));
  for (const VmcoreInfoCandidate& candidate : candidates) {
    // The note and the page may hold a different number of line ends.
    if (!text.starts_with(candidate.text) && !candidate.text.starts_with(text)) continue;
    VMSIEVE_ASSIGN(VmcoreInfo info, VmcoreInfo::parse(candidate.text));
    return LinuxKernel::from_vmcoreinfo(std::move(info), candidate.address);
  }
  return Error(ErrorKind::kNotFound, "the text of its VMCOREINFO note is nowhere in memory");
}

struct Sieved {
  FreePages free;
  IntrospectionRecord record;
};

void note_kernel(IntrospectionRecord& record, const LinuxKernel& kernel) {
  record.kernel = kernel.release();
  record.vmcoreinfo = kernel.vmcoreinfo().text();
  record.vmcoreinfo_address = kernel.witness().address.value;
}

/// As at a stop: a dump is of one instant.
Result<Sieved> sieve(const ElfDump& dump, const SaveOptions& options, unsigned threads) {
  Sieved sieved;
  IntrospectionRecord& record = sieved.record;
  if (!options.introspection) {
    record.reason = "introspection was switched off";
    return sieved;
  }
  if (std::holds_alternative<UnknownVcpus>(dump.head().vcpus)) {
    record.reason = "the dump holds no registers of vCPUs by which its kernel could be proved";
    if (const auto kernel = kernel_of_note(dump, threads); kernel.ok()) {
      note_kernel(record, *kernel);
    } else if (kernel.error().kind() == ErrorKind::kIo) {
      return kernel.error();
    }
    return sieved;
  }
  const Stopwatch watch;
  const auto kernel = find_linux_kernel(dump, dump.head().vcpus);
  if (!kernel.ok()) {
    record.reason = kernel.error().message();
    return sieved;
  }
  note_kernel(record, *kernel);
  AllocatorLayout allocator;
  const auto symbols = KernelSymbols::read(dump, *kernel);
  if (symbols.ok()) allocator = AllocatorLayout::read(dump, *kernel, *symbols);
  auto free = find_free_pages(
      dump, *kernel,
      {.threads = threads, .allocator = symbols.ok() ? &allocator : nullptr, .kinds = options.kinds});
  record.classify_ms = watch.ms();
  if (!free.ok()) {
    record.reason = free.error().message();
    return sieved;
  }
  sieved.free = *std::move(free);
  record.used = sieved.free.count > 0;
  record.free_pages = {sieved.free.buddy, sieved.free.per_cpu, sieved.free.hugetlb, sieved.free.offline};
  for (const std::string& doubt : sieved.free.doubts)
    record.reason += (record.reason.empty() ? "" : "; ") + doubt;
  return sieved;
}

/// One block for each run of memory.
RamLayout layout_of(const ElfDump& dump) {
  RamLayout layout;
  for (const PfnRange& range : dump.ram()) {
    const u64 bytes = range.count * kPageSize;
    const auto block = static_cast<u32>(layout.blocks.size());
    layout.mappings.push_back({range.first.address(), bytes, block, 0});
    layout.blocks.push_back({.name = fmt::format("dump@{:#x}", range.first.address().value),
                             .used_bytes = bytes,
                             .max_bytes = bytes,
                             .guest_ram = true});
  }
  return layout;
}

Result<void> read_out(const ElfDump& dump, const RamLayout& layout, const PagePlan& plan,
                      CapturePipeline& pipeline, const ProgressFunction& progress) {
  u64 done = 0;
  for (Chunk& chunk : cut_chunks(plan, pipeline.chunk_pages())) {
    std::byte* const buffer = pipeline.acquire();
    if (buffer == nullptr) return {};  // finish() tells why
    std::byte* to = buffer;
    for (const BlockPages& run : chunk.runs) {
      const GuestPhysical from = layout.mappings[chunk.block].address + run.first_page * kPageSize;
      if (auto read = dump.read(from, {to, run.pages * kPageSize}); !read.ok()) {
        pipeline.cancel(buffer);
        return read;
      }
      to += run.pages * kPageSize;
    }
    done += chunk.pages;
    pipeline.submit(std::move(chunk), buffer);
    progress({"reading", done * kPageSize, plan.read_pages * kPageSize});
  }
  return {};
}

}  // namespace

Result<SaveReport> import_dump(UniqueFd file, u64 file_bytes, const std::string& path, Store& store,
                               const SaveOptions& options, const ProgressFunction& progress) {
  const Stopwatch total;
  const unsigned threads =
      options.threads != 0 ? options.threads : std::max(1U, std::thread::hardware_concurrency());
  VMSIEVE_ASSIGN(const auto dump, ElfDump::open(std::move(file), file_bytes, path));
  const RamLayout layout = layout_of(*dump);
  progress({"finding the kernel", 0, 0});
  VMSIEVE_ASSIGN(Sieved sieved, sieve(*dump, options, threads));

  VMSIEVE_ASSIGN(auto checkpoint, store.begin());
  VMSIEVE_ASSIGN(auto memory_object, checkpoint->create("memory"));
  MemoryObjectWriter writer(*memory_object, checkpoint->id());
  VMSIEVE_ASSIGN(auto pipeline, CapturePipeline::make(writer, layout.blocks.size(),
                                                      {.compression = options.compression,
                                                       .threads = threads,
                                                       .buffer_bytes = options.buffer_bytes}));
  const PagePlan plan = plan_pages(
      layout, sieved.free.runs, sieved.free.fill,
      [&](u32 block, u64 first, u64 count) {
        const u64 begin = layout.mappings[block].address.value >> kPageShift;
        std::vector<LiveMemory::PageRun> runs;
        for (const PfnRange& range : dump->resident({Pfn{begin + first}, count}))
          runs.push_back({range.first.value - begin, range.count});
        return runs;
      },
      Ask::kAlways);
  pipeline->open_gate();
  const auto read = read_out(*dump, layout, plan, *pipeline, progress);
  auto outcome = pipeline->finish();
  if (!outcome.ok()) return outcome.error();
  VMSIEVE_TRY(read);

  SaveReport report;
  Manifest& m = report.manifest;
  VMSIEVE_ASSIGN(std::vector<BlockIndex> index,
                 build_index(layout, plan, *outcome, nullptr, writer, m.pages));
  VMSIEVE_ASSIGN(const ObjectRecord memory_record, writer.finish(std::move(index)));
  VMSIEVE_ASSIGN(const ObjectRecord device_record, write_device_state(*checkpoint, {}));
  m.id = checkpoint->id();
  m.created = utc_now();
  m.mode = Manifest::kDumpMode;
  m.was_running = false;
  m.vcpus = vcpu_count(dump->head().vcpus);
  m.compression = options.compression.text();
  m.introspection = std::move(sieved.record);
  for (const RamBlock& block : layout.blocks) {
    m.blocks.push_back(
        {block.name, block.used_bytes, block.max_bytes, block.host_page_bytes, block.guest_ram});
    m.guest_bytes += block.used_bytes;
  }
  for (const RamMapping& mapping : layout.mappings)
    m.mappings.push_back({mapping.address.value, mapping.bytes, mapping.block, mapping.block_offset});
  m.pages.total = m.guest_bytes >> kPageShift;
  m.objects = {memory_record, device_record};
  m.stored_bytes = memory_record.bytes + device_record.bytes;
  m.total_ms = total.ms();
  VMSIEVE_TRY(checkpoint->commit(m));
  return report;
}

}  // namespace vmsieve
