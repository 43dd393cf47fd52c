// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/guest/btf.h"

#include <algorithm>
#include <cstring>

#include "vmsieve/base/endian.h"

namespace vmsieve {
namespace {

// include/uapi/linux/btf.h
constexpr u16 kMagic = 0xeb9f;
constexpr u64 kHeaderBytes = 24;
constexpr u64 kTypeBytes = 12;
constexpr int kMaxDepth = 16;
enum Kind : u32 {
  kInt = 1,
  kPtr = 2,
  kArray = 3,
  kStruct = 4,
  kUnion = 5,
  kEnum = 6,
  kFwd = 7,
  kTypedef = 8,
  kVolatile = 9,
  kConst = 10,
  kRestrict = 11,
  kFunc = 12,
  kFuncProto = 13,
  kVar = 14,
  kDataSec = 15,
  kFloat = 16,
  kDeclTag = 17,
  kTypeTag = 18,
  kEnum64 = 19,
};
constexpr u64 kMemberBytes = 12;
constexpr u64 kEnumBytes = 8;
constexpr u64 kEnum64Bytes = 12;
constexpr u64 kPointerBytes = 8;
// Members looked at for one answer. Anonymous structures inside each other may be as many ways as there
// are members to the power of the depth; struct page, the most nested one, has about a hundred.
constexpr u64 kMaxMembersSeen = u64{1} << 17;
// Of a name so much is read: KSYM_NAME_LEN, beyond which the kernel takes none (kernel/bpf/btf.c
// __btf_name_valid()). Strings may overlap, so without a limit their number times the length of all.
constexpr u64 kMaxBtfNameBytes = 512;

// Bytes behind the common part; none for a kind that is not known, behind which nothing can be found.
std::optional<u64> extra_bytes(u32 kind, u64 vlen) {
  switch (kind) {
    case kPtr:
    case kFwd:
    case kTypedef:
    case kVolatile:
    case kConst:
    case kRestrict:
    case kFunc:
    case kFloat:
    case kTypeTag: return 0;
    case kInt:
    case kVar:
    case kDeclTag: return 4;
    case kArray: return 12;
    case kStruct:
    case kUnion: return vlen * kMemberBytes;
    case kEnum: return vlen * kEnumBytes;
    case kFuncProto: return vlen * 8;
    case kDataSec: return vlen * 12;
    case kEnum64: return vlen * kEnum64Bytes;
    default: return std::nullopt;
  }
}

bool is_struct(u32 kind) { return kind == kStruct || kind == kUnion; }

bool is_modifier(u32 kind) {
  return kind == kTypedef || kind == kVolatile || kind == kConst || kind == kRestrict || kind == kTypeTag;
}

}  // namespace

Result<Btf> Btf::parse(std::vector<std::byte> bytes) {
  Btf btf;
  if (bytes.size() < kHeaderBytes || bytes.size() > kMaxBytes)
    return make_error(ErrorKind::kDamaged, "BTF of {} bytes", bytes.size());
  const auto word = [&](u64 at) { return u64{load_le<u32>(&bytes[at])}; };
  const u64 header = word(4);
  if (load_le<u16>(bytes.data()) != kMagic || bytes[2] != std::byte{1} || header < kHeaderBytes ||
      header > bytes.size()) {
    return Error(ErrorKind::kDamaged, "no BTF header");
  }
  const u64 room = bytes.size() - header;
  const u64 types = word(8), types_size = word(12), strings = word(16), strings_size = word(20);
  if (types > room || types_size > room - types || strings > room || strings_size > room - strings ||
      strings_size == 0 || bytes[header + strings + strings_size - 1] != std::byte{0}) {
    return Error(ErrorKind::kDamaged, "BTF whose sections are not inside it");
  }
  btf.strings_ = header + strings;
  btf.strings_size_ = strings_size;
  btf.bytes_ = std::move(bytes);

  const u64 end = header + types + types_size;
  for (u64 at = header + types; at < end;) {
    const u32 info = end - at >= kTypeBytes ? load_le<u32>(&btf.bytes_[at + 4]) : 0;
    const auto extra = extra_bytes((info >> 24) & 0x1f, info & 0xffff);
    if (!extra || *extra > end - at - kTypeBytes || btf.types_.size() == kMaxTypes)
      return make_error(ErrorKind::kDamaged, "BTF type {} makes no sense", btf.types_.size() + 1);
    btf.types_.push_back(static_cast<u32>(at));
    at += kTypeBytes + *extra;
  }
  for (u32 id = 1; id <= btf.types_.size(); ++id) {
    const auto type = btf.type(id);
    if (!type || !is_struct(type->kind())) continue;
    const std::string_view name = btf.name_at(type->name);
    if (name.empty()) continue;
    const auto [place, added] = btf.structs_.try_emplace(name, id);
    if (!added) place->second = 0;
  }
  return btf;
}

std::optional<Btf::Type> Btf::type(u32 id) const {
  if (id == 0 || id > types_.size()) return std::nullopt;
  const u64 at = types_[id - 1];
  return Type{load_le<u32>(&bytes_[at]), load_le<u32>(&bytes_[at + 4]), load_le<u32>(&bytes_[at + 8]),
              at + kTypeBytes};
}

// The type behind typedefs and qualifiers.
std::optional<Btf::Type> Btf::resolved(u32 id) const {
  for (int step = 0; step < kMaxDepth; ++step) {
    const auto found = type(id);
    if (!found) return std::nullopt;
    if (!is_modifier(found->kind())) return found;
    id = found->size_or_type;
  }
  return std::nullopt;
}

std::string_view Btf::name_at(u32 offset) const {
  if (offset >= strings_size_) return {};
  const auto* text = reinterpret_cast<const char*>(&bytes_[strings_ + offset]);
  return {text, strnlen(text, std::min(strings_size_ - offset, kMaxBtfNameBytes))};
}

bool Btf::is_named(u32 offset, std::string_view name) const {
  if (offset >= strings_size_ || strings_size_ - offset <= name.size()) return false;
  const std::byte* const text = &bytes_[strings_ + offset];
  return text[name.size()] == std::byte{0} && std::memcmp(text, name.data(), name.size()) == 0;
}

std::optional<u64> Btf::size_of_type(u32 id, int depth) const {
  if (depth > kMaxDepth) return std::nullopt;
  const auto found = resolved(id);
  if (!found) return std::nullopt;
  switch (found->kind()) {
    case kInt:
    case kStruct:
    case kUnion:
    case kEnum:
    case kEnum64:
    case kFloat: return found->size_or_type;
    case kPtr: return kPointerBytes;
    case kArray: {
      const auto element = size_of_type(load_le<u32>(&bytes_[found->extra]), depth + 1);
      const u64 count = load_le<u32>(&bytes_[found->extra + 8]);
      u64 size = 0;
      if (!element || __builtin_mul_overflow(*element, count, &size)) return std::nullopt;
      return size;
    }
    default: return std::nullopt;
  }
}

std::optional<u32> Btf::find_struct(std::string_view name) const {
  const auto found = structs_.find(name);
  if (found == structs_.end() || found->second == 0) return std::nullopt;
  return found->second;
}

std::optional<u64> Btf::size_of(std::string_view name) const {
  const auto id = find_struct(name);
  if (!id) return std::nullopt;
  return size_of_type(*id, 0);
}

// Before structures had a flag for it (pahole 1.13), the integer told that it is a bit field.
bool Btf::is_bit_field(u32 type_id) const {
  const auto type = resolved(type_id);
  return type && type->kind() == kInt &&
         (load_le<u32>(&bytes_[type->extra]) & 0xff) != u64{type->size_or_type} * 8;
}

std::optional<Btf::Found> Btf::find_member(const Type& structure, std::string_view name, int depth,
                                           u64& budget) const {
  if (depth > kMaxDepth || name.empty()) return std::nullopt;
  for (u32 i = 0; i < structure.vlen(); ++i) {
    if (budget == 0) return std::nullopt;
    --budget;
    const std::byte* const entry = &bytes_[structure.extra + i * kMemberBytes];
    const u32 member_name = load_le<u32>(entry);
    const u32 member_type = load_le<u32>(entry + 4);
    const u32 raw = load_le<u32>(entry + 8);
    const u64 bits = structure.kind_flag() ? raw & 0xff'ffff : raw;
    const bool bit_field = structure.kind_flag() && (raw >> 24) != 0;
    if (is_named(member_name, name)) {
      if (bit_field || bits % 8 != 0 || is_bit_field(member_type)) return std::nullopt;
      return Found{{bits / 8, 0, 1}, member_type};
    }
    if (!is_named(member_name, "") || bits % 8 != 0) continue;
    const auto inner = resolved(member_type);
    if (!inner || !is_struct(inner->kind())) continue;
    if (auto found = find_member(*inner, name, depth + 1, budget)) {
      found->member.offset += bits / 8;
      return found;
    }
  }
  return std::nullopt;
}

void Btf::describe(Found& found) const {
  found.member.size = size_of_type(found.type, 0).value_or(0);
  const auto type = resolved(found.type);
  if (type && type->kind() == kArray) found.member.elements = load_le<u32>(&bytes_[type->extra + 8]);
}

std::optional<Btf::Member> Btf::member(std::string_view structure, std::string_view path) const {
  const auto id = find_struct(structure);
  if (!id) return std::nullopt;
  auto at = type(*id);
  u64 offset = 0;
  u64 budget = kMaxMembersSeen;
  for (;;) {
    const auto dot = path.find('.');
    if (!at || !is_struct(at->kind())) return std::nullopt;
    auto found = find_member(*at, path.substr(0, dot), 0, budget);
    if (!found) return std::nullopt;
    offset += found->member.offset;
    if (dot == std::string_view::npos) {
      describe(*found);
      found->member.offset = offset;
      return found->member;
    }
    path = path.substr(dot + 1);
    at = resolved(found->type);
  }
}

std::optional<i64> Btf::enumerator(std::string_view name) const {
  std::optional<i64> value;
  for (u32 id = 1; id <= types_.size(); ++id) {
    const auto type = this->type(id);
    const bool wide = type->kind() == kEnum64;
    if (!wide && type->kind() != kEnum) continue;
    for (u64 i = 0; i < type->vlen(); ++i) {
      const std::byte* const entry = &bytes_[type->extra + i * (wide ? kEnum64Bytes : kEnumBytes)];
      if (!is_named(load_le<u32>(entry), name)) continue;
      const u32 low = load_le<u32>(entry + 4);
      const i64 found =
          wide ? static_cast<i64>(u64{load_le<u32>(entry + 8)} << 32 | low) : i64{static_cast<int32_t>(low)};
      if (value && *value != found) return std::nullopt;
      value = found;
    }
  }
  return value;
}

}  // namespace vmsieve
