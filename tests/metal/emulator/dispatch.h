// One dispatch on the emulated GPU, whoever encoded it: by name, with buffers by index.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "kernels.h"
#include "machine.h"

namespace emulator {

struct Bound {
  Memory* memory = nullptr;
  int64_t offset = 0;  // from the start of `memory`
};

struct Encoded {
  std::string kernel;
  std::vector<char> constants;  // what setBytes has given for index 0
  std::map<uint32_t, Bound> buffers;
  uint32_t grid[3] = {1, 1, 1};
  uint32_t threads = 0;
  int32_t threadgroup_bytes = 0;
};

// Null where no .metal file has a kernel of that name.
const EmulatedKernel* find_kernel(const std::string& name);

// Runs it and adds what it did to `report`.
void dispatch(const Encoded& encoded);

struct Settings {
  uint32_t first_group = 0;  // of the grid's rows, which are run, and
  uint32_t groups = 0;       // how many; 0: all of them
};
extern Settings settings;

// Of the last plan; bytes by Role.
struct Report {
  int64_t dispatches = 0, threadgroups = 0, multiplies = 0, barriers = 0, threadgroup_read = 0, threadgroup_written = 0;
  int64_t read[32] = {}, written[32] = {};
};
extern Report report;

}  // namespace emulator
