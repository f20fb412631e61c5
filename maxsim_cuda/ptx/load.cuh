// Loads that the language has no word for.
#pragma once

namespace maxsim {
namespace ptx {

// The byte there, or zero with nothing read.
__device__ __forceinline__ int load_byte_if(bool there, const void* global) {
  int byte;
  asm("{\n"
      ".reg .pred there;\n"
      "setp.ne.s32 there, %2, 0;\n"
      "mov.s32 %0, 0;\n"
      "@there ld.global.nc.u8 %0, [%1];\n"
      "}"
      : "=r"(byte)
      : "l"(global), "r"(static_cast<int>(there)));
  return byte;
}

}  // namespace ptx
}  // namespace maxsim
