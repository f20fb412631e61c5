// Scores by centroids alone: each token counts as its centroid, whose similarities are looked up.
#include <metal_stdlib>

#include "device.h"

using namespace metal;
using namespace maxsim::metal_backend;

// A code that names no centroid counts as 0, as on every device.
inline int64_t known_code(constant ApproxParams& params, device const uchar* codes, int64_t row) {
  const int64_t code = load_code(codes, params.code_bytes, params.codes_are_signed, row);
  return code < 0 || code >= params.centroids ? 0 : code;
}

// One simdgroup owns a pair: its lanes share out the query tokens.
[[kernel, max_total_threads_per_threadgroup(kThreads)]]
void maxsim_approx(constant ApproxParams& params [[buffer(0)]],
                   device const uchar* document_extents [[buffer(4)]],
                   device float* scores [[buffer(9)]],
                   device const uchar* codes [[buffer(16)]],
                   device const float* centroid_scores [[buffer(23)]],
                   device const uchar* probed [[buffer(24)]],
                   uint3 group [[threadgroup_position_in_grid]],
                   uint3 groups [[threadgroups_per_grid]],
                   uint lane [[thread_index_in_simdgroup]],
                   uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  for (int64_t pair = int64_t(group.x) * kSimdgroups + simdgroup; pair < params.pairs;
       pair += int64_t(groups.x) * kSimdgroups) {
    const int64_t query = quotient(pair, params.documents.count), document = pair - query * params.documents.count;
    const Span span = span_of(params.documents, document_extents, document);
    device const float* table = centroid_scores + query * params.centroids * params.width;
    bool candidate = !params.has_probed;
    for (int64_t t = lane; params.has_probed && t < span.length; t += 32)
      candidate = candidate || probed[query * params.centroids + known_code(params, codes, span.first_row + t)] != 0;
    candidate = simd_any(candidate);
    Sum sum = {0.0f, 0.0f};  // the same in every lane
    for (int64_t i0 = 0; candidate && i0 < params.width; i0 += 32) {
      const int64_t i = i0 + lane;
      float best = -INFINITY;
      for (int64_t t = 0; t < span.length; ++t) {
        const int64_t code = known_code(params, codes, span.first_row + t);
        const float value = i < params.width ? table[code * params.width + i] : 0.0f;
        if (value > best || isnan(value)) best = value;
      }
      const int count = int(min(int64_t(32), params.width - i0));
      for (int source = 0; source < count; ++source) sum = add(sum, simd_shuffle(best, ushort(source)));
    }
    const float empty = params.has_probed ? -INFINITY : 0.0f;
    const float score = span.length == 0 || !candidate ? empty : rounded(sum);
    if (lane == 0) scores[pair] = span.valid ? score : NAN;
  }
}
