// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "vmsieve/base/fd.h"
#include "vmsieve/base/progress.h"
#include "vmsieve/base/result.h"
#include "vmsieve/image/memory_index.h"
#include "vmsieve/restore/command_line.h"
#include "vmsieve/store/checkpoint_reader.h"

namespace vmsieve {

/// Main memory of a checkpoint, in one file without a name for each of its RAM blocks, which any number of
/// QEMUs map privately: pages that none of them has written to are in the host's memory once. The kernel
/// keeps a file until the last of them has ended. Sealed: nobody can change what the others see.
class CloneMemory {
 public:
  /// Reads, checks and writes every page of main memory; what is zero takes no memory. `index` is the
  /// reader's or one with other fills. `threads` decode.
  static Result<CloneMemory> make(const CheckpointReader& reader, const MemoryIndex& index, unsigned threads,
                                  const ProgressFunction& progress);

  /// By block of the index: its pages are here, and not in a migration stream.
  const std::vector<bool>& blocks() const { return blocks_; }
  /// For a new QEMU to inherit, the first as descriptor `first`, and so on.
  std::vector<int> descriptors() const;
  /// The command line with these files for main memory, whatever it was in before (`first` as above): a
  /// memory backend of that name is replaced, else the machine's own memory gets one.
  Result<QemuCommandLine> behind(QemuCommandLine line, int first) const;

 private:
  struct File {
    std::string block;
    u64 bytes = 0;
    UniqueFd fd;
  };

  std::vector<bool> blocks_;
  std::vector<File> files_;
};

/// Undoes behind(): a clone's checkpoint, too, can be restored, into memory of QEMU's own.
Result<void> forget_clone_memory(QemuCommandLine& line);

/// `text` with every "{n}" replaced by the number of the clone.
std::string numbered(std::string text, unsigned number);

}  // namespace vmsieve
