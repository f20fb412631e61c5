// Which pairs a segment takes part in, and the chain rule through its norm: what both backwards share.
#pragma once

#include <metal_stdlib>

#include "device.h"
#include "params.h"

namespace maxsim {
namespace metal_backend {

using namespace metal;

inline int64_t lower_bound(device const int64_t* sorted, int64_t count, int64_t value) {
  int64_t low = 0, high = count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (sorted[middle] < value)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// The pairs of one segment, as positions in the order that `nth_pair` follows.
struct PairRange {
  int64_t from;
  int64_t to;
};

inline PairRange pairs_of(constant ProblemParams& problem, device const int64_t* sorted_ids, bool of_query,
                          int64_t segment) {
  PairRange range = {0, 1};
  if (problem.meeting == Meeting::cross) {
    range.to = of_query ? problem.documents.count : problem.queries.count;
  } else if (problem.meeting == Meeting::slab) {
    if (of_query) range.to = problem.documents.inner;
  } else {
    range.from = lower_bound(sorted_ids, problem.pairs, segment);
    range.to = lower_bound(sorted_ids, problem.pairs, segment + 1);
  }
  return range;
}

inline int64_t nth_pair(constant ProblemParams& problem, device const int64_t* pair_order, bool of_query,
                        int64_t segment, int64_t n) {
  if (problem.meeting == Meeting::cross)
    return of_query ? segment * problem.documents.count + n : n * problem.documents.count + segment;
  if (problem.meeting == Meeting::slab) return of_query ? segment * problem.documents.inner + n : segment;
  return pair_order[n];
}

// Chain rule through x / max(|x|, eps): inverse * (sum - x * inverse^2 * <x, sum>); below eps only the scale is left.
inline float through_norm(float sum, float x, float inverse, float dot) {
  return inverse * (sum - x * (inverse < 1.0f / kNormEps ? dot * inverse * inverse : 0.0f));
}

}  // namespace metal_backend
}  // namespace maxsim
