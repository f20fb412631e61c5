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

// Sixteen bytes that lie kOffset behind an address, or zeros with nothing read.
template <int kOffset>
__device__ __forceinline__ void load_16_if(bool there, const void* global, uint32_t* out) {
  asm volatile(
      "{\n"
      ".reg .pred there;\n"
      "setp.ne.s32 there, %5, 0;\n"
      "mov.b32 %0, 0;\n"
      "mov.b32 %1, 0;\n"
      "mov.b32 %2, 0;\n"
      "mov.b32 %3, 0;\n"
      "@there ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4 + %6];\n"
      "}"
      : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
      : "l"(global), "r"(static_cast<int>(there)), "n"(kOffset));
}

// Bytes that nobody writes meanwhile, loaded here and not where they are first used.
__device__ __forceinline__ uint32_t load_4_now(const void* global) {
  uint32_t out;
  asm volatile("ld.global.nc.b32 %0, [%1];" : "=r"(out) : "l"(global));
  return out;
}
__device__ __forceinline__ uint2 load_8_now(const void* global) {
  uint2 out;
  asm volatile("ld.global.nc.v2.b32 {%0, %1}, [%2];" : "=r"(out.x), "=r"(out.y) : "l"(global));
  return out;
}
__device__ __forceinline__ uint4 load_16_now(const void* global) {
  uint4 out;
  asm volatile("ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
               : "l"(global));
  return out;
}

// Of what an earlier kernel wrote.
__device__ __forceinline__ uint32_t load_4_of_l2_now(const void* global) {
  uint32_t out;
  asm volatile("ld.global.cg.b32 %0, [%1];" : "=r"(out) : "l"(global));
  return out;
}
// As load_16_now, of what lies in L2 and is seldom asked for twice by one SM.
__device__ __forceinline__ uint4 load_16_of_l2_now(const void* global) {
  uint4 out;
  asm volatile("ld.global.cg.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
               : "l"(global));
  return out;
}

}  // namespace ptx
}  // namespace maxsim
