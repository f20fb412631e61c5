// Copies from global to shared memory that do not hold up the thread, where the GPU has them (8.0 and newer).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "mbarrier.cuh"

namespace maxsim {
namespace ptx {

// 16 bytes, of which the last 16 - `bytes` become zeros unread. Both addresses are multiples of 16.
__device__ __forceinline__ void copy_16_to(uint32_t shared, const void* global, int bytes) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void copy_16_to(uint32_t shared, const void* global) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(shared), "l"(global) : "memory");
}
__device__ __forceinline__ void copy_16(void* shared, const void* global, int bytes) {
#if __CUDA_ARCH__ >= 800
  copy_16_to(shared_address(shared), global, bytes);
#else
  uint4 value = make_uint4(0, 0, 0, 0);
  if (bytes == 16) {
    value = *static_cast<const uint4*>(global);
  } else {
    for (int i = 0; i < bytes; ++i) reinterpret_cast<uint8_t*>(&value)[i] = static_cast<const uint8_t*>(global)[i];
  }
  *static_cast<uint4*>(shared) = value;
#endif
}

// Lines of a stream, the first that L2 lets go, where it can be told (8.0 and newer).
__device__ __forceinline__ uint64_t pass_through_l2() {
  uint64_t policy = 0;
#if __CUDA_ARCH__ >= 800
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
#endif
  return policy;
}

// As copy_16, under an L2 policy.
__device__ __forceinline__ void copy_16(void* shared, const void* global, int bytes, uint64_t policy) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2, %3;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(global), "r"(bytes), "l"(policy)
               : "memory");
#else
  copy_16(shared, global, bytes);
#endif
}

// Four bytes, of which the last 4 - `bytes` become zeros unread. Both addresses are multiples of four.
__device__ __forceinline__ void copy_4_to(uint32_t shared, const void* global, int bytes) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared), "l"(global), "r"(bytes) : "memory");
}
__device__ __forceinline__ void copy_4(void* shared, const void* global, int bytes) {
#if __CUDA_ARCH__ >= 800
  copy_4_to(shared_address(shared), global, bytes);
#else
  uint32_t value = 0;
  for (int i = 0; i < bytes; ++i) value |= uint32_t{static_cast<const uint8_t*>(global)[i]} << 8 * i;
  *static_cast<uint32_t*>(shared) = value;
#endif
}

// All of them.
__device__ __forceinline__ void copy_4(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
      "l"(global)
      : "memory");
#else
  *static_cast<uint32_t*>(shared) = *static_cast<const uint32_t*>(global);
#endif
}

// The line around an address that will be read soon.
__device__ __forceinline__ void prefetch_to_l2(const void* global) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(global));
}

// An arrival on an mbarrier that happens when all copies of this thread so far have.
__device__ __forceinline__ void copy_arrive(uint64_t* barrier) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(barrier)))
               : "memory");
#else
  mbarrier_arrive(barrier);
#endif
}

__device__ __forceinline__ void copy_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int kPending>
__device__ __forceinline__ void copy_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

}  // namespace ptx
}  // namespace maxsim
