// Bulk tensor copies from global to shared memory.
#pragma once

#include <cuda.h>

#include "cp_async.cuh"
#include "mbarrier.cuh"

namespace maxsim {
namespace ptx {

__device__ __forceinline__ void tma_prefetch(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// One box of a 4-D map; completes on `barrier` with the box's bytes, rows outside the tensor arrive as zeros.
__device__ __forceinline__ void tma_load(void* shared, const CUtensorMap* map, uint64_t* barrier, int feature, int row,
                                         int inner, int outer) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(shared_address(shared)),
      "l"(map), "r"(shared_address(barrier)), "r"(feature), "r"(row), "r"(inner), "r"(outer)
      : "memory");
}

// The same under an L2 policy.
__device__ __forceinline__ void tma_load(void* shared, const CUtensorMap* map, uint64_t* barrier, int feature, int row,
                                         int inner, int outer, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
      "[%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(shared_address(shared)),
      "l"(map), "r"(shared_address(barrier)), "r"(feature), "r"(row), "r"(inner), "r"(outer), "l"(policy)
      : "memory");
}

// The same of a 5-D map, from the beginning of all dimensions but the second and the last.
__device__ __forceinline__ void tma_load_whole(void* shared, const CUtensorMap* map, uint64_t* barrier, int row,
                                               int outer) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%3, %4, %3, %3, %5}], [%2];" ::"r"(shared_address(shared)),
      "l"(map), "r"(shared_address(barrier)), "r"(0), "r"(row), "r"(outer)
      : "memory");
}
__device__ __forceinline__ void tma_load_whole(void* shared, const CUtensorMap* map, uint64_t* barrier, int row,
                                               int outer, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
      "[%1, {%3, %4, %3, %3, %5}], [%2], %6;" ::"r"(shared_address(shared)),
      "l"(map), "r"(shared_address(barrier)), "r"(0), "r"(row), "r"(outer), "l"(policy)
      : "memory");
}

// `bytes` that lie together, a multiple of 16 as both addresses are.
__device__ __forceinline__ void bulk_load(void* shared, const void* global, int bytes, uint64_t* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(shared)),
               "l"(global), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}

// Into L2 only; alignment as above.
__device__ __forceinline__ void bulk_prefetch(const void* global, int bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global), "r"(bytes) : "memory");
}

}  // namespace ptx
}  // namespace maxsim
