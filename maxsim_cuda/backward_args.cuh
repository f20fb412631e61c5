// What the backward kernels share: their arguments, which pairs a segment takes part in, and the chain rule of the
// norm.
#pragma once

#include "device_problem.cuh"

namespace maxsim {
namespace cuda {

// Which pairs a segment takes part in. A pair list is walked through its ids' stable sort.
struct PairOrder {
  const int64_t* sorted_ids = nullptr;  // list pairing only
  const int64_t* order = nullptr;       // pair number of each sorted id
};

struct BackwardArgs {
  Problem problem;
  PairOrder by_query, by_document;
  const float* grad_scores;  // [pairs]
  const int32_t* argmax;     // [pairs, argmax_width]
  const float* query_norms;  // 1 / norm per token row, null unless normalising
  const float* document_norms;
  void* grad_queries;  // [rows, dim] contiguous; the rows of a packed side zeroed, as none but segments' are written
  void* grad_documents;
};

// The pairs of one segment by their number n in [from, to).
struct PairRange {
  int64_t from, to;
};

__device__ __forceinline__ int64_t lower_bound(const int64_t* sorted, int64_t n, int64_t value) {
  int64_t low = 0, high = n;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (sorted[middle] < value)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

__device__ __forceinline__ PairRange pairs_of(const Problem& problem, const PairOrder& order, bool query_side,
                                              int64_t segment) {
  switch (problem.pairing) {
    case Pairing::cross:
      return {0, query_side ? problem.documents.count : problem.queries.count};
    case Pairing::slab:
      return {0, query_side ? problem.documents.inner : 1};
    default:
      return {lower_bound(order.sorted_ids, problem.pairs, segment),
              lower_bound(order.sorted_ids, problem.pairs, segment + 1)};
  }
}

__device__ __forceinline__ int64_t nth_pair(const Problem& problem, const PairOrder& order, bool query_side,
                                            int64_t segment, int64_t n) {
  switch (problem.pairing) {
    case Pairing::cross:
      return query_side ? segment * problem.documents.count + n : n * problem.documents.count + segment;
    case Pairing::slab:
      return query_side ? segment * problem.documents.inner + n : segment;
    default:
      return order.order[n];
  }
}

// The other segment of a segment's n-th pair.
__device__ __forceinline__ int64_t nth_partner(const Problem& problem, const PairOrder& order, bool query_side,
                                               int64_t segment, int64_t n) {
  switch (problem.pairing) {
    case Pairing::cross:
      return n;
    case Pairing::slab:
      return query_side ? segment * problem.documents.inner + n : quotient(segment, problem.documents.inner);
    default:
      return query_side ? problem.document_ids[order.order[n]] : problem.query_ids[order.order[n]];
  }
}

// Chain rule through x / max(|x|, eps): inverse * (g - u <u, g>) with u = x * inverse; below eps only the scale is
// left.
__device__ __forceinline__ float projection_factor(float inverse, float dot) {
  return inverse < 1.f / kNormEps ? dot * inverse * inverse : 0.f;
}

// 1 / max(norm, eps) of every token row of one side: one warp a row.
__global__ void __launch_bounds__(128) row_norms(const __grid_constant__ Segments side, float* out) {
  const int64_t rows = side.packed() ? side.extent : side.count * side.extent;
  const int lane = threadIdx.x % 32;
  for (int64_t row = blockIdx.x * 4ll + threadIdx.x / 32; row < rows; row += gridDim.x * 4ll) {
    const int64_t begin =
        side.packed() ? row * side.token_stride
                      : side.stride(side.segment_stride, row / side.extent) + (row % side.extent) * side.token_stride;
    float square = 0.f;
    for (int64_t k = lane; k < side.dim; k += 32) {
      const float value = load_element(side, begin + k * side.feature_stride);
      square = fmaf(value, value, square);
    }
#pragma unroll
    for (int step = 16; step; step /= 2) square += __shfl_xor_sync(~0u, square, step);
    const float norm = sqrtf(square);
    if (lane == 0) out[row] = 1.f / (norm < kNormEps ? kNormEps : norm);
  }
}

}  // namespace cuda
}  // namespace maxsim
