// Long rows on Hopper that are split in pairs of fp16: what adds the products of stages up.
#pragma once

#include "ptx/wgmma.cuh"
#include "sm90_deep_config.cuh"
#include "split.cuh"

namespace maxsim {
namespace cuda {

// A thread's sums of the products of all steps so far.
template <class C>
struct SplitSums {
  float value[C::N / 2];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < C::N / 2; ++i) value[i] = 0.f;
  }

  // An atom of high parts and one of low parts of query rows and of a tile.
  __device__ __forceinline__ static void multiply(float (&products)[C::N / 2], uint32_t queries, uint32_t tile,
                                                  bool allow_tf32) {
    ptx::wgmma_fence();
    multiply_halves(allow_tf32, [&](auto query_low, auto low, bool adds) {
      constexpr int kQueryLow = decltype(query_low)::value, kLow = decltype(low)::value;
#pragma unroll
      for (int k = 0; k < 4; ++k)
        ptx::Wgmma<__half, C::N>::run(products,
                                      ptx::wgmma_descriptor(queries, kQueryLow * C::kOperandRows * 128 + k * 32),
                                      ptx::wgmma_descriptor(tile, kLow * C::N * 128 + k * 32), adds || k > 0);
    });
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
    ptx::wgmma_settled(products);
  }

  // `row_unit`: of this thread's first row, and eight behind it of the other. `token_unit`: of its first column.
  __device__ __forceinline__ void add(const float (&products)[C::N / 2], const float* row_unit,
                                      const float* token_unit) {
    const float row[2] = {row_unit[0], row_unit[8]};
#pragma unroll
    for (int j = 0; j < C::N / 8; ++j) {
      const float2 token = *reinterpret_cast<const float2*>(token_unit + 8 * j);
#pragma unroll
      for (int e = 0; e < 4; ++e)
        value[4 * j + e] = fmaf(products[4 * j + e], row[e / 2] * (e % 2 ? token.y : token.x), value[4 * j + e]);
    }
  }
};

}  // namespace cuda
}  // namespace maxsim
