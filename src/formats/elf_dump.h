// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "vmsieve/base/fd.h"
#include "vmsieve/base/result.h"
#include "vmsieve/guest/memory.h"
#include "vmsieve/guest/vcpu.h"

namespace vmsieve {

/// What the headers and notes of an ELF64 core of a machine say: QEMU's `dump-guest-memory`, a kernel's own
/// /proc/vmcore, `makedumpfile -E`, `vmsieve export --format elf`.
struct ElfDumpHead {
  /// Guest-physical memory, whole pages. Behind the bytes in the file stand pages that were left out.
  struct Segment {
    u64 address = 0;
    u64 bytes = 0;
    u64 file_bytes = 0;  ///< at most `bytes`
    u64 offset = 0;      ///< into the file
    friend bool operator==(const Segment&, const Segment&) = default;
  };

  static constexpr u64 kMaxSegments = u64{1} << 20;
  static constexpr u64 kMaxNoteBytes = 64 * kMiB;  ///< of all notes; 8,192 vCPUs take 7 MiB
  static constexpr u64 kMaxAddress = u64{1} << 52;

  std::vector<Segment> segments;  ///< ascending, not overlapping
  /// x86-64, and only of QEMU's dumps (QEMUCPUState, target/i386/arch_dump.c): else UnknownVcpus.
  Vcpus vcpus;
  std::string vmcoreinfo;  ///< empty: no note of that name

  /// Exactly out.size() bytes at `offset`, which lie in the file.
  using ReadFunction = std::function<Result<void>(u64 offset, std::span<std::byte> out)>;

  /// Memory that several segments tell of (the kernel's image is told of twice) is taken from the one with
  /// the lowest address, or the first in the file; what is no whole page is left out. kUnsupported for what
  /// is no such core, kDamaged for one that is cut off or contradicts itself.
  static Result<ElfDumpHead> read(const ReadFunction& file, u64 file_bytes);
};

/// Guest-physical memory as an ELF core has it; pages that are not in the file read as zeros.
class ElfDump final : public GuestMemory {
 public:
  /// `path`: for messages.
  static Result<std::unique_ptr<ElfDump>> open(UniqueFd file, u64 file_bytes, std::string path);

  const ElfDumpHead& head() const { return head_; }
  std::span<const PfnRange> ram() const override { return ram_; }
  Result<void> read(GuestPhysical address, std::span<std::byte> out) const override;
  std::vector<PfnRange> resident(PfnRange range) const override;

 private:
  ElfDump(UniqueFd file, std::string path, ElfDumpHead head);

  UniqueFd file_;
  std::string path_;
  ElfDumpHead head_;
  std::vector<PfnRange> ram_;
};

}  // namespace vmsieve
