// What is done to rows in shared memory before they are multiplied: queries that are not plain fp16 or bf16 are split,
// and sums of squares are taken where rows are to be normalised.
#pragma once

#include "mma_split.cuh"

namespace maxsim {
namespace cuda {

template <class C, class T>
__device__ __forceinline__ void square_rows(const char* rows, int count, const float* before, float* squares) {
  for (int row = threadIdx.x; row < count; row += C::kThreads) {
    float part[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto chunk = [&](int k) {
        return *reinterpret_cast<const uint4*>(rows + swizzled_chunk<C>(row, 2 * i + k));
      };
      part[i] = square_of_sixteen<T>({chunk(0), chunk(1)});
    }
    const float square = (part[0] + part[1]) + (part[2] + part[3]);
    squares[row] = before ? square + before[row] : square;
  }
}

// Sums of squares become factors of normalisation, after the last chunk.
template <class C>
__device__ __forceinline__ void invert_norms(int count, float* squares) {
  for (int row = threadIdx.x; row < count; row += C::kThreads) squares[row] = inverse_norm(squares[row]);
}

// One chunk of query rows.
template <class C, class T>
__device__ __forceinline__ void prepare_queries(char* rows, const Problem& problem, const float* before, float* units,
                                                float* squares, bool last) {
  if constexpr (C::kSplit)
    split_query_rows<C>(rows, problem.queries.dtype, problem.normalize, before, units, squares);
  else
    square_rows<C, T>(rows, C::kRows, before, squares);
  if (last && problem.normalize) {
    __syncthreads();
    invert_norms<C>(C::kRows, squares);
  }
}

// One chunk of a tile whose rows are operands as they are; those that are split keep their sums in registers.
template <class C, class T>
__device__ __forceinline__ void prepare_tokens(const char* rows, const float* before, float* squares, bool last) {
  square_rows<C, T>(rows, C::N, before, squares);
  if (last) {
    __syncthreads();
    invert_norms<C>(C::N, squares);
  }
}

}  // namespace cuda
}  // namespace maxsim
