// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "vmsieve/base/endian.h"

namespace vmsieve::testing {

/// BTF written type by type after Documentation/bpf/btf.rst, without the code under test. Each call adds
/// one type and gives its id; nothing is checked, so that tests can write what makes no sense.
class FakeBtf {
 public:
  enum Kind : u32 {
    kInt = 1,
    kPtr,
    kArray,
    kStruct,
    kUnion,
    kEnum,
    kFwd,
    kTypedef,
    kVolatile,
    kConst,
    kRestrict,
    kFunc,
    kFuncProto,
    kVar,
    kDataSec,
    kFloat,
    kDeclTag,
    kTypeTag,
    kEnum64,
  };
  struct Member {
    std::string name;
    u32 type = 0;
    u64 bit = 0;             // where it begins
    u32 bit_field_size = 0;  // not 0: a bit field, of a structure with bit fields
  };

  u32 next_id() const { return types_ + 1; }

  u32 integer(const std::string& name, u32 bytes) { return add(name, kInt << 24, bytes, {bytes * 8}); }
  u32 pointer(u32 type) { return add("", kPtr << 24, type); }
  u32 array(u32 type, u32 count) { return add("", kArray << 24, 0, {type, type, count}); }
  u32 forward(const std::string& name) { return add(name, kFwd << 24, 0); }
  /// typedef, const, volatile, restrict or a type tag.
  u32 modifier(Kind kind, const std::string& name, u32 type) { return add(name, kind << 24, type); }

  u32 structure(const std::string& name, u32 bytes, const std::vector<Member>& members) {
    return compound(kStruct, name, bytes, members, false);
  }
  u32 union_of(const std::string& name, u32 bytes, const std::vector<Member>& members) {
    return compound(kUnion, name, bytes, members, false);
  }
  u32 structure_with_bit_fields(const std::string& name, u32 bytes, const std::vector<Member>& members) {
    return compound(kStruct, name, bytes, members, true);
  }

  u32 enumeration(const std::string& name, const std::vector<std::pair<std::string, std::int32_t>>& values) {
    std::vector<u32> words;
    for (const auto& [text, value] : values) {
      words.push_back(string(text));
      words.push_back(static_cast<u32>(value));
    }
    return add(name, kEnum << 24 | static_cast<u32>(values.size()), 4, words);
  }
  u32 enumeration64(const std::string& name, const std::vector<std::pair<std::string, i64>>& values) {
    std::vector<u32> words;
    for (const auto& [text, value] : values) {
      words.push_back(string(text));
      words.push_back(static_cast<u32>(static_cast<u64>(value)));
      words.push_back(static_cast<u32>(static_cast<u64>(value) >> 32));
    }
    return add(name, kEnum64 << 24 | static_cast<u32>(values.size()), 8, words);
  }

  /// Anything: `info` holds kind, number of members and kind flag, `words` follow the common part.
  u32 add(const std::string& name, u32 info, u32 size_or_type, const std::vector<u32>& words = {}) {
    append_le<u32>(section_, string(name));
    append_le<u32>(section_, info);
    append_le<u32>(section_, size_or_type);
    return add_raw(words);
  }
  /// The words of a type, or of what follows its common part.
  u32 add_raw(std::span<const u32> words) {
    for (const u32 word : words) append_le<u32>(section_, word);
    return ++types_;
  }

  /// Offset of a string in the string section; it is added.
  u32 string(const std::string& text) {
    if (text.empty()) return 0;
    const auto at = static_cast<u32>(strings_.size());
    strings_ += text;
    strings_ += '\0';
    return at;
  }

  /// The header, the types and the strings.
  std::vector<std::byte> bytes() const {
    std::vector<std::byte> out;
    append_le<u16>(out, 0xeb9f);
    append_le<u16>(out, 1);  // version 1, no flags
    append_le<u32>(out, 24);
    append_le<u32>(out, 0);
    append_le<u32>(out, static_cast<u32>(section_.size()));
    append_le<u32>(out, static_cast<u32>(section_.size()));
    append_le<u32>(out, static_cast<u32>(strings_.size()));
    append_bytes(out, section_);
    append_bytes(out, as_byte_span(strings_));
    return out;
  }

 private:
  u32 compound(Kind kind, const std::string& name, u32 bytes, const std::vector<Member>& members, bool flag) {
    std::vector<u32> words;
    for (const Member& m : members) {
      words.push_back(string(m.name));
      words.push_back(m.type);
      words.push_back(static_cast<u32>(m.bit) | (flag ? m.bit_field_size << 24 : 0));
    }
    return add(name, kind << 24 | static_cast<u32>(members.size()) | (flag ? u32{1} << 31 : 0), bytes, words);
  }

  std::vector<std::byte> section_;
  std::string strings_ = std::string(1, '\0');
  u32 types_ = 0;
};

}  // namespace vmsieve::testing
