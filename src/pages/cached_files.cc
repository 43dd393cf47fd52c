// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/pages/cached_files.h"

namespace vmsieve {
namespace {

constexpr int kMaxDirectories = 64;
constexpr u64 kMaxComponentBytes = 255;  // NAME_MAX
constexpr u64 kMaxPathBytes = 1024;
constexpr u16 kTypeMask = 0170000;  // S_IFMT
constexpr u16 kBlockDevice = 0060000;

}  // namespace

std::optional<CachedFileNames> CachedFileNames::make(KernelReader reader, const Btf& types) {
  CachedFileNames names(reader);
  const auto host = types.offset_of("address_space", "host");
  const auto mode = types.offset_of("inode", "i_mode");
  const auto super = types.offset_of("inode", "i_sb");
  const auto aliases = types.offset_of("inode", "i_dentry.first");
  const auto type = types.offset_of("super_block", "s_type");
  const auto type_name = types.offset_of("file_system_type", "name");
  auto alias = types.offset_of("dentry", "d_u.d_alias");
  if (!alias) alias = types.offset_of("dentry", "d_alias");
  const auto dentry_name = types.offset_of("dentry", "d_name.name");
  const auto parent = types.offset_of("dentry", "d_parent");
  if (!host || !mode || !super || !aliases || !type || !type_name || !alias || !dentry_name || !parent)
    return std::nullopt;
  names.host_ = *host;
  names.mode_ = *mode;
  names.super_ = *super;
  names.aliases_ = *aliases;
  names.type_ = *type;
  names.type_name_ = *type_name;
  names.alias_ = *alias;
  names.dentry_name_ = *dentry_name;
  names.parent_ = *parent;
  return names;
}

bool CachedFileNames::is_block_device(GuestVirtual mapping) const {
  const auto inode = reader_.pointer(mapping + host_);
  const auto mode = inode ? reader_.number<u16>(*inode + mode_) : std::nullopt;
  return mode && (*mode & kTypeMask) == kBlockDevice;
}

std::string CachedFileNames::name(GuestVirtual mapping) const {
  const auto inode = reader_.pointer(mapping + host_);
  const auto super = inode ? reader_.pointer(*inode + super_) : std::nullopt;
  const auto type = super ? reader_.pointer(*super + type_) : std::nullopt;
  const auto type_name = type ? reader_.pointer(*type + type_name_) : std::nullopt;
  const auto system = type_name ? reader_.text(*type_name, kMaxComponentBytes) : std::nullopt;
  if (!system) return {};

  const auto node = reader_.pointer(*inode + aliases_);
  if (!node) return *system;
  GuestVirtual dentry{node->value - alias_};
  std::string path;
  for (int i = 0; i < kMaxDirectories && path.size() < kMaxPathBytes; ++i) {
    const auto parent = reader_.pointer(dentry + parent_);
    const auto text_at = reader_.pointer(dentry + dentry_name_);
    const auto text = text_at ? reader_.text(*text_at, kMaxComponentBytes) : std::nullopt;
    if (!parent || !text) break;
    if (*parent == dentry) {
      // The root is called "/"; a pseudo file's own entry has its only name.
      if (path.empty() && *text != "/") path = *text;
      break;
    }
    path = "/" + *text + path;
    dentry = *parent;
  }
  return path.empty() ? *system : *system + ":" + path;
}

}  // namespace vmsieve
