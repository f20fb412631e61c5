// Forward of the soft maximum: one block a pair, document tiles under an online sum of exponentials, no tile written.
#pragma once

#include "soft_tile.cuh"

namespace maxsim {
namespace cuda {

// tau * log of a sum of 2^x, for a row that four lanes share: `best` is theirs together, `total` each lane's own.
struct OnlineSum {
  float best = -INFINITY, total = 0.f;

  // What x is relative to: not the best itself where that is infinite, for infinities have no difference.
  __device__ __forceinline__ float base() const { return isinf(best) ? 0.f : best; }

  template <int kCount>
  __device__ __forceinline__ void add(const float (&x)[kCount]) {
    float highest = best;
#pragma unroll
    for (int i = 0; i < kCount; ++i) highest = fmaxf(highest, x[i]);  // passes over NaN, which the sum keeps
    highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 1));
    highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 2));
    const bool first = best == -INFINITY;
    const float before = base();
    best = highest;
    total *= first ? 0.f : exp2f(before - base());
#pragma unroll
    for (int i = 0; i < kCount; ++i) total += exp2f(x[i] - base());
  }

  // To base 2.
  __device__ __forceinline__ float logarithm() const {
    float sum = total + __shfl_xor_sync(~0u, total, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    return best == INFINITY && sum == sum ? best : base() + log2f(sum);
  }
};

template <class Op>
__device__ __forceinline__ void add_tile(const SoftTiles& tiles, const float (&s)[8][4], const float (&row_factor)[2],
                                         OnlineSum (&sums)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float x[16];
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int column = j * 8 + fragment_column(i);
        const float value = s[j][2 * half + i] * tiles.column_scale[column] * row_factor[half];
        x[2 * j + i] = tiles.column_kept[column] ? value : -INFINITY;
      }
    sums[half].add(x);
  }
}

template <class Op>
__global__ void __launch_bounds__(128) soft_forward(SoftArgs args) {
  __shared__ SoftTiles tiles;
  __shared__ float values[kSoftRows];
  const Problem& problem = args.problem;
  const int rows = blockDim.x / 2, warp_row = threadIdx.x / 32 * 16;
  for (int64_t pair = blockIdx.x; pair < problem.pairs; pair += gridDim.x) {
    const PairIds ids = pair_ids(problem, pair);
    const SoftSide query(problem.queries, args.query_norms, ids.query);
    const SoftSide document(problem.documents, args.document_norms, ids.document);
    bool found = false;
    for (int64_t t = threadIdx.x; t < document.span.length && !found; t += blockDim.x) found = document.has(t);
    const bool filled = __syncthreads_or(found);
    float* parts = args.parts ? args.parts + pair * args.width : nullptr;
    double sum = 0.;  // of the first warp, the same in all lanes
    for (int64_t row = 0; filled && row < query.span.length; row += rows) {
      OnlineSum sums[2];
      float row_factor[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t token = row + warp_row + fragment_row(2 * half);
        row_factor[half] = query.has(token) ? query.scale(token) * args.to_log : 0.f;
      }
      for (int64_t token = 0; token < document.span.length; token += kSoftTokens) {
        float s[8][4];
        tile_similarities<Op>(tiles, query, row, document, token, 0, token == 0, s);
        add_tile<Op>(tiles, s, row_factor, sums);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float value = sums[half].logarithm() / args.to_log;
        if (threadIdx.x % 4 == 0) {
          const int at = warp_row + fragment_row(2 * half);
          values[at] = query.has(row + at) ? value : 0.f;
        }
      }
      __syncthreads();
      if (parts)
        for (int i = threadIdx.x; i < rows && row + i < query.span.length; i += blockDim.x) parts[row + i] = values[i];
      if (threadIdx.x < 32)
        for (int i = threadIdx.x; i < rows; i += 32) {  // 32 tokens at a time, whatever the block has
          double part = values[i];
          for (int step = 16; step; step /= 2) part += __shfl_xor_sync(~0u, part, step);
          sum += part;
        }
      __syncthreads();  // `values` have been read
    }
    if (parts)
      for (int64_t i = (filled ? query.span.length : 0) + threadIdx.x; i < args.width; i += blockDim.x) parts[i] = 0.f;
    if (threadIdx.x == 0) {
      const bool valid = query.span.valid && document.span.valid;
      args.scores[pair] = !valid ? NAN : filled ? static_cast<float>(sum) : problem.empty_score;
    }
  }
}

}  // namespace cuda
}  // namespace maxsim
