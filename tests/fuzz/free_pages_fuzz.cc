// SPDX-License-Identifier: Apache-2.0
// A hand-made guest whose memory is patched anywhere: whatever its structures then say, the answer
// comes, and what it calls free is RAM, in order, and flagged free in the guest's struct pages.
#include <cstddef>
#include <cstdint>

#include "support/fake_guest.h"
#include "vmsieve/pages/free_pages.h"

namespace {

using namespace vmsieve;

// A flat copy of the guest's memory, made once, that is patched for one run and mended after it.
class PatchedMemory : public GuestMemory {
 public:
  explicit PatchedMemory(const testing::FakeMemory& base)
      : base_(base), bytes_(base.ram().back().end() * kPageSize) {
    for (const PfnRange& range : base.ram()) {
      for (const PfnRange& run : base.resident(range)) {
        const std::span out = std::span{bytes_}.subspan(run.first.address().value, run.count * kPageSize);
        VMSIEVE_CHECK(base.read(run.first.address(), out).ok());
      }
    }
  }
  std::span<const PfnRange> ram() const override { return base_.ram(); }
  std::vector<PfnRange> resident(PfnRange range) const override { return base_.resident(range); }

  Result<void> read(GuestPhysical address, std::span<std::byte> out) const override {
    for (const PfnRange& range : ram()) {
      const u64 begin = range.first.address().value;
      const u64 end = range.end() * kPageSize;
      if (address.value < begin || address.value >= end || out.size() > end - address.value) continue;
      std::copy_n(&bytes_[address.value], out.size(), out.begin());
      return {};
    }
    return make_error(ErrorKind::kDamaged, "{:#x} is not RAM", address.value);
  }

  void patch(GuestPhysical address, std::byte value) {
    undo_.emplace_back(address.value, bytes_[address.value]);
    bytes_[address.value] = value;
  }
  void mend() {
    for (; !undo_.empty(); undo_.pop_back()) bytes_[undo_.back().first] = undo_.back().second;
  }

 private:
  const testing::FakeMemory& base_;
  std::vector<std::byte> bytes_;
  std::vector<std::pair<u64, std::byte>> undo_;
};

testing::FakeGuest& guest() {
  static testing::FakeGuest guest({.small_vmemmap_pages = true});
  static const bool made = [] {
    guest.free_block(0x800, 3);
    guest.free_block(0x2000, 10);
    guest.free_block(0x2801, 0);
    return true;
  }();
  (void)made;
  return guest;
}

// Patches hit what matters: one of these, plus an offset inside the bytes behind it.
struct Target {
  GuestPhysical start;
  u64 bytes;
};

const Target kTargets[] = {
    {testing::FakeGuest::kStructPages, 0x3000 * 64},
    {Pfn{testing::FakeGuest::kTopPfn}.address(), kPageSize},
    {Pfn{0x1300}.address(), 16 * kPageSize},  // the other page tables
    {testing::FakeGuest::kNodes, 8192},
    {testing::FakeGuest::kNodeData, 16},
    {testing::FakeGuest::kRoots, 4 * kPageSize},
    {testing::FakeGuest::kNotePages, kPageSize},
    {testing::FakeGuest::kDataPage, kPageSize},
    {testing::FakeGuest::kStructPages + 0x2000 * 64, 4096},
};

void check(const PatchedMemory& memory, const FreePages& found) {
  u64 next = 0;
  u64 count = 0;
  for (const PfnRange& run : found.runs) {
    VMSIEVE_CHECK(run.count > 0 && (next == 0 || run.first.value > next));
    next = run.end();
    count += run.count;
    std::vector<std::byte> page(kPageSize);
    VMSIEVE_CHECK(memory.read(run.first.address(), page).ok());
    VMSIEVE_CHECK(memory.read(Pfn{run.end() - 1}.address(), page).ok());
  }
  VMSIEVE_CHECK(count == found.count && count <= found.described);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 1) return 0;
  static PatchedMemory memory(guest().memory());
  static const LinuxKernel known = guest().kernel();
  const auto* bytes = reinterpret_cast<const std::byte*>(data);
  // (target, offset, up to 8 bytes) each.
  for (std::size_t at = 1; at + 13 <= size; at += 13) {
    const Target& target = kTargets[data[at] % std::size(kTargets)];
    const u64 offset = load_le<u32>(bytes + at + 1) % target.bytes;
    for (u64 i = 0; i < 8 && offset + i < target.bytes; ++i) {
      memory.patch(target.start + offset + i, bytes[at + 5 + i]);
    }
  }
  const X86Vcpu vcpu = guest().vcpu();
  // The first byte: whether the kernel is looked for (slow), or the known one is used.
  std::optional<LinuxKernel> kernel;
  if ((data[0] & 7) == 0) {
    auto live = find_linux_kernel(memory, std::vector{vcpu});
    if (live.ok()) kernel = *std::move(live);
  } else {
    kernel = known;
    (void)kernel->prove_live(memory, std::vector{vcpu});
  }
  if (kernel) {
    const auto found = find_free_pages(memory, *kernel, {.threads = 1});
    if (found.ok()) check(memory, *found);
  }
  memory.mend();
  return 0;
}
