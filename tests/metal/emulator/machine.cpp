// Fibers, barriers, collectives: how a threadgroup runs. Which threads go first alternates from group to group.
#include "machine.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>

#include "observer.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes)
#endif

// Saves what a call preserves, swaps stacks, restores it.
extern "C" void emulator_switch(void** save, void* load);
#if defined(__x86_64__)
asm(R"(
.text
.globl emulator_switch
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
constexpr int kSavedWords = 6;
#elif defined(__aarch64__)
asm(R"(
.text
.globl emulator_switch
emulator_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
)");
#else
#error "the emulator switches stacks on x86-64 and AArch64 only"
#endif

namespace emulator {

Layout matrix_layout = Layout::apple;

Place place_of(int lane, int element) {
  if (matrix_layout == Layout::other) return {lane / 4, 2 * (lane % 4) + element};
  const int quad = lane / 4;
  return {(quad & 4) + (lane / 2) % 4, (quad & 2) * 2 + (lane % 2) * 2 + element};
}

namespace {

constexpr size_t kStackBytes = 256 * 1024;

enum class State { ready, waiting, done };

struct Thread {
  void* stack_pointer = nullptr;
  State state = State::ready;
  // What it waits for.
  const char* what = nullptr;
  Scope scope = Scope::simdgroup;
  void* operand = nullptr;
  void (*act)(void* const*) = nullptr;
  uint64_t agreements = 0;  // how many it came through
};

struct Agreement {
  const char* what;
  uint64_t arguments;
};

struct Machine {
  char* stacks = nullptr;
  void* scheduler = nullptr;
  std::vector<Thread> threads;
  std::vector<std::vector<Agreement>> agreements;  // of each simdgroup
  uint32_t running = 0;
  bool failed = false;
  std::string message;
  const Launch* launch = nullptr;
  Position position{};
  char* threadgroup_memory = nullptr;
  Counts counts;

  Machine() {
    void* stacks_at = mmap(nullptr, kStackBytes * kMaxThreads, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks_at == MAP_FAILED) throw std::runtime_error("no memory for the emulator's stacks");
    stacks = static_cast<char*>(stacks_at);
  }
};

Machine& machine() {
  static Machine the_machine;
  return the_machine;
}

void switch_to_scheduler() {
  Machine& m = machine();
  emulator_switch(&m.threads[m.running].stack_pointer, m.scheduler);
}

// Never returns, so that a sanitizer would find its frame in the way of the next thread on this stack.
__attribute__((no_sanitize("address"))) void thread_body() {
  Machine& m = machine();
  Position position = m.position;
  position.thread_index = m.running;
  m.launch->kernel(m.launch->buffers, m.threadgroup_memory, position);
  m.threads[m.running].state = State::done;
  switch_to_scheduler();
  __builtin_unreachable();
}

void prepare(uint32_t index) {
  Machine& m = machine();
  void** top = reinterpret_cast<void**>(m.stacks + (index + 1) * kStackBytes - 64);
#if defined(__x86_64__)
  *--top = nullptr;  // where thread_body would return to; a call leaves the stack eight bytes off sixteen
  *--top = reinterpret_cast<void*>(&thread_body);
  for (int i = 0; i < kSavedWords; ++i) *--top = nullptr;
#else
  top -= 20;
  std::memset(top, 0, 160);
  top[11] = reinterpret_cast<void*>(&thread_body);  // x30
#endif
  m.threads[index] = Thread{};
  m.threads[index].stack_pointer = top;
}

// Lets everyone go on who waits for threads that have all arrived.
bool release(uint32_t first, uint32_t count) {
  Machine& m = machine();
  Thread* group = &m.threads[first];
  for (uint32_t i = 0; i < count; ++i)
    if (group[i].state != State::waiting || group[i].scope != group[0].scope) return false;
  for (uint32_t i = 1; i < count; ++i)
    if (std::strcmp(group[i].what, group[0].what) != 0) {
      m.failed = true;
      m.message = std::string("threads ") + std::to_string(first) + " and " + std::to_string(first + i) +
                  " of a group are at different places: " + group[0].what + " and " + group[i].what;
      return false;
    }
  if (group[0].act) {
    void* operands[kSimdWidth];
    for (uint32_t i = 0; i < count; ++i) operands[i] = group[i].operand;
    group[0].act(operands);
  }
  for (uint32_t i = 0; i < count; ++i) group[i].state = State::ready;
  return true;
}

void run_group(bool backwards) {
  Machine& m = machine();
  const uint32_t threads = m.launch->threads;
  for (uint32_t i = 0; i < threads; ++i) prepare(i);
  for (auto& agreements : m.agreements) agreements.clear();
  for (;;) {
    bool progress = false;
    for (uint32_t k = 0; k < threads && !m.failed; ++k) {
      const uint32_t i = backwards ? threads - 1 - k : k;
      if (m.threads[i].state != State::ready) continue;
      progress = true;
      m.running = i;
      emulator_switch(&m.scheduler, m.threads[i].stack_pointer);
    }
    if (m.failed) return;
    for (uint32_t s = 0; s < threads; s += kSimdWidth)
      if (m.threads[s].state == State::waiting && m.threads[s].scope == Scope::simdgroup)
        progress |= release(s, kSimdWidth);
    if (m.threads[0].state == State::waiting && m.threads[0].scope == Scope::threadgroup)
      progress |= release(0, threads);
    if (m.failed) return;
    if (std::all_of(m.threads.begin(), m.threads.end(), [](const Thread& t) { return t.state == State::done; })) break;
    if (!progress) {
      for (uint32_t i = 0; i < threads; ++i)
        if (m.threads[i].state == State::waiting) {
          m.message = std::string("thread ") + std::to_string(i) + " waits for ever: " + m.threads[i].what;
          m.failed = true;
          return;
        }
    }
  }
  for (const auto& thread : m.threads)
    if (thread.agreements != m.threads[(&thread - m.threads.data()) / kSimdWidth * kSimdWidth].agreements) {
      m.message = "lanes of a simdgroup did not come through the same matrix operations";
      m.failed = true;
    }
}

}  // namespace

Counts run(Launch& launch) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  if (launch.threads == 0 || launch.threads > kMaxThreads || launch.threads % kSimdWidth != 0)
    throw std::runtime_error("a threadgroup cannot have " + std::to_string(launch.threads) + " threads");
  if (launch.threadgroup_bytes < 0 || launch.threadgroup_bytes > kMaxThreadgroupBytes ||
      launch.threadgroup_bytes % 16 != 0)
    throw std::runtime_error("threadgroup memory cannot be " + std::to_string(launch.threadgroup_bytes) + " bytes");
  Machine& m = machine();
  m.launch = &launch;
  m.failed = false;
  m.counts = Counts{};
  m.threads.assign(launch.threads, Thread{});
  m.agreements.assign(launch.threads / kSimdWidth, {});
  m.position.threads = launch.threads;
  std::copy(launch.grid, launch.grid + 3, m.position.groups);
  // Of the exact size, from the heap, so that AddressSanitizer knows its end.
  const std::unique_ptr<char, void (*)(void*)> memory(
      static_cast<char*>(aligned_alloc(16, std::max(16, launch.threadgroup_bytes))), free);
  m.threadgroup_memory = memory.get();
  observer::start(launch, memory.get(), m.stacks, kStackBytes);
  const auto last = [&](int axis) {
    return std::min<uint64_t>(launch.grid[axis], uint64_t{launch.first_group[axis]} + launch.sampled[axis]);
  };
  bool backwards = false;
  uint32_t* group = m.position.group;
  for (group[2] = launch.first_group[2]; group[2] < last(2); ++group[2])
    for (group[1] = launch.first_group[1]; group[1] < last(1); ++group[1])
      for (group[0] = launch.first_group[0]; group[0] < last(0); ++group[0]) {
        std::memset(memory.get(), 0xff, launch.threadgroup_bytes);  // NaN, and no index
        observer::start_group();
        run_group(backwards);
        if (m.failed) {  // every thread was left in the middle of something
          ASAN_UNPOISON_MEMORY_REGION(m.stacks, kStackBytes * kMaxThreads);
          throw std::runtime_error("emulated GPU: " + m.message);
        }
        backwards = !backwards;
      }
  observer::finish(m.counts);
  return m.counts;
}

uint32_t current_thread() { return machine().running; }

void fail(const std::string& message) {
  Machine& m = machine();
  if (!m.failed) m.message = "thread " + std::to_string(m.running) + ": " + message;
  m.failed = true;
  switch_to_scheduler();
  __builtin_unreachable();
}

static void wait(const char* what, Scope scope, void* operand, void (*act)(void* const*)) {
  Machine& m = machine();
  Thread& thread = m.threads[m.running];
  thread.state = State::waiting;
  thread.what = what;
  thread.scope = scope;
  thread.operand = operand;
  thread.act = act;
  switch_to_scheduler();
}

void barrier(Scope scope, bool threadgroup_memory, bool device_memory) {
  if (machine().running == 0 && scope == Scope::threadgroup) ++machine().counts.barriers;
  wait(scope == Scope::simdgroup ? "simdgroup_barrier" : "threadgroup_barrier", scope, nullptr, nullptr);
  observer::passed_barrier(machine().running, scope, threadgroup_memory, device_memory);
}

void meet(const char* what, void* operand, void (*act)(void* const*)) { wait(what, Scope::simdgroup, operand, act); }

void agree(const char* what, uint64_t arguments) {
  Machine& m = machine();
  Thread& thread = m.threads[m.running];
  auto& agreements = m.agreements[m.running / kSimdWidth];
  const uint64_t number = thread.agreements++;
  if (number == agreements.size()) {
    agreements.push_back({what, arguments});
  } else if (std::strcmp(agreements[number].what, what) != 0 || agreements[number].arguments != arguments) {
    fail(std::string(what) + " differs between the lanes of a simdgroup, or they are at different places");
  }
}

void count_multiply() { ++machine().counts.multiplies; }

}  // namespace emulator
