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
