// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/guest/vmcoreinfo_search.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <optional>
#include <string_view>

#include "vmsieve/base/endian.h"
#include "vmsieve/guest/vmcoreinfo.h"
#include "vmsieve/guest/workers.h"

namespace vmsieve {
namespace {

constexpr std::string_view kDataStart = "OSRELEASE=";
// struct elf_note {u32 namesz, descsz, type}, name padded to 4 bytes, then the text
// (kernel/vmcore_info.c append_elf_note(), VMCOREINFO_NOTE_NAME).
constexpr std::string_view kNoteName{"VMCOREINFO\0", 11};
constexpr u64 kNoteNameOffset = 12;
constexpr u64 kNoteTextOffset = 24;

constexpr u64 kSlicePages = 64 * kMiB / kPageSize;  // what a thread takes at a time
constexpr u64 kChunkPages = kMiB / kPageSize;       // what one read brings

bool begins_as_data(const std::byte* page) {
  return std::memcmp(page, kDataStart.data(), kDataStart.size()) == 0;
}

bool begins_as_note(const std::byte* page) {
  return load_le<u32>(page) == kNoteName.size() && load_le<u32>(page + 8) == 0 &&
         load_le<u32>(page + 4) <= VmcoreInfo::kMaxTextBytes &&
         std::memcmp(page + kNoteNameOffset, kNoteName.data(), kNoteName.size()) == 0;
}

// The search that all threads share: slices are handed out by a counter, places are collected.
class Search {
 public:
  explicit Search(const GuestMemory& memory) : memory_(memory) {
    for (const PfnRange& range : memory.ram()) {
      for (u64 done = 0; done < range.count; done += kSlicePages) {
        slices_.push_back({Pfn{range.first.value + done}, std::min(kSlicePages, range.count - done)});
      }
    }
  }

  void work() {
    std::vector<std::byte> buffer(kChunkPages * kPageSize);
    while (!stop_) {
      const std::size_t index = next_slice_++;
      if (index >= slices_.size()) return;
      for (const PfnRange& run : memory_.resident(slices_[index])) {
        if (!search_run(run, buffer)) return;
      }
    }
  }

  Result<std::vector<VmcoreInfoCandidate>> finish() &&;

 private:
  struct Place {
    GuestPhysical page;
    bool note = false;
  };

  bool search_run(PfnRange run, std::vector<std::byte>& buffer);
  bool add(Place place);
  bool fail(const Error& error);
  std::optional<std::string> read_text(const Place& place) const;

  const GuestMemory& memory_;
  std::vector<PfnRange> slices_;
  std::atomic<std::size_t> next_slice_ = 0;
  std::atomic<bool> stop_ = false;

  std::mutex mutex_;  // over the following
  std::vector<Place> places_;
  std::optional<Error> error_;
};

bool Search::search_run(PfnRange run, std::vector<std::byte>& buffer) {
  for (u64 done = 0; done < run.count && !stop_; done += kChunkPages) {
    const GuestPhysical address = Pfn{run.first.value + done}.address();
    const u64 pages = std::min(kChunkPages, run.count - done);
    const auto read = memory_.read(address, std::span{buffer}.first(pages * kPageSize));
    if (!read.ok()) return fail(read.error());
    for (u64 i = 0; i < pages; ++i) {
      const std::byte* page = &buffer[i * kPageSize];
      const bool note = begins_as_note(page);
      if ((note || begins_as_data(page)) && !add({address + i * kPageSize, note})) return false;
    }
  }
  return !stop_;
}

bool Search::add(Place place) {
  const std::lock_guard lock(mutex_);
  places_.push_back(place);
  if (places_.size() > kMaxVmcoreInfoCandidates) stop_ = true;
  return !stop_;
}

bool Search::fail(const Error& error) {
  const std::lock_guard lock(mutex_);
  if (!error_) error_ = error.with_context("searching guest memory for VMCOREINFO");
  stop_ = true;
  return false;
}

// None when the guest, running on, has put something else there.
std::optional<std::string> Search::read_text(const Place& place) const {
  std::vector<std::byte> bytes(kPageSize);
  u64 begin = 0;
  u64 limit = kPageSize;  // what lies behind a full vmcoreinfo_data page is not known to be text
  if (!memory_.read(place.page, bytes).ok()) return std::nullopt;
  if (place.note) {
    if (!begins_as_note(bytes.data())) return std::nullopt;
    begin = kNoteTextOffset;
    limit = load_le<u32>(&bytes[4]);
  } else if (!begins_as_data(bytes.data())) {
    return std::nullopt;
  }
  std::string text;
  while (true) {
    const u64 take = std::min<u64>(bytes.size() - begin, limit - text.size());
    const auto* chars = reinterpret_cast<const char*>(&bytes[begin]);
    const u64 length = strnlen(chars, take);
    text.append(chars, length);
    // The pages of a note follow each other; the end of RAM ends the text as its size would.
    if (length < take || text.size() == limit) return text;
    const u64 next_page = round_up(begin + text.size(), kPageSize);
    begin = 0;
    if (!memory_.read(place.page + next_page, bytes).ok()) return text;
  }
}

Result<std::vector<VmcoreInfoCandidate>> Search::finish() && {
  if (error_) return *error_;
  if (places_.size() > kMaxVmcoreInfoCandidates) {
    return make_error(ErrorKind::kDamaged, "more than {} pages of guest memory look like VMCOREINFO",
                      kMaxVmcoreInfoCandidates);
  }
  std::sort(places_.begin(), places_.end(),
            [](const Place& a, const Place& b) { return a.note != b.note ? a.note : a.page < b.page; });
  std::vector<VmcoreInfoCandidate> candidates;
  for (const Place& place : places_) {
    auto text = read_text(place);
    if (!text) continue;
    candidates.push_back({place.page + (place.note ? kNoteTextOffset : 0), *std::move(text), place.note});
  }
  return candidates;
}

}  // namespace

Result<std::vector<VmcoreInfoCandidate>> search_vmcoreinfo(const GuestMemory& memory, unsigned threads) {
  Search search(memory);
  run_workers(threads, [&search] { search.work(); });
  return std::move(search).finish();
}

}  // namespace vmsieve
