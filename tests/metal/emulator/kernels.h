// The kernels that the .metal files name, as the generated translation unit lists them.
#pragma once

#include <cstdint>

#include "machine.h"

struct EmulatedKernel {
  const char* name;
  emulator::Kernel run;
  uint32_t buffers;  // bit i: the kernel has an argument [[buffer(i)]]
};
extern const EmulatedKernel* const kernel_tables[];  // one for each file, ended by null; so is each table

namespace maxsim {
namespace metal_backend {

struct EmulatorSettings {
  uint32_t first_group = 0;
  uint32_t groups = 0;
};

// Of the last plan; bytes by Role.
struct EmulatorReport {
  int64_t dispatches = 0, threadgroups = 0, multiplies = 0, barriers = 0, threadgroup_read = 0, threadgroup_written = 0;
  int64_t read[18] = {}, written[18] = {};
};

}  // namespace metal_backend
}  // namespace maxsim
