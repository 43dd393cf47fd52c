// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/restore/fresh_memory.h"

#include <algorithm>

#include "vmsieve/qemu/live_memory.h"
#include "vmsieve/qemu/machine.h"

namespace vmsieve {

namespace {

/// The block of the new QEMU, when it is main memory there too.
const RamBlock* new_block(const RamLayout& layout, const std::string& name) {
  if (name.empty()) return nullptr;  // QEMU does not migrate it
  const auto block = std::ranges::find(layout.blocks, name, &RamBlock::name);
  return block == layout.blocks.end() || !block->guest_ram ? nullptr : &*block;
}

}  // namespace

Result<FreshMemory> find_fresh_memory(const Manifest& manifest, const MemoryIndex& index, QmpClient& qmp,
                                      pid_t qemu) {
  FreshMemory fresh;
  VMSIEVE_ASSIGN(fresh.layout, read_ram_layout(qmp, qemu));
  VMSIEVE_ASSIGN(const auto memory, LiveMemory::open(qemu, fresh.layout));
  for (std::size_t i = 0; i < index.blocks.size(); ++i) {
    const RamBlock* block =
        manifest.blocks[i].guest_ram ? new_block(fresh.layout, index.blocks[i].name) : nullptr;
    fresh.brought.push_back(block != nullptr);
    fresh.block.push_back(0);
    if (block == nullptr) continue;
    if (block->used_bytes != index.blocks[i].used_bytes)
      return make_error(ErrorKind::kUnsupported, "RAM block {} has another size", block->name);
    const auto number = static_cast<u32>(block - fresh.layout.blocks.data());
    const u64 pages = round_up(block->used_bytes, kPageSize) >> kPageShift;
    if (!memory->resident_block(number, 0, pages).empty())
      return make_error(ErrorKind::kUnsupported, "the new QEMU has put something into RAM block {} already",
                        block->name);
    fresh.block.back() = number;
  }
  if (std::ranges::find(fresh.brought, true) == fresh.brought.end())
    return Error(ErrorKind::kUnsupported, "the checkpoint does not say which RAM block is main memory");
  return fresh;
}

}  // namespace vmsieve
