// The compiler's calls for ThreadSanitizer end here: one for every access to memory that the kernels make.
// An access outside what the kernel was given, a read of what nobody wrote, or two accesses that no barrier orders
// are each an error, on the first run and in any order of threads.
#include "observer.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>

namespace emulator {
namespace observer {
namespace {

// When a thread did something: barriers that order the memory in question, counted by scope.
struct Moment {
  uint32_t thread = ~0u;
  uint32_t group_epoch = 0;
  uint32_t simd_epoch = 0;
};

struct Epochs {
  uint32_t group = 0;
  uint32_t simd = 0;
};

struct Byte {
  Moment writer, readers[2];
  uint64_t group_serial = 0;  // the threadgroup that wrote it
};

struct Watch {
  bool on = false;
  const Launch* launch = nullptr;
  char* base = nullptr;
  int64_t bytes = 0;
  char* stacks = nullptr;
  size_t stack_bytes = 0;
  uint64_t serial = 0;
  std::vector<Byte> shadow;
  std::vector<Epochs> threadgroup_epochs;
  Memory* last = nullptr;
  int64_t read = 0, written = 0;
  const void* caller = nullptr;
};
Watch watch;

// For addr2line: where in this library the access is.
[[noreturn]] void fail(const std::string& message) {
  Dl_info info{};
  dladdr(watch.caller, &info);
  char place[32];
  snprintf(
      place, sizeof(place), " [+%#lx]",
      static_cast<unsigned long>(static_cast<const char*>(watch.caller) - static_cast<const char*>(info.dli_fbase)));
  emulator::fail(message + place);
}

bool unordered(const Moment& before, const Moment& now) {
  if (before.thread == ~0u || before.thread == now.thread || before.group_epoch != now.group_epoch) return false;
  const bool together = before.thread / kSimdWidth == now.thread / kSimdWidth;
  return !together || before.simd_epoch == now.simd_epoch;
}

void check_threadgroup(int64_t offset, int64_t bytes, bool write) {
  const uint32_t thread = current_thread();
  const Moment now{thread, watch.threadgroup_epochs[thread].group, watch.threadgroup_epochs[thread].simd};
  (write ? watch.written : watch.read) += bytes;
  for (int64_t i = offset; i < offset + bytes; ++i) {
    Byte& byte = watch.shadow[i];
    if (byte.group_serial != watch.serial) {
      if (!write) fail("reads threadgroup memory that nobody wrote, at byte " + std::to_string(i));
      byte = Byte{};
      byte.group_serial = watch.serial;
    }
    if (unordered(byte.writer, now))
      fail(std::string(write ? "writes" : "reads") + " byte " + std::to_string(i) +
           " of threadgroup memory, which thread " + std::to_string(byte.writer.thread) +
           " wrote, with no barrier in between");
    if (write) {
      for (const Moment& reader : byte.readers)
        if (unordered(reader, now))
          fail("writes byte " + std::to_string(i) + " of threadgroup memory, which thread " +
               std::to_string(reader.thread) + " read, with no barrier in between");
      byte.writer = now;
    } else {
      const bool first = byte.readers[0].thread == thread || byte.readers[0].group_epoch != now.group_epoch;
      byte.readers[first ? 0 : 1] = now;
    }
  }
}

Memory* find(const char* address) {
  const auto holds = [&](const Memory* m) { return address >= m->data && address < m->data + m->bytes; };
  if (watch.last && holds(watch.last)) return watch.last;
  for (Memory* memory : watch.launch->memory)
    if (holds(memory)) return watch.last = memory;
  return nullptr;
}

void check_device(Memory& memory, int64_t offset, int64_t bytes, bool write) {
  if (write && !memory.writable) fail("writes " + memory.name + ", which it may only read");
  (write ? memory.written_bytes : memory.read_bytes) += bytes;
  if (!memory.writable) return;
  const uint32_t me = static_cast<uint32_t>(watch.serial * kMaxThreads + current_thread()) + 1;
  if (memory.writers.empty()) memory.writers.resize(memory.bytes);
  for (int64_t i = offset; i < offset + bytes; ++i) {
    if (!write && memory.initialised && !(*memory.initialised)[i])
      fail("reads " + memory.name + " where nobody wrote it, at byte " + std::to_string(i));
    Writer& writer = memory.writers[i];
    if (writer.thread && writer.thread != me)
      fail(std::string(write ? "writes" : "reads") + " byte " + std::to_string(i) + " of " + memory.name +
           ", which another thread of this grid wrote");
    if (write) {
      writer.thread = me;
      if (memory.initialised) (*memory.initialised)[i] = 1;
    }
  }
}

}  // namespace

void start(const Launch& launch, char* threadgroup_memory, char* stacks, size_t stack_bytes) {
  watch.launch = &launch;
  watch.base = threadgroup_memory;
  watch.bytes = launch.threadgroup_bytes;
  watch.stacks = stacks;
  watch.stack_bytes = stack_bytes;
  watch.last = nullptr;
  watch.read = watch.written = 0;
  watch.shadow.resize(std::max<size_t>(watch.shadow.size(), launch.threadgroup_bytes));
  watch.on = true;
  for (Memory* memory : launch.memory) memory->writers.clear();
}

void start_group() {
  ++watch.serial;
  watch.threadgroup_epochs.assign(kMaxThreads, Epochs{});
}

void passed_barrier(uint32_t thread, Scope scope, bool threadgroup_memory, bool) {
  if (!threadgroup_memory) return;
  Epochs& epochs = watch.threadgroup_epochs[thread];
  if (scope == Scope::threadgroup) ++epochs.group;
  ++epochs.simd;
}

void finish(Counts& counts) {
  counts.threadgroup_read = watch.read;
  counts.threadgroup_written = watch.written;
  watch.on = false;
}

}  // namespace observer

void observe(const void* at, int64_t bytes, bool write, const void* caller) {
  using observer::watch;
  if (!watch.on) return;
  watch.caller = caller;
  const char* address = static_cast<const char*>(at);
  const char* own_stack = watch.stacks + current_thread() * watch.stack_bytes;
  if (address >= own_stack && address < own_stack + watch.stack_bytes) return;
  if (address >= watch.base && address < watch.base + watch.bytes) {
    const int64_t offset = address - watch.base;
    if (offset + bytes > watch.bytes) observer::fail("reaches beyond the end of threadgroup memory");
    return observer::check_threadgroup(offset, bytes, write);
  }
  Memory* memory = observer::find(address);
  if (!memory)
    observer::fail(std::string(write ? "writes" : "reads") + " outside everything that the kernel was given");
  const int64_t offset = address - memory->data;
  if (offset + bytes > memory->bytes) observer::fail("reaches beyond the end of " + memory->name);
  observer::check_device(*memory, offset, bytes, write);
}

}  // namespace emulator

// What the compiler calls before an access, for every size and alignment.
#define EMULATOR_CALL(name, bytes, write) \
  extern "C" void __tsan_##name(void* at) { emulator::observe(at, bytes, write, __builtin_return_address(0)); }
#define EMULATOR_CALLS(bytes)                        \
  EMULATOR_CALL(read##bytes, bytes, false)           \
  EMULATOR_CALL(write##bytes, bytes, true)           \
  EMULATOR_CALL(unaligned_read##bytes, bytes, false) \
  EMULATOR_CALL(unaligned_write##bytes, bytes, true)
EMULATOR_CALLS(1)
EMULATOR_CALLS(2)
EMULATOR_CALLS(4)
EMULATOR_CALLS(8)
EMULATOR_CALLS(16)
extern "C" void __tsan_read_range(void* at, size_t bytes) {
  emulator::observe(at, static_cast<int64_t>(bytes), false, __builtin_return_address(0));
}
extern "C" void __tsan_write_range(void* at, size_t bytes) {
  emulator::observe(at, static_cast<int64_t>(bytes), true, __builtin_return_address(0));
}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_init() {}
