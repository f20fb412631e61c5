// Centroid numbers as they lie in memory.
#pragma once

#include "../maxsim_common/residuals.h"

namespace maxsim {
namespace cuda {

// A token's code as it was loaded. Nothing here waits for the value: what it means is asked when it is needed.
struct RawCode {
  uint32_t low = 0, high = 0;

  __device__ __forceinline__ void load(const CodeView& codes, int64_t row) {
    high = 0;
    switch (codes.bytes) {  // narrow ones into 32 bits at once: to widen them later would wait for them
      case 1: {
        const auto* at = static_cast<const uint8_t*>(codes.data) + row;
        if (codes.is_signed)
          asm volatile("ld.global.nc.s8 %0, [%1];" : "=r"(low) : "l"(at));
        else
          asm volatile("ld.global.nc.u8 %0, [%1];" : "=r"(low) : "l"(at));
        break;
      }
      case 2: {
        const auto* at = static_cast<const uint16_t*>(codes.data) + row;
        if (codes.is_signed)
          asm volatile("ld.global.nc.s16 %0, [%1];" : "=r"(low) : "l"(at));
        else
          asm volatile("ld.global.nc.u16 %0, [%1];" : "=r"(low) : "l"(at));
        break;
      }
      case 4:
        low = __ldg(static_cast<const uint32_t*>(codes.data) + row);
        break;
      default: {
        const uint2 both = __ldg(static_cast<const uint2*>(codes.data) + row);
        low = both.x, high = both.y;
      }
    }
  }
  // Negative ones are large without their sign.
  __device__ __forceinline__ bool known(int64_t centroids) const {
    return high == 0 && low < static_cast<uint64_t>(centroids);
  }
};

}  // namespace cuda
}  // namespace maxsim
