// SPDX-License-Identifier: Apache-2.0
// BTF of any kind, and good BTF that is patched: parsed, and asked for what the program asks for.
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "support/fake_btf.h"
#include "vmsieve/guest/btf.h"

namespace {

using namespace vmsieve;

// Everything that the program looks through: anonymous members, arrays, typedefs, enumerations.
std::vector<std::byte> good() {
  using testing::FakeBtf;
  FakeBtf made;
  const u32 word = made.integer("long unsigned int", 8);
  const u32 number = made.integer("unsigned int", 4);
  const u32 list_head = made.structure("list_head", 16, {{"next", word, 0}, {"prev", word, 64}});
  const u32 named = made.modifier(FakeBtf::kTypedef, "list_t", list_head);
  const u32 either =
      made.union_of("", 16, {{"lru", made.modifier(FakeBtf::kConst, "", named), 0}, {"pcp_llist", word, 0}});
  made.structure("page", 64, {{"flags", word, 0}, {"", made.structure("", 40, {{"", either, 0}}), 64}});
  const u32 mutex =
      made.structure("rt_mutex_base", 32, {{"wait_lock", number, 0}, {"owner", made.pointer(0), 192}});
  const u32 lock = made.structure("spinlock", 32, {{"lock", mutex, 0}});
  made.structure_with_bit_fields("zone", 1024, {{"lock", lock, 64, 0}, {"flag", number, 4000, 3}});
  made.structure("per_cpu_pages", 320, {{"count", number, 32}, {"lists", made.array(list_head, 14), 512}});
  made.enumeration("migratetype", {{"MIGRATE_PCPTYPES", 3}});
  made.enumeration64("wide", {{"SYSTEM_RUNNING", 3}});
  return made.bytes();
}

void ask(const Btf& btf) {
  for (const char* name : {"page", "zone", "per_cpu_pages", "hstate", "cpumask", ""}) {
    const auto size = btf.size_of(name);
    for (const char* path : {"lru", "pcp_llist", "lock", "lock.lock.owner", "lists", "count", "", "."}) {
      const auto member = btf.member(name, path);
      VMSIEVE_CHECK(!member || (member->offset < kGiB * 16 && *path != '\0'));
    }
    VMSIEVE_CHECK(!size || *name != '\0');
  }
  (void)btf.enumerator("MIGRATE_PCPTYPES");
  (void)btf.enumerator("SYSTEM_RUNNING");
}

}  // namespace

// The first byte: whether all is BTF, or (offset, 4 bytes) pairs that patch a good one.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 1) return 0;
  const std::span input(reinterpret_cast<const std::byte*>(data) + 1, size - 1);
  std::vector<std::byte> bytes(input.begin(), input.end());
  if ((data[0] & 1) != 0) {
    static const std::vector<std::byte> whole = good();
    bytes = whole;
    for (std::size_t at = 0; at + 6 <= input.size(); at += 6) {
      const u64 offset = load_le<u16>(&input[at]) % (bytes.size() - 3);
      std::copy_n(&input[at + 2], 4, &bytes[offset]);
    }
  }
  const auto btf = Btf::parse(std::move(bytes));
  if (btf.ok()) ask(*btf);
  return 0;
}
