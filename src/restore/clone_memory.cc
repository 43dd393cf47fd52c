// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/restore/clone_memory.h"

#include <algorithm>
#include <cerrno>
#include <string_view>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vmsieve/restore/frame_feed.h"
#include "vmsieve/restore/option_parts.h"
#include "vmsieve/restore/option_table.h"

namespace vmsieve {

namespace {

constexpr std::string_view kCanonical = "/objects/";
constexpr std::string_view kOwnDescriptor = "/proc/self/fd/";

/// The backend's id in the name of its RAM block (QEMU backends/hostmem.c, host_memory_backend_get_name).
std::string_view backend_id(std::string_view block) {
  return block.starts_with(kCanonical) ? block.substr(kCanonical.size()) : block;
}

Result<void> write_fills(const BlockIndex& block, int fd) {
  for (const PageRun& run : block.runs) {
    if (run.kind == RunKind::kData || run.fill == 0) continue;
    const std::vector<std::byte> page(kPageSize, std::byte{run.fill});
    for (u64 i = run.first_page; i < run.first_page + run.pages; ++i)
      VMSIEVE_TRY(pwrite_all(fd, page, i * kPageSize, "the clones' memory"));
  }
  return {};
}

}  // namespace

Result<CloneMemory> CloneMemory::make(const CheckpointReader& reader, const MemoryIndex& index,
                                      unsigned threads, const ProgressFunction& progress) {
  CloneMemory memory;
  const std::vector<BlockRecord>& records = reader.manifest().blocks;
  std::vector<bool> elsewhere;
  std::vector<int> of_block;
  Progress at{"reading memory", 0, 0};
  for (std::size_t i = 0; i < index.blocks.size(); ++i) {
    const BlockIndex& block = index.blocks[i];
    const bool here = records[i].guest_ram && !block.name.empty();
    memory.blocks_.push_back(here);
    elsewhere.push_back(!here);
    of_block.push_back(-1);
    if (!here) continue;
    UniqueFd fd{::memfd_create("vmsieve-clones", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
    if (!fd.valid()) return errno_error(errno, "cannot make a file for the clones' memory");
    if (::ftruncate(fd.get(), static_cast<off_t>(block.used_bytes)) != 0)
      return errno_error(errno, "cannot make the clones' memory long enough");
    VMSIEVE_TRY(write_fills(block, fd.get()));
    of_block.back() = fd.get();
    for (const PageRun& run : block.runs)
      if (run.kind == RunKind::kData) at.total_bytes += run.pages * kPageSize;
    memory.files_.push_back({block.name, block.used_bytes, std::move(fd)});
  }
  if (memory.files_.empty())
    return Error(ErrorKind::kUnsupported, "the checkpoint does not say which RAM block is main memory");

  reader.expect_one_pass();
  FrameFeed feed(reader, frame_jobs(index, elsewhere), threads);
  for (;;) {
    VMSIEVE_ASSIGN(const auto decoded, feed.next());
    if (!decoded) break;
    for (const PagePlacement& place : decoded->job->placements) {
      VMSIEVE_TRY(pwrite_all(of_block[place.block],
                             decoded->bytes.subspan(place.page_in_frame * kPageSize, place.pages * kPageSize),
                             place.first_page * kPageSize, "the clones' memory"));
      at.done_bytes += place.pages * kPageSize;
    }
    if (progress) progress(at);
  }
  for (const File& file : memory.files_) {
    if (::fcntl(file.fd.get(), F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) != 0)
      return errno_error(errno, "cannot seal the clones' memory");
  }
  return memory;
}

std::vector<int> CloneMemory::descriptors() const {
  std::vector<int> descriptors;
  for (const File& file : files_) descriptors.push_back(file.fd.get());
  return descriptors;
}

Result<QemuCommandLine> CloneMemory::behind(QemuCommandLine line, int first) const {
  for (const std::string_view name : {"mem-path", "mem-prealloc"}) line.remove(name);
  for (std::size_t i = 0; i < files_.size(); ++i) {
    const File& file = files_[i];
    const std::string id{backend_id(file.block)};
    const bool has_backend = std::ranges::any_of(line.options(), [&](const QemuOption& option) {
      return canonical_option(option.name) == "object" &&
             OptionProperties{option.value.value_or(""), implied_key("object")}.get("id") == id;
    });
    VMSIEVE_TRY(
        line.set(fmt::format("object=memory-backend-file,id={},size={},mem-path={}{},share=off,x-use-"
                             "canonical-path-for-ramblock-id={}",
                             escape_commas(id), file.bytes, kOwnDescriptor, first + static_cast<int>(i),
                             file.block.starts_with(kCanonical) ? "on" : "off")));
    if (!has_backend) VMSIEVE_TRY(line.set(fmt::format("machine=memory-backend={}", escape_commas(id))));
  }
  return line;
}

Result<void> forget_clone_memory(QemuCommandLine& line) {
  for (const QemuOption& option : std::vector<QemuOption>(line.options())) {
    if (canonical_option(option.name) != "object") continue;
    const OptionProperties properties{option.value.value_or(""), implied_key("object")};
    if (!properties.get("mem-path").value_or("").starts_with(kOwnDescriptor)) continue;
    const auto id = properties.get("id");
    const auto size = properties.get("size");
    if (!id || !size) continue;
    VMSIEVE_TRY(line.set(fmt::format(
        "object=memory-backend-ram,id={},size={},x-use-canonical-path-for-ramblock-id={}", escape_commas(*id),
        *size, properties.on("x-use-canonical-path-for-ramblock-id") ? "on" : "off")));
  }
  return {};
}

std::string numbered(std::string text, unsigned number) {
  constexpr std::string_view kPlace = "{n}";
  const std::string digits = std::to_string(number);
  for (std::size_t at = text.find(kPlace); at != std::string::npos;
       at = text.find(kPlace, at + digits.size()))
    text.replace(at, kPlace.size(), digits);
  return text;
}

}  // namespace vmsieve
