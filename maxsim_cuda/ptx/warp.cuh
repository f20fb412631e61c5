// A barrier of a warp that stays in the code.
#pragma once

#include <cstdint>

namespace maxsim {
namespace ptx {

// Where the compiler knows the lanes to be together it drops __syncwarp, which the hardware then needs no more than it;
// but racecheck takes nothing else to order what lanes did before one of them arrives for all.
__device__ __forceinline__ void sync_warp() {
  uint32_t lanes = ~0u;
  asm volatile("" : "+r"(lanes));
  __syncwarp(lanes);
}

}  // namespace ptx
}  // namespace maxsim
