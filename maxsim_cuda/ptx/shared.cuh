// Shared memory by its own 32-bit addresses, where the compiler would not know that a pointer leads there.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace maxsim {
namespace ptx {

__device__ __forceinline__ uint32_t load_shared_1(uint32_t address) {
  uint32_t out;
  asm volatile("ld.shared.u8 %0, [%1];" : "=r"(out) : "r"(address) : "memory");
  return out;
}

__device__ __forceinline__ uint32_t load_shared_2(uint32_t address) {
  uint32_t out;
  asm volatile("{\n.reg .u16 half;\nld.shared.u16 half, [%1];\ncvt.u32.u16 %0, half;\n}"
               : "=r"(out)
               : "r"(address)
               : "memory");
  return out;
}

__device__ __forceinline__ uint32_t load_shared_4(uint32_t address) {
  uint32_t out;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(out) : "r"(address) : "memory");
  return out;
}

__device__ __forceinline__ uint2 load_shared_8(uint32_t address) {
  uint2 out;
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(out.x), "=r"(out.y) : "r"(address) : "memory");
  return out;
}

__device__ __forceinline__ uint4 load_shared_16(uint32_t address) {
  uint4 out;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
               : "r"(address)
               : "memory");
  return out;
}

__device__ __forceinline__ void store_shared_1(uint32_t address, uint32_t byte) {
  asm volatile("st.shared.u8 [%0], %1;" ::"r"(address), "r"(byte) : "memory");
}

__device__ __forceinline__ void store_shared_8(uint32_t address, const uint2& value) {
  asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(address), "r"(value.x), "r"(value.y) : "memory");
}

__device__ __forceinline__ void store_shared_16(uint32_t address, const uint4& value) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(value.x), "r"(value.y), "r"(value.z),
               "r"(value.w)
               : "memory");
}

}  // namespace ptx
}  // namespace maxsim
