// The queries' gradient: half a warp owns 128 features of a query token and adds up the document tokens that it won,
// in pair order. Where there are few query tokens, `parts` half warps share one and their sums meet in fixed order.
#pragma once

#include "backward_rows.cuh"
#include "ptx/dependent_launch.cuh"

namespace maxsim {
namespace cuda {

struct QueryGradient {
  static constexpr int kThreads = 128;  // small blocks: their tokens are neighbours and read the same winners' sectors
  static constexpr int kGroups = kThreads / kRowLanes;
};

// Adds the winners of pairs [from, to) of one query token to `sum`; whether there were any.
template <typename Rows>
__device__ __forceinline__ bool gather_winners(const BackwardArgs& args, const RowGroup& group, Hit<Rows>* found,
                                               int64_t segment, int64_t token, PairRange range, int64_t k,
                                               LaneSum& sum) {
  const Problem& problem = args.problem;
  const Segments& other = problem.documents;
  bool any = false;
  for (int64_t n0 = range.from; n0 < range.to; n0 += kRowLanes) {
    const int64_t n = n0 + group.lane;
    Hit<Rows> mine;
    bool wanted = false;
    if (n < range.to) {
      const int64_t pair = nth_pair(problem, args.by_query, true, segment, n);
      const int32_t winner = args.argmax[pair * problem.argmax_width + token];
      const Span document = span_of(other, nth_partner(problem, args.by_query, true, segment, n));
      wanted = winner >= 0 && winner < document.length;
      if (wanted) {
        mine.place = Rows::place(document.begin + winner * other.token_stride);
        mine.factor = args.grad_scores[pair];
        if (problem.normalize) mine.factor *= args.document_norms[document.first_row + winner];
      }
    }
    // Those that are wanted first, in their order.
    const unsigned hits = __ballot_sync(group.mask, wanted) >> (threadIdx.x & 16), below = (1u << group.lane) - 1;
    const int count = __popc(hits);
    found[wanted ? __popc(hits & below) : count + __popc(~hits & below)] = mine;
    __syncwarp(group.mask);
    any |= hits != 0;
    add_hits<Rows, Rows::kQueryBatch>(other, found, count, k,
                                      [&](const auto& raw, const Hit<Rows>& hit) { Rows::add(raw, hit.factor, sum); });
    __syncwarp(group.mask);
  }
  return any;
}

template <typename Rows>
__global__ void __launch_bounds__(QueryGradient::kThreads)
    backward_queries(const __grid_constant__ BackwardArgs args, int parts) {
  ptx::launch_dependents();  // the documents' gradient needs nothing of this one
  using T = QueryGradient;
  static_assert(kRowLanes % Rows::kBatch == 0, "a batch never passes the winners that lanes looked up");
  __shared__ float sums[T::kGroups][kRowFeatures];
  __shared__ bool some[T::kGroups];
  __shared__ Hit<Rows> found[T::kGroups][kRowLanes];
  const Problem& problem = args.problem;
  const Segments& own = problem.queries;
  const RowGroup group;
  const Projection projection(problem);
  const int part = group.index % parts, block_tokens = T::kGroups / parts;
  const int64_t width = own.packed() ? problem.argmax_width : own.extent, tokens = own.count * width;
  for (int64_t item0 = int64_t{blockIdx.x} * block_tokens; item0 < tokens; item0 += int64_t{gridDim.x} * block_tokens) {
    const int64_t item = item0 + group.index / parts;
    const int64_t segment = quotient(item, width), token = item - segment * width;
    const Span span = span_of(own, item < tokens ? segment : -1);
    const bool inside = token < span.length;
    PairRange range{0, 0};
    if (inside) {
      range = pairs_of(problem, args.by_query, true, segment);
      const int64_t share = (range.to - range.from + parts - 1) / parts, end = range.to;
      range.from += part * share;
      range.to = range.from + share < end ? range.from + share : end;
    }
    const int64_t begin = span.begin + token * own.token_stride;
    const float inverse = problem.normalize && inside ? args.query_norms[span.first_row + token] : 1.f;
    float dot = 0.f;
    for (int pass = 0; pass < projection.passes; ++pass) {
      for (int64_t chunk = 0; chunk < projection.chunks; ++chunk) {
        const int64_t k = chunk * kRowFeatures + group.lane * kLaneFeatures;
        LaneSum sum = {};
        bool any = gather_winners<Rows>(args, group, found[group.index], segment, token, range, k, sum);
        if (parts > 1) {
          __syncthreads();
#pragma unroll
          for (int i = 0; i < kLaneFeatures; ++i) sums[group.index][group.lane + i * kRowLanes] = sum[i];
          if (group.lane == 0) some[group.index] = any;
          __syncthreads();
          if (part == 0)
            for (int p = 1; p < parts; ++p) {
              any |= some[group.index + p];
#pragma unroll
              for (int i = 0; i < kLaneFeatures; ++i) sum[i] += sums[group.index + p][group.lane + i * kRowLanes];
            }
        }
        // A packed side is zeroed where no token won; a padded side is written whole.
        if (part || item >= tokens || (own.packed() && !inside)) continue;
        if (problem.normalize && any) {
          if (!projection.writes(pass) || projection.passes == 1) dot += group.sum(lane_dot(own, begin, k, sum));
          if (projection.writes(pass)) project(own, begin, k, inverse, dot, sum);
        }
        if (projection.writes(pass))
          store_row(args.grad_queries, own, own.packed() ? span.first_row + token : item, k, sum);
      }
    }
  }
}

}  // namespace cuda
}  // namespace maxsim
