// Shared-memory barriers that count arrivals and bytes. Turing has none: there, a word counts arrivals and another says
// how many make a phase.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace maxsim {
namespace ptx {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ void mbarrier_init(uint64_t* barrier, int arrivals) {
#if __CUDA_ARCH__ >= 800
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals));
#else
  *reinterpret_cast<uint2*>(barrier) = make_uint2(0, arrivals);
#endif
}

__device__ __forceinline__ void mbarrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;"); }

__device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier) {
#if __CUDA_ARCH__ >= 800
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared::cta.b64 state, [%0];\n}" ::"r"(shared_address(barrier))
               : "memory");
#else
  uint32_t* words = reinterpret_cast<uint32_t*>(barrier);
  __threadfence_block();
  // Two phases are one round, so that the count stays small.
  if (atomicAdd(words, 1u) + 1 == 2 * words[1]) atomicSub(words, 2 * words[1]);
#endif
}

__device__ __forceinline__ void mbarrier_arrive_expect(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

// Without arriving.
__device__ __forceinline__ void mbarrier_expect(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

// By shared addresses. The state that an arrival returns is not named: where registers are scarce, the assembler would
// serialise products for its sake.
__device__ __forceinline__ void mbarrier_arrive_at(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void mbarrier_wait_at(uint32_t barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "wait: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra wait;\n"
      "}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

__device__ __forceinline__ void mbarrier_wait(uint64_t* barrier, int parity) {
#if __CUDA_ARCH__ >= 900
  mbarrier_wait_at(shared_address(barrier), parity);
#elif __CUDA_ARCH__ >= 800
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "wait: mbarrier.test_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra wait;\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
#else
  const volatile uint32_t* words = reinterpret_cast<const volatile uint32_t*>(barrier);
  while ((words[0] / words[1] & 1) == static_cast<uint32_t>(parity)) {
  }
  __threadfence_block();
#endif
}

// Ordinary stores to shared memory become visible to wgmma and TMA.
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

}  // namespace ptx
}  // namespace maxsim
