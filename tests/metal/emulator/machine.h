// A Metal GPU that runs one threadgroup at a time: its threads are fibers, switched where they have to meet.
// It sees every barrier and collective, and, in the observed build, every single access to memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#define EMULATOR_HIDDEN __attribute__((no_sanitize("thread")))

namespace emulator {

constexpr int kSimdWidth = 32;
constexpr int kMaxThreads = 1024;
constexpr int kMaxThreadgroupBytes = 32768;
constexpr int kMaxBuffers = 31;

// Memory that a kernel may touch. In the observed build, `written` says which bytes hold a value, and by whom.
struct Writer {
  uint32_t thread = 0;  // its number in the grid + 1; 0: nobody in this dispatch
  uint64_t barriers = 0;
};
struct Memory {
  std::string name;
  char* data = nullptr;
  int64_t bytes = 0;
  bool writable = false;
  std::vector<uint8_t>* initialised = nullptr;  // by byte; null: all are
  std::vector<Writer> writers;
  int64_t read_bytes = 0;
  int64_t written_bytes = 0;
};

struct Counts {
  int64_t multiplies = 0;  // 8 x 8 x 8 matrix multiply-adds of a simdgroup
  int64_t barriers = 0;    // of a threadgroup
  int64_t threadgroup_read = 0;
  int64_t threadgroup_written = 0;
};

struct Position {
  uint32_t group[3];
  uint32_t groups[3];
  uint32_t thread_index;
  uint32_t threads;
};

using Kernel = void (*)(char* const* buffers, char* threadgroup_memory, const Position& position);

struct Launch {
  Kernel kernel = nullptr;
  uint32_t grid[3] = {1, 1, 1};
  uint32_t threads = 1;
  int32_t threadgroup_bytes = 0;
  std::vector<Memory*> memory;            // what the kernel was given
  char* buffers[kMaxBuffers] = {};        // where its arguments point
  uint32_t first_group[3] = {0, 0, 0};    // a sample of the grid: these groups and
  uint32_t sampled[3] = {~0u, ~0u, ~0u};  // so many of them
};

// Runs the launch to its end. Throws std::runtime_error with the first thing that a GPU might not have forgiven.
Counts run(Launch& launch);

// How an 8 x 8 matrix lies in the lanes of a simdgroup: MLX's, as Apple's GPUs have it, or another one.
enum class Layout { apple, other };
extern Layout matrix_layout;
struct Place {
  int row, column;
};
Place place_of(int lane, int element);

// Called by the headers that stand in for Metal's.
enum class Scope { simdgroup, threadgroup };
uint32_t current_thread();  // in the threadgroup
void barrier(Scope scope, bool threadgroup_memory, bool device_memory);
// All lanes of the simdgroup meet; the last one calls `act` with everyone's operand, by lane. `what` must agree.
void meet(const char* what, void* operand, void (*act)(void* const* operands));
// Checks, without waiting, that all lanes come through here with the same arguments.
void agree(const char* what, uint64_t arguments);
void count_multiply();
[[noreturn]] void fail(const std::string& message);  // of the running thread; it does not return

// Operands of `meet`, and what is done with them.
template <class T>
struct Lanes {
  T mine, result;
};
template <class T>
struct Shuffle {
  T mine;
  int from;
  T result;
};
void shuffle_words(void* const* operands);
void any_lane(void* const* operands);
void sum_before_lane(void* const* operands);
void sum_lanes(void* const* operands);
void add_lanes(void* const* operands);
struct Multiply {
  float a[2], b[2], sum[2];
};
void multiply(void* const* operands);

// One access of the running thread.
void observe(const void* address, int64_t bytes, bool write, const void* caller);

}  // namespace emulator
