// Bytes of a word in another order.
#pragma once

#include <cstdint>

namespace maxsim {
namespace ptx {

// In the upper byte of each half the sign of a byte, in all of its bits: kHigh's in the higher half, kLow's in the
// lower.
template <int kHigh, int kLow>
__device__ __forceinline__ uint32_t byte_signs(uint32_t word) {
  constexpr int kSign = 8, kZero = 4;
  uint32_t out;
  asm("prmt.b32 %0, %1, 0, %2;"
      : "=r"(out)
      : "r"(word), "n"((kSign | kHigh) << 12 | kZero << 8 | (kSign | kLow) << 4 | kZero));
  return out;
}

}  // namespace ptx
}  // namespace maxsim
