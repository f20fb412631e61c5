// Bulk tensor copies from global to shared memory.
#pragma once

#include <cuda.h>

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

}  // namespace ptx
}  // namespace maxsim
