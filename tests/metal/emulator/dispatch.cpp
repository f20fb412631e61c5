#include "dispatch.h"

#include <algorithm>
#include <stdexcept>

namespace emulator {

Settings settings;
Report report;

const EmulatedKernel* find_kernel(const std::string& name) {
  for (auto table = kernel_tables; *table; ++table)
    for (const EmulatedKernel* kernel = *table; kernel->name; ++kernel)
      if (name == kernel->name) return kernel;
  return nullptr;
}

void dispatch(const Encoded& encoded) {
  const EmulatedKernel* kernel = find_kernel(encoded.kernel);
  if (!kernel) throw std::runtime_error("no kernel named " + encoded.kernel);
  Launch launch;
  launch.kernel = kernel->run;
  std::copy(encoded.grid, encoded.grid + 3, launch.grid);
  launch.threads = encoded.threads;
  launch.threadgroup_bytes = encoded.threadgroup_bytes;
  if (settings.groups) {
    launch.first_group[1] = settings.first_group;
    launch.sampled[1] = settings.groups;
  }
  std::vector<char> bytes = encoded.constants;
  Memory constants;
  constants.name = "the constants";
  constants.data = bytes.data();
  constants.bytes = static_cast<int64_t>(bytes.size());
  launch.memory.push_back(&constants);
  launch.buffers[0] = constants.data;
  uint32_t bound = 1;
  for (const auto& [index, buffer] : encoded.buffers) {
    if (index == 0 || index >= kMaxBuffers) throw std::runtime_error("no buffer can be bound at this index");
    if (!buffer.memory || buffer.offset < 0 || buffer.offset >= buffer.memory->bytes)
      throw std::runtime_error("argument " + std::to_string(index) + " of " + encoded.kernel +
                               " starts outside its buffer");
    launch.memory.push_back(buffer.memory);
    launch.buffers[index] = buffer.memory->data + buffer.offset;
    bound |= 1u << index;
  }
  if (bound != kernel->buffers) throw std::runtime_error("the arguments bound are not those of " + encoded.kernel);
  const Counts counts = run(launch);
  report.dispatches += 1;
  report.threadgroups +=
      int64_t{encoded.grid[0]} * (settings.groups ? std::min(settings.groups, encoded.grid[1]) : encoded.grid[1]);
  report.multiplies += counts.multiplies;
  report.barriers += counts.barriers;
  report.threadgroup_read += counts.threadgroup_read;
  report.threadgroup_written += counts.threadgroup_written;
}

}  // namespace emulator

// For ctypes: which rows of the grid to run, how matrices lie in a simdgroup, and what the last plan did.
extern "C" __attribute__((visibility("default"))) void emulator_set(uint32_t first_group, uint32_t groups, int layout) {
  emulator::settings = {first_group, groups};
  emulator::matrix_layout = layout ? emulator::Layout::other : emulator::Layout::apple;
}
extern "C" __attribute__((visibility("default"))) const void* emulator_report() { return &emulator::report; }
