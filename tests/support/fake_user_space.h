// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "support/fake_btf.h"
#include "support/fake_guest.h"
#include "support/fake_kallsyms.h"
#include "vmsieve/guest/kernel_symbols.h"

namespace vmsieve::testing {

struct FakeUserSpaceOptions {
  bool page_types = true;       ///< enum pagetype, since 6.12; else page types were macros
  bool counters_by_cpu = true;  ///< mm_struct.rss_stat is an array of percpu_counter, since 6.2
  bool compound_dtor = false;   ///< before 6.6 the second struct page of a huge page names its destructor
  bool file_types = true;       ///< the types of inodes and dentries
  bool task_types = true;
};

/// A FakeGuest whose kernel has processes, page flags and types, files in the page cache: written after
/// include/linux/{sched,mm_types,fs,dcache,page-flags}.h without the code under test.
class FakeUserSpace {
 public:
  explicit FakeUserSpace(FakeUserSpaceOptions options = {}) : options_(options) {
    const auto btf = types();
    VMSIEVE_CHECK(btf.size() < kInitTask - kBtf);
    memory().write(kBtf, btf);
    memory().write(kBanner, as_byte_span("Linux version 6.12.0-fake"));
    memory().write_le(kCpuOffsets, guest_.direct(kPerCpu).value);
    memory().write_le(kPossibleMask, u64{1});
    memory().write_le(kInitTask + kTasks, image(kInitTask + kTasks).value);
    memory().write_le(kInitTask + kTasks + 8, image(kInitTask + kTasks).value);
    const FakeKallsyms made({{'D', "linux_banner", image(kBanner)},
                             {'R', "__start_BTF", image(kBtf)},
                             {'R', "__stop_BTF", image(kBtf) + btf.size()},
                             {'D', "__per_cpu_offset", image(kCpuOffsets)},
                             {'D', "__cpu_possible_mask", image(kPossibleMask)},
                             {'D', "init_task", image(kInitTask)},
                             {'D', "init_stack", image(kStackEnd) + 0},
                             {'D', "__end_init_stack", image(kStackEnd) + 8192},
                             {'T', "_text", image(kText)},
                             {'B', "_end", image(kText) + 16 * kPageSize},
                             {'D', "vmalloc_base", image(kVmallocBase)}},
                            image(kKallsyms));
    memory().write(kKallsyms, made.bytes());
    memory().write_le(kVmallocBase, kVmalloc.value);
    const Kallsyms::Place& place = made.place();
    const auto key = [&](const std::string& name, GuestVirtual address) {
      guest_.set_key("SYMBOL(kallsyms_" + name + ")", fmt::format("{:x}", address.value));
    };
    key("num_syms", place.num_syms);
    key("names", place.names);
    key("token_table", place.token_table);
    key("token_index", place.token_index);
    key("offsets", place.offsets);
    key("relative_base", *place.relative_base);
    guest_.set_key("OFFSET(page.mapping)", "24");
    guest_.set_key("OFFSET(page.compound_head)", "8");
    if (options_.page_types) {
      guest_.set_key("NUMBER(PAGE_SLAB_MAPCOUNT_VALUE)", "-184549376");
      guest_.set_key("NUMBER(PAGE_HUGETLB_MAPCOUNT_VALUE)", "-201326592");
      guest_.set_key("NUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)", "-251658240");
    } else {
      guest_.set_key("NUMBER(PG_slab)", "9");
    }
    if (options_.compound_dtor) {
      guest_.set_key("NUMBER(HUGETLB_PAGE_DTOR)", "2");
      guest_.set_key("OFFSET(page.compound_dtor)", "16");
    }
  }

  static constexpr GuestPhysical kBanner{0x122'0000};
  static constexpr GuestPhysical kKallsyms{0x140'0000};
  static constexpr GuestPhysical kBtf{0x148'0000};
  static constexpr GuestPhysical kInitTask{0x150'0000};
  static constexpr GuestPhysical kCpuOffsets{0x150'2000};
  static constexpr GuestPhysical kPossibleMask{0x150'3000};
  static constexpr GuestPhysical kVmallocBase{0x150'4000};
  static constexpr GuestPhysical kStackEnd{0x150'6000};
  static constexpr GuestPhysical kText{0x120'0000};
  static constexpr GuestPhysical kPerCpu{0x1a0'0000};
  static constexpr GuestPhysical kObjects{0x1b0'0000};  // made one after the other
  static constexpr GuestVirtual kVmalloc{0xffff'c900'0000'0000};
  static constexpr u64 kTasks = 16, kTgid = 32, kComm = 40, kMm = 56, kStack = 64, kSignal = 72,
                       kThreadNode = 80, kThreadHead = 24;
  static constexpr u64 kReserved = 1 << 14, kDirty = 1 << 4, kSwapBacked = 1 << 19, kSwapCache = 1 << 10,
                       kHead = 1 << 6, kSlab = 1 << 9;

  static GuestVirtual image(GuestPhysical physical) {
    return GuestVirtual{FakeGuest::kStartKernelMap - FakeGuest::kPhysBase + physical.value};
  }
  FakeGuest& guest() { return guest_; }
  FakeMemory& memory() { return guest_.memory(); }
  LinuxKernel kernel() { return guest_.kernel(); }
  KernelSymbols symbols() {
    auto symbols = KernelSymbols::read(memory(), guest_.kernel());
    VMSIEVE_CHECK(symbols.ok());
    return *std::move(symbols);
  }

  /// A process behind the last one: its resident pages, and the stack of its only thread.
  GuestPhysical add_process(u32 pid, const std::string& name, u64 file, u64 anonymous, u64 shared,
                            GuestVirtual stack) {
    const GuestPhysical task = object(128);
    const GuestPhysical signal = object(64);
    memory().write_le(task + kTgid, pid);
    memory().write(task + kComm, as_byte_span(name));
    memory().write_le(task + kStack, stack.value);
    memory().write_le(task + kSignal, guest_.direct(signal).value);
    memory().write_le(signal + kThreadHead, (guest_.direct(task) + kThreadNode).value);
    memory().write_le(task + kThreadNode, (guest_.direct(signal) + kThreadHead).value);
    if (file + anonymous + shared != 0) add_memory(task, {file, anonymous, 0, shared});
    // list_add_tail(&task->tasks, &init_task.tasks)
    const GuestVirtual node = guest_.direct(task) + kTasks;
    const GuestVirtual head = image(kInitTask + kTasks);
    const GuestVirtual last{memory().read_u64(kInitTask + kTasks + 8)};
    memory().write_le(
        last == head ? kInitTask + kTasks : GuestPhysical{last - guest_.direct(GuestPhysical{0})},
        node.value);
    memory().write_le(task + kTasks, head.value);
    memory().write_le(task + kTasks + 8, last.value);
    memory().write_le(kInitTask + kTasks + 8, node.value);
    return task;
  }
  /// The page cache of a file: its struct address_space. `names` from the root of its file system down.
  GuestVirtual add_file(const std::string& system, const std::vector<std::string>& names,
                        u16 mode = 0100644) {
    const GuestPhysical type = object(16), super = object(16), inode = object(64), mapping = object(64);
    memory().write_le(type, text(system).value);
    memory().write_le(super, guest_.direct(type).value);
    memory().write_le(mapping, guest_.direct(inode).value);
    memory().write_le(inode, mode);
    memory().write_le(inode + 8, guest_.direct(super).value);
    GuestPhysical parent = add_dentry("/", std::nullopt);
    for (const std::string& name : names) parent = add_dentry(name, parent);
    if (!names.empty()) memory().write_le(inode + 16, (guest_.direct(parent) + kAlias).value);
    return guest_.direct(mapping);
  }
  void set_mapping(u64 pfn, u64 value) { memory().write_le(guest_.struct_page(pfn) + 24, value); }
  /// Pages [pfn + 1, pfn + pages) become tails of pfn.
  void make_compound(u64 pfn, u64 pages, u64 flags = 0) {
    guest_.set_page(pfn, 1, ~u32{0}, 0, flags | kHead);
    for (u64 i = 1; i < pages; ++i) {
      guest_.set_page(pfn + i, 0, ~u32{0}, 0);
      memory().write_le(guest_.struct_page(pfn + i) + 8, (guest_.vmemmap().value + pfn * 64) | 1);
    }
  }

 private:
  static constexpr u64 kAlias = 32;

  GuestPhysical object(u64 bytes) {
    const GuestPhysical at = kObjects + objects_;
    objects_ += round_up(bytes, 64);
    return at;
  }
  GuestVirtual text(const std::string& words) {
    const GuestPhysical at = object(words.size() + 1);
    memory().write(at, as_byte_span(words));
    return guest_.direct(at);
  }
  GuestPhysical add_dentry(const std::string& name, std::optional<GuestPhysical> parent) {
    const GuestPhysical dentry = object(64);
    memory().write_le(dentry, guest_.direct(parent.value_or(dentry)).value);
    memory().write_le(dentry + 8, text(name).value);
    return dentry;
  }
  void add_memory(GuestPhysical task, const std::vector<u64>& counts) {
    const GuestPhysical mm = object(256);
    memory().write_le(task + kMm, guest_.direct(mm).value);
    memory().write_le(mm, guest_.direct(FakeGuest::kProcessTop).value);  // pgd
    for (std::size_t i = 0; i < counts.size(); ++i) {
      if (!options_.counters_by_cpu) {
        memory().write_le(mm + 8 + i * 8, counts[i]);
        continue;
      }
      // Half of it in the common counter, half in that of the CPU.
      const u64 per_cpu = 64 + objects_ % 4096 + i * 4;
      memory().write_le(mm + 8 + i * 16, counts[i] - counts[i] / 2);
      memory().write_le(mm + 8 + i * 16 + 8, per_cpu);
      memory().write_le(kPerCpu + per_cpu, static_cast<u32>(counts[i] / 2));
    }
  }
  std::vector<std::byte> types() const;

  FakeUserSpaceOptions options_;
  FakeGuest guest_;
  u64 objects_ = 0;
};

inline std::vector<std::byte> FakeUserSpace::types() const {
  FakeBtf btf;
  const u32 word = btf.integer("long unsigned int", 8);
  const u32 number = btf.integer("unsigned int", 4);
  const u32 half = btf.integer("short unsigned int", 2);
  const u32 byte = btf.integer("unsigned char", 1);
  const u32 pointer = btf.pointer(0);
  const u32 list_head = btf.structure("list_head", 16, {{"next", pointer, 0}, {"prev", pointer, 64}});
  btf.structure("cpumask", 8, {});
  btf.structure("page", 64, {{"flags", word, 0}, {"lru", list_head, 64}});
  btf.structure("zone", 1024, {{"name", pointer, 0}});
  if (options_.task_types) {
    btf.structure("task_struct", 128,
                  {{"tasks", list_head, kTasks * 8},
                   {"tgid", number, kTgid * 8},
                   {"comm", btf.array(byte, 16), kComm * 8},
                   {"mm", pointer, kMm * 8},
                   {"stack", pointer, kStack * 8},
                   {"signal", pointer, kSignal * 8},
                   {"thread_node", list_head, kThreadNode * 8}});
  }
  btf.structure("signal_struct", 64, {{"thread_head", list_head, kThreadHead * 8}});
  const u32 counter = btf.structure("percpu_counter", 16, {{"count", word, 0}, {"counters", pointer, 64}});
  const u32 plain = btf.structure("mm_rss_stat", 32, {{"count", btf.array(word, 4), 0}});
  btf.structure(
      "mm_struct", 256,
      {{"pgd", pointer, 0}, {"rss_stat", options_.counters_by_cpu ? btf.array(counter, 4) : plain, 64}});
  if (options_.file_types) {
    btf.structure("address_space", 64, {{"host", pointer, 0}});
    const u32 head = btf.structure("hlist_head", 8, {{"first", pointer, 0}});
    btf.structure("inode", 64, {{"i_mode", half, 0}, {"i_sb", pointer, 64}, {"i_dentry", head, 128}});
    btf.structure("super_block", 16, {{"s_type", pointer, 0}});
    btf.structure("file_system_type", 16, {{"name", pointer, 0}});
    const u32 name = btf.structure("qstr", 8, {{"name", pointer, 0}});
    const u32 alias = btf.union_of("", 16, {{"d_alias", list_head, 0}});
    btf.structure("dentry", 64, {{"d_parent", pointer, 0}, {"d_name", name, 64}, {"d_u", alias, kAlias * 8}});
  }
  btf.enumeration(
      "pageflags",
      {{"PG_reserved", 14}, {"PG_dirty", 4}, {"PG_swapbacked", 19}, {"PG_swapcache", 10}, {"PG_head", 6}});
  btf.enumeration("mm_counters",
                  {{"MM_FILEPAGES", 0}, {"MM_ANONPAGES", 1}, {"MM_SWAPENTS", 2}, {"MM_SHMEMPAGES", 3}});
  if (options_.page_types) {
    btf.enumeration(
        "pagetype",
        {{"PGTY_buddy", 0xf0}, {"PGTY_offline", 0xf1}, {"PGTY_table", 0xf2}, {"PGTY_large_kmalloc", 0xf8}});
  }
  return btf.bytes();
}

}  // namespace vmsieve::testing
