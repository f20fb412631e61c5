// Backward from the saved argmax. Every gradient row has one owner that adds its contributions in pair order, so the
// result is bitwise the same on every run and no fp32 gradient buffer exists outside registers and shared memory.
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
  void* grad_queries;  // [rows, dim] contiguous, zeroed; null = not needed
  void* grad_documents;
};

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

// The n-th pair of a segment.
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

__device__ __forceinline__ void store_element(void* out, DType type, int64_t element, float value) {
  switch (type) {
    case DType::f32:
      static_cast<float*>(out)[element] = value;
      break;
    case DType::f16:
      static_cast<__half*>(out)[element] = __float2half_rn(value);
      break;
    default:
      static_cast<__nv_bfloat16*>(out)[element] = __float2bfloat16_rn(value);
  }
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

// Chain rule through x / max(|x|, eps), for rows that the summing kernels left in the gradient before this pass.
// inverse * (g - u <u, g>) with u = x * inverse; below eps only the scale is left.
__device__ __forceinline__ float projection_factor(float inverse, float dot) {
  return inverse < 1.f / kNormEps ? dot * inverse * inverse : 0.f;
}

// One warp owns one query token and all its features, kWarpFeatures at a time.
struct QueryGradient {
  static constexpr int kThreads = 128;
  static constexpr int kPerLane = 8;
  static constexpr int kFeatures = 32 * kPerLane;
};

__global__ void __launch_bounds__(QueryGradient::kThreads) backward_queries(const __grid_constant__ BackwardArgs args) {
  using T = QueryGradient;
  const Problem& problem = args.problem;
  const Segments& own = problem.queries;
  const Segments& other = problem.documents;
  const int lane = threadIdx.x % 32;
  const int64_t width = problem.argmax_width, tokens = own.count * width;
  for (int64_t item = blockIdx.x * (T::kThreads / 32ll) + threadIdx.x / 32; item < tokens;
       item += gridDim.x * (T::kThreads / 32ll)) {
    const int64_t segment = item / width, token = item % width;
    const Span span = span_of(own, segment);
    if (!span.valid || token >= span.length) continue;
    const PairRange range = pairs_of(problem, args.by_query, true, segment);
    const int64_t begin = span.begin + token * own.token_stride;
    const float inverse = problem.normalize ? args.query_norms[span.first_row + token] : 1.f;
    const int passes = problem.normalize ? 2 : 1;  // the projection needs <x, g> over all features first
    float dot = 0.f;
    for (int pass = 0; pass < passes; ++pass) {
      const bool write = pass + 1 == passes;
      for (int64_t k0 = 0; k0 < own.dim; k0 += T::kFeatures) {
        float sum[T::kPerLane] = {};
        bool touched = false;
        for (int64_t n0 = range.from; n0 < range.to; n0 += 32) {
          int64_t row = -1;
          float factor = 0.f;
          if (n0 + lane < range.to) {
            const int64_t pair = nth_pair(problem, args.by_query, true, segment, n0 + lane);
            const int32_t winner = args.argmax[pair * width + token];
            const Span document = span_of(other, pair_ids(problem, pair).document);
            if (winner >= 0 && winner < document.length) {
              row = document.begin + winner * other.token_stride;
              factor = args.grad_scores[pair];
              if (problem.normalize) factor *= args.document_norms[document.first_row + winner];
            }
          }
          const unsigned hits = __ballot_sync(~0u, row >= 0);
          touched |= hits != 0;
          for (unsigned left = hits; left; left &= left - 1) {
            const int source = __ffs(left) - 1;
            const int64_t element = __shfl_sync(~0u, row, source);
            const float f = __shfl_sync(~0u, factor, source);
#pragma unroll
            for (int i = 0; i < T::kPerLane; ++i) {
              const int64_t k = k0 + i * 32 + lane;
              if (k < own.dim) sum[i] = fmaf(f, load_element(other, element + k * other.feature_stride), sum[i]);
            }
          }
        }
        if (!touched) break;  // exactly zero, whatever the row itself holds
#pragma unroll
        for (int i = 0; i < T::kPerLane; ++i) {
          const int64_t k = k0 + i * 32 + lane;
          if (k >= own.dim) continue;
          const float x = problem.normalize ? load_element(own, begin + k * own.feature_stride) : 0.f;
          if (!write)
            dot = fmaf(x, sum[i], dot);
          else
            store_element(args.grad_queries, own.dtype, (span.first_row + token) * own.dim + k,
                          inverse * (sum[i] - x * projection_factor(inverse, dot)));
        }
      }
      if (!write)
#pragma unroll
        for (int step = 16; step; step /= 2) dot += __shfl_xor_sync(~0u, dot, step);
    }
  }
}

// One block owns a slice of a document's tokens, one thread a feature of all of them: no atomics, one order.
struct DocumentGradient {
  static constexpr int kThreads = 128;
  static constexpr int kTokens = 64;  // 32 KB of sums: six blocks an SM
};

__global__ void __launch_bounds__(DocumentGradient::kThreads)
    backward_documents(const __grid_constant__ BackwardArgs args) {
  using T = DocumentGradient;
  __shared__ float sums[T::kTokens][T::kThreads];
  __shared__ int64_t hit_row[T::kThreads];
  __shared__ float hit_factor[T::kThreads];
  __shared__ int hit_token[T::kThreads];
  __shared__ int warp_hits[T::kThreads / 32];
  __shared__ float dots[T::kTokens];
  __shared__ bool touched[T::kTokens];  // a row that nothing won is exactly zero, whatever it holds
  const Problem& problem = args.problem;
  const Segments& own = problem.documents;
  const Segments& other = problem.queries;
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int64_t width = problem.argmax_width;
  for (int64_t segment = blockIdx.x; segment < own.count; segment += gridDim.x) {
    const Span span = span_of(own, segment);
    const PairRange range = pairs_of(problem, args.by_document, false, segment);
    const int64_t entries = (range.to - range.from) * width;
    for (int64_t t0 = blockIdx.y * T::kTokens; t0 < span.length; t0 += gridDim.y * T::kTokens) {
      const int passes = problem.normalize ? 2 : 1;
      __syncthreads();
      if (thread < T::kTokens) dots[thread] = 0.f, touched[thread] = false;
      for (int pass = 0; pass < passes; ++pass) {
        const bool write = pass + 1 == passes;
        for (int64_t k0 = 0; k0 < own.dim; k0 += T::kThreads) {
          const int64_t k = k0 + thread;
          for (int t = 0; t < T::kTokens; ++t) sums[t][thread] = 0.f;
          for (int64_t e0 = 0; e0 < entries; e0 += T::kThreads) {
            int64_t row = 0;
            float factor = 0.f;
            int token = -1;
            if (e0 + thread < entries) {
              const int64_t pair =
                  nth_pair(problem, args.by_document, false, segment, range.from + (e0 + thread) / width);
              const int64_t slot = (e0 + thread) % width;
              const int64_t winner = args.argmax[pair * width + slot] - t0;
              const Span query = span_of(other, pair_ids(problem, pair).query);
              if (winner >= 0 && winner < T::kTokens && winner + t0 < span.length && slot < query.length) {
                token = static_cast<int>(winner);
                row = query.begin + slot * other.token_stride;
                factor = args.grad_scores[pair];
                if (problem.normalize) factor *= args.query_norms[query.first_row + slot];
              }
            }
            const unsigned votes = __ballot_sync(~0u, token >= 0);
            if (lane == 0) warp_hits[warp] = __popc(votes);
            __syncthreads();
            int place = __popc(votes & ((1u << lane) - 1)), hits = 0;
#pragma unroll
            for (int w = 0; w < T::kThreads / 32; ++w) {
              if (w < warp) place += warp_hits[w];
              hits += warp_hits[w];
            }
            if (token >= 0)
              hit_row[place] = row, hit_factor[place] = factor, hit_token[place] = token, touched[token] = true;
            __syncthreads();
            if (k < own.dim)
#pragma unroll 4
              for (int h = 0; h < hits; ++h) {
                const float x = load_element(other, hit_row[h] + k * other.feature_stride);
                sums[hit_token[h]][thread] = fmaf(hit_factor[h], x, sums[hit_token[h]][thread]);
              }
          }
          for (int t = 0; t < T::kTokens && t0 + t < span.length; ++t) {
            if (!touched[t]) continue;
            const float x = problem.normalize && k < own.dim
                                ? load_element(own, span.begin + (t0 + t) * own.token_stride + k * own.feature_stride)
                                : 0.f;
            if (!write) {
              float part = x * sums[t][thread];
#pragma unroll
              for (int step = 16; step; step /= 2) part += __shfl_xor_sync(~0u, part, step);
              for (int w = 0; w < T::kThreads / 32; ++w) {  // warps in turn, so that the sum has one order
                if (w == warp && lane == 0) dots[t] += part;
                __syncthreads();
              }
            } else if (k < own.dim) {
              const float inverse = problem.normalize ? args.document_norms[span.first_row + t0 + t] : 1.f;
              store_element(args.grad_documents, own.dtype, (span.first_row + t0 + t) * own.dim + k,
                            inverse * (sums[t][thread] - x * projection_factor(inverse, dots[t])));
            }
          }
          __syncthreads();
        }
      }
    }
  }
}

}  // namespace cuda
}  // namespace maxsim
