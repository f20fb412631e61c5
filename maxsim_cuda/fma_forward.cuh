// Forward on plain FMA: any dtype, any d, any stride, fp32 throughout. The path of last resort, and the exact one.
#pragma once

#include "device_problem.cuh"

namespace maxsim {
namespace cuda {

struct FmaTile {
  static constexpr int kQueries = 32;           // rows of a chunk: the unit in which every path sums query tokens
  static constexpr int kTokens = 64;            // document tokens a step
  static constexpr int kFeatures = 32;          // features a step: one coalesced 128-byte line of fp32 per row
  static constexpr int kThreads = 128;          // 8 x 16 threads, 4 x 4 products each
  static constexpr int kPitch = kFeatures + 1;  // odd, so that a column of rows hits every bank once
};

// Shared memory of one pair's computation.
struct FmaShared {
  float query_tile[FmaTile::kQueries * FmaTile::kPitch];
  float token_tile[FmaTile::kTokens * FmaTile::kPitch];
  float token_scale[FmaTile::kTokens];
  float query_scale[FmaTile::kQueries];
  float row_best[FmaTile::kQueries];
  int any_token;
};

// One side's features where its tensor has them. What stands in its place for documents of another kind gives feature k
// of a token in the same way.
struct DenseTokens {
  Segments side;

  __device__ __forceinline__ float at(int64_t segment, const Span& span, int64_t token, int64_t k) const {
    float value = load_feature(side, span.begin + token * side.token_stride, k);
    if (side.scale) value *= token_factor(side, side.scale, segment, span, token);
    if (side.minimum) value += token_factor(side, side.minimum, segment, span, token);
    return value;
  }
};

// One pair, by a whole block. Sums of squares are taken from the tiles in shared memory, feature by feature, so that
// they cost no extra traffic.
template <bool kArgmax, class Documents>
__device__ __forceinline__ void fma_pair(const Problem& problem, const Documents& documents, bool normalize_documents,
                                         int64_t pair, FmaShared& shared, float* scores, int32_t* argmax) {
  using T = FmaTile;
  const int thread = threadIdx.x, tx = thread % 16, ty = thread / 16;
  const Segments& q_side = problem.queries;
  const Segments& d_side = problem.documents;
  const PairIds ids = pair_ids(problem, pair);
  const Span query = span_of(q_side, ids.query), document = span_of(d_side, ids.document);
  const bool valid = query.valid && document.valid && query.length <= problem.longest_query;
  __syncthreads();
  if (thread == 0) shared.any_token = 0;
  __syncthreads();
  if (valid)
    for (int t = thread; t < document.length; t += T::kThreads)
      if (token_kept(d_side, document, t)) shared.any_token = 1;
  if (kArgmax)
    for (int64_t i = thread; i < problem.argmax_width; i += T::kThreads) argmax[pair * problem.argmax_width + i] = -1;
  __syncthreads();
  if (!valid || !shared.any_token) {
    if (thread == 0) scores[pair] = valid ? problem.empty_score : __int_as_float(0x7fc00000);
    return;
  }

  double total = 0;  // thread 0's; in double, so that holes in a query mask do not show in the rounding
  for (int q0 = 0; q0 < query.length; q0 += T::kQueries) {
    float best[4];
    int32_t winner[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) best[i] = -INFINITY, winner[i] = INT32_MAX;
    for (int t0 = 0; t0 < document.length; t0 += T::kTokens) {
      float sum[4][4] = {};
      float square = 0.f;  // of the row that this thread norms
      for (int64_t k0 = 0; k0 < q_side.dim; k0 += T::kFeatures) {
        __syncthreads();
        const int k = thread % T::kFeatures;
        for (int row = thread / T::kFeatures; row < T::kQueries + T::kTokens; row += T::kThreads / T::kFeatures) {
          const bool is_query = row < T::kQueries;
          const int token = is_query ? q0 + row : t0 + row - T::kQueries;
          float value = 0.f;
          if (token < (is_query ? query : document).length && k0 + k < q_side.dim)
            value = is_query ? DenseTokens{q_side}.at(ids.query, query, token, k0 + k)
                             : documents.at(ids.document, document, token, k0 + k);
          (is_query ? shared.query_tile + row * T::kPitch : shared.token_tile + (row - T::kQueries) * T::kPitch)[k] =
              value;
        }
        __syncthreads();
        if ((problem.normalize || normalize_documents) && thread < T::kQueries + T::kTokens) {
          const float* row = thread < T::kTokens ? shared.token_tile + thread * T::kPitch
                                                 : shared.query_tile + (thread - T::kTokens) * T::kPitch;
          for (int f = 0; f < T::kFeatures; ++f) square = fmaf(row[f], row[f], square);
        }
#pragma unroll 8
        for (int f = 0; f < T::kFeatures; ++f) {
          float a[4], b[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) a[i] = shared.query_tile[(ty * 4 + i) * T::kPitch + f];
#pragma unroll
          for (int j = 0; j < 4; ++j) b[j] = shared.token_tile[(tx + 16 * j) * T::kPitch + f];
#pragma unroll
          for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) sum[i][j] = fmaf(a[i], b[j], sum[i][j]);
        }
      }
      if (problem.normalize || normalize_documents) {
        const float norm = sqrtf(square), inverse = 1.f / (norm < kNormEps ? kNormEps : norm);
        if (thread < T::kTokens)
          shared.token_scale[thread] = inverse;
        else if (thread < T::kTokens + T::kQueries)
          shared.query_scale[thread - T::kTokens] = inverse;
        __syncthreads();
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int local = tx + 16 * j, token = t0 + local;
        if (token >= document.length || !token_kept(d_side, document, token)) continue;
        const float scale = normalize_documents ? shared.token_scale[local] : 1.f;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float value = sum[i][j] * scale;
          if (beats(value, token, best[i], winner[i])) best[i] = value, winner[i] = token;
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int step = 8; step; step /= 2) {
        const float other = __shfl_xor_sync(~0u, best[i], step);
        const int32_t index = __shfl_xor_sync(~0u, winner[i], step);
        if (beats(other, index, best[i], winner[i])) best[i] = other, winner[i] = index;
      }
      const int row = ty * 4 + i, token = q0 + row;
      const bool counts = token < query.length && token_kept(q_side, query, token);
      if (tx == 0) {
        shared.row_best[row] = counts ? best[i] * (problem.normalize ? shared.query_scale[row] : 1.f) : 0.f;
        if (kArgmax && counts) argmax[pair * problem.argmax_width + token] = winner[i];
      }
    }
    __syncthreads();
    if (thread < 32) {
      double sum = shared.row_best[thread];
#pragma unroll
      for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
      total += sum;
    }
  }
  if (thread == 0) scores[pair] = static_cast<float>(total);
}

template <bool kArgmax, class Documents>
__global__ void __launch_bounds__(FmaTile::kThreads)
    fma_forward(const __grid_constant__ Problem problem, const __grid_constant__ Documents documents,
                bool normalize_documents, float* scores, int32_t* argmax) {
  __shared__ FmaShared shared;
  for (int64_t pair = blockIdx.x; pair < problem.pairs; pair += gridDim.x)
    fma_pair<kArgmax>(problem, documents, normalize_documents, pair, shared, scores, argmax);
}

// Only the pairs whose score is NaN: those that split operands could not hold (split.cuh), and those that stay NaN.
template <bool kArgmax>
__global__ void __launch_bounds__(FmaTile::kThreads)
    fma_mend(const __grid_constant__ Problem problem, float* scores, int32_t* argmax) {
  __shared__ FmaShared shared;
  __shared__ unsigned broken[FmaTile::kThreads / 32];
  for (int64_t first = blockIdx.x; first < problem.pairs; first += int64_t{gridDim.x} * FmaTile::kThreads) {
    const int64_t mine = first + int64_t{gridDim.x} * threadIdx.x;
    const bool nan = mine < problem.pairs && scores[mine] != scores[mine];
    if (!__syncthreads_or(nan)) continue;
    const unsigned found = __ballot_sync(~0u, nan);
    if (threadIdx.x % 32 == 0) broken[threadIdx.x / 32] = found;
    __syncthreads();
    for (int i = 0; i < FmaTile::kThreads; ++i)
      if (broken[i / 32] >> i % 32 & 1)
        fma_pair<kArgmax>(problem, DenseTokens{problem.documents}, problem.normalize, first + int64_t{gridDim.x} * i,
                          shared, scores, argmax);
  }
}

}  // namespace cuda
}  // namespace maxsim
