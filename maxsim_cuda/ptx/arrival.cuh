// Counts of those that are done with their part of something.
#pragma once

#include <cstdint>

namespace maxsim {
namespace ptx {

// Adds one and returns what was there: what this thread wrote before is there for those who add later, and what those
// who have added wrote is there for it.
__device__ __forceinline__ int32_t arrive(int32_t* count) {
  int32_t before;
  asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], 1;" : "=r"(before) : "l"(count) : "memory");
  return before;
}

}  // namespace ptx
}  // namespace maxsim
