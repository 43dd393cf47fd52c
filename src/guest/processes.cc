// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/guest/processes.h"

#include <algorithm>
#include <array>

#include "vmsieve/guest/kernel_reader.h"

namespace vmsieve {
namespace {

constexpr u64 kMaxTasks = u64{1} << 20;
constexpr u64 kMaxCommBytes = 64;
constexpr u64 kMaxStackBytes = 256 * kKiB;

// Offsets into the kernel's structures (include/linux/sched.h, mm_types.h).
struct TaskLayout {
  u64 tasks = 0, tgid = 0, comm = 0, comm_bytes = 0, mm = 0, stack = 0, signal = 0;
  std::optional<u64> thread_node, thread_head;  // in task_struct, in signal_struct (since 3.14)
  std::optional<u64> pgd, rss_stat, counter, counter_bytes, per_cpu;
  u64 file = 0, anonymous = 1, shared = 3;  // MM_FILEPAGES, MM_ANONPAGES, MM_SHMEMPAGES
};

Result<TaskLayout> read_layout(const Btf& types) {
  TaskLayout layout;
  const auto tasks = types.offset_of("task_struct", "tasks");
  const auto tgid = types.offset_of("task_struct", "tgid");
  const auto comm = types.member("task_struct", "comm");
  const auto mm = types.offset_of("task_struct", "mm");
  const auto stack = types.offset_of("task_struct", "stack");
  const auto signal = types.offset_of("task_struct", "signal");
  if (!tasks || !tgid || !comm || !mm || !stack || !signal)
    return Error(ErrorKind::kUnsupported, "the kernel's types do not show how it lists processes");
  layout.tasks = *tasks;
  layout.tgid = *tgid;
  layout.comm = comm->offset;
  layout.comm_bytes = std::min(comm->size, kMaxCommBytes);
  layout.mm = *mm;
  layout.stack = *stack;
  layout.signal = *signal;
  layout.thread_node = types.offset_of("task_struct", "thread_node");
  layout.thread_head = types.offset_of("signal_struct", "thread_head");
  layout.pgd = types.offset_of("mm_struct", "pgd");
  layout.file = static_cast<u64>(types.enumerator("MM_FILEPAGES").value_or(0)) & 7;
  layout.anonymous = static_cast<u64>(types.enumerator("MM_ANONPAGES").value_or(1)) & 7;
  layout.shared = static_cast<u64>(types.enumerator("MM_SHMEMPAGES").value_or(3)) & 7;
  // An array of per-CPU counters since 6.2, of plain ones inside a structure before.
  const auto stat = types.member("mm_struct", "rss_stat");
  const auto counter_bytes = types.size_of("percpu_counter");
  if (stat && counter_bytes && stat->elements > 1 && stat->size == stat->elements * *counter_bytes) {
    layout.rss_stat = stat->offset;
    layout.counter = types.offset_of("percpu_counter", "count");
    layout.counter_bytes = counter_bytes;
    layout.per_cpu = types.offset_of("percpu_counter", "counters");
  } else if (const auto plain = types.offset_of("mm_struct", "rss_stat.count")) {
    layout.rss_stat = plain;
    layout.counter = 0;
    layout.counter_bytes = 8;
  }
  return layout;
}

class TaskWalker {
 public:
  TaskWalker(KernelReader reader, TaskLayout layout, std::vector<u64> cpu_offsets, u32 frame_shift)
      : reader_(reader), layout_(layout), cpu_offsets_(std::move(cpu_offsets)), frame_shift_(frame_shift) {}

  GuestProcess read(GuestVirtual task, bool& complete) const {
    GuestProcess process;
    process.pid = reader_.number<u32>(task + layout_.tgid).value_or(0);
    process.name = reader_.text(task + layout_.comm, layout_.comm_bytes).value_or("?");
    const auto mm = reader_.pointer(task + layout_.mm);
    process.kernel = !mm;
    if (mm) {
      process.anonymous_pages = counter(*mm, layout_.anonymous);
      process.file_pages = counter(*mm, layout_.file);
      process.shared_pages = counter(*mm, layout_.shared);
      if (layout_.pgd) process.page_tables = reader_.pointer(*mm + *layout_.pgd).value_or(GuestVirtual{});
    }
    read_stacks(task, process, complete);
    return process;
  }

  std::optional<GuestVirtual> next_task(GuestVirtual task) const {
    const auto node = reader_.pointer(task + layout_.tasks);
    return node ? std::optional(GuestVirtual{node->value - layout_.tasks}) : std::nullopt;
  }

 private:
  void add_stack(GuestVirtual task, GuestProcess& process) const {
    if (const auto stack = reader_.pointer(task + layout_.stack)) process.stacks.push_back(*stack);
  }
  void read_stacks(GuestVirtual task, GuestProcess& process, bool& complete) const {
    const auto signal = reader_.pointer(task + layout_.signal);
    if (!signal || !layout_.thread_node || !layout_.thread_head) return add_stack(task, process);
    const GuestVirtual head = *signal + *layout_.thread_head;
    auto node = reader_.pointer(head);
    for (u64 i = 0; node != head; ++i) {
      if (!node || i == kMaxTasks) {
        complete = false;
        return;
      }
      add_stack(GuestVirtual{node->value - *layout_.thread_node}, process);
      node = reader_.pointer(*node);
    }
  }

  // A counter may be below zero for a moment; then it is nothing.
  u64 counter(GuestVirtual mm, u64 which) const {
    if (!layout_.rss_stat || !layout_.counter || !layout_.counter_bytes) return 0;
    const GuestVirtual at = mm + *layout_.rss_stat + which * *layout_.counter_bytes;
    auto sum = static_cast<i64>(reader_.number<u64>(at + *layout_.counter).value_or(0));
    if (layout_.per_cpu) {
      if (const auto base = reader_.number<u64>(at + *layout_.per_cpu)) {
        for (const u64 offset : cpu_offsets_)
          sum += static_cast<int32_t>(reader_.number<u32>(GuestVirtual{*base + offset}).value_or(0));
      }
    }
    return sum < 0 ? 0 : static_cast<u64>(sum) << frame_shift_;
  }

  KernelReader reader_;
  TaskLayout layout_;
  std::vector<u64> cpu_offsets_;
  u32 frame_shift_;
};

// All stacks have one size (THREAD_SIZE), and init's own lies between two symbols, which were renamed in
// 6.11 (INIT_TASK_DATA, include/asm-generic/vmlinux.lds.h).
u64 stack_size(const KernelSymbols& symbols) {
  constexpr std::array<std::string_view, 5> names{"init_stack", "__start_init_stack", "__start_init_task",
                                                  "__end_init_stack", "__end_init_task"};
  const auto found = symbols.symbols().addresses(names);
  const auto begin = found[0] ? found[0] : found[1] ? found[1] : found[2];
  const auto end = found[3] ? found[3] : found[4];
  if (!begin || !end || *end <= *begin || *end - *begin > kMaxStackBytes) return 0;
  return *end - *begin;
}

}  // namespace

Result<GuestProcesses> list_processes(const GuestMemory& memory, const LinuxKernel& kernel,
                                      const KernelSymbols& symbols) {
  VMSIEVE_ASSIGN(TaskLayout layout, read_layout(symbols.types()));
  const auto init = symbols.symbols().address("init_task");
  if (!init) return Error(ErrorKind::kUnsupported, "the kernel's symbols do not show init_task");
  auto offsets = read_cpu_offsets(memory, kernel.page_tables(), symbols);
  const TaskWalker walker(KernelReader(memory, kernel.page_tables()), layout,
                          offsets.ok() ? *std::move(offsets) : std::vector<u64>{},
                          kernel.page_shift() - static_cast<u32>(kPageShift));
  GuestProcesses result;
  result.stack_bytes = stack_size(symbols);
  auto task = walker.next_task(*init);
  for (u64 i = 0; task != *init; ++i) {
    if (!task || i == kMaxTasks) {
      result.complete = false;
      break;
    }
    result.processes.push_back(walker.read(*task, result.complete));
    task = walker.next_task(*task);
  }
  return result;
}

}  // namespace vmsieve
