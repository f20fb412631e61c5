// Centroids as rows of mma.sync, under queries that wait in shared memory.
#pragma once

#include "ptx/mma.cuh"
#include "residual_queries.cuh"

namespace maxsim {
namespace cuda {

// Products of 16 centroids with a block of 32 query rows that waits in shared memory.
template <class E>
struct CentroidTile {
  uint32_t rows[kSteps][4];

  __device__ __forceinline__ void load(const E* table, int64_t first, int64_t last) {
    const int group = threadIdx.x % 32 / 4;
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const E* row = table + min(first + 8 * half + group, last) * kMaxResidualDim;
        const uint4 four = __ldg(reinterpret_cast<const uint4*>(row) + 4 * c + threadIdx.x % 4);
        rows[2 * c][half] = four.x, rows[2 * c][half + 2] = four.y;
        rows[2 * c + 1][half] = four.z, rows[2 * c + 1][half + 2] = four.w;
      }
  }
  __device__ __forceinline__ void multiply(unsigned char* queries, float (&sums)[4][4]) const {
#pragma unroll
    for (int s = 0; s < kSteps; ++s)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint4 b = *staged_operand(queries, half, s);
        const uint32_t low[2] = {b.x, b.y}, high[2] = {b.z, b.w};
        ptx::mma<E>(sums[2 * half], rows[s], low);
        ptx::mma<E>(sums[2 * half + 1], rows[s], high);
      }
  }
};

}  // namespace cuda
}  // namespace maxsim
