// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>

#include "vmsieve/guest/kernel_reader.h"
#include "vmsieve/guest/kernel_symbols.h"

namespace vmsieve {

/// Looks up whose pages those of a struct address_space are, through its inode (include/linux/fs.h) and the
/// inode's first name in the directory cache (include/linux/dcache.h).
class CachedFileNames {
 public:
  /// None when the kernel's types do not show how.
  static std::optional<CachedFileNames> make(KernelReader reader, const Btf& types);

  /// Does the page cache at `mapping` belong to a block device? The kernel counts those pages as buffers.
  bool is_block_device(GuestVirtual mapping) const;

  /// "FILESYSTEM:PATH", the path from the root of that file system on; "FILESYSTEM" alone when the file has
  /// no name (deleted, or never had one), "" when nothing can be read. At most 64 directories and 1 KiB.
  std::string name(GuestVirtual mapping) const;

 private:
  CachedFileNames(KernelReader reader) : reader_(reader) {}

  KernelReader reader_;
  u64 host_ = 0;                                  // in address_space
  u64 mode_ = 0, super_ = 0, aliases_ = 0;        // in inode
  u64 type_ = 0;                                  // in super_block
  u64 type_name_ = 0;                             // in file_system_type
  u64 alias_ = 0, dentry_name_ = 0, parent_ = 0;  // in dentry
};

}  // namespace vmsieve
