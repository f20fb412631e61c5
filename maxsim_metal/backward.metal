// The backward's kernels: norms, and the gradients of either side.
#include <metal_stdlib>

#include "backward.h"

using namespace metal;
using namespace maxsim::metal_backend;

// 1 / max(norm, eps) of every token row of one side: one simdgroup a row.
[[kernel, max_total_threads_per_threadgroup(kThreads)]]
void maxsim_norms(constant NormParams& params [[buffer(0)]],
                  device const uchar* tokens [[buffer(1)]],
                  device float* norms [[buffer(13)]],
                  uint3 group [[threadgroup_position_in_grid]],
                  uint3 groups [[threadgroups_per_grid]],
                  uint lane [[thread_index_in_simdgroup]],
                  uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  constant SideParams& side = params.side;
  for (int64_t row = int64_t(group.x) * kSimdgroups + simdgroup; row < params.rows; row += groups.x * kSimdgroups) {
    int64_t begin = row * side.token_stride;
    if (!side.packed) {
      const int64_t segment = quotient(row, side.extent), outer = quotient(segment, side.inner);
      begin = outer * side.outer_stride + (segment - outer * side.inner) * side.inner_stride +
              (row - segment * side.extent) * side.token_stride;
    }
    float square = 0.0f;
    for (int64_t k = lane; k < params.dim; k += 32) {
      const float value = load_element(tokens, side.element, begin + k * side.feature_stride);
      square = fma(value, value, square);
    }
    square = simd_sum(square);
    if (lane == 0) norms[row] = inverse_norm(square);
  }
}

[[kernel, max_total_threads_per_threadgroup(kThreads)]]
void maxsim_backward_queries(constant BackwardParams& params [[buffer(0)]],
                             device const uchar* queries [[buffer(1)]],
                             device const uchar* documents [[buffer(2)]],
                             device const uchar* query_extents [[buffer(3)]],
                             device const uchar* document_extents [[buffer(4)]],
                             device const uchar* query_ids [[buffer(7)]],
                             device const uchar* document_ids [[buffer(8)]],
                             device const float* grad_scores [[buffer(9)]],
                             device const int32_t* argmax [[buffer(10)]],
                             device const int64_t* sorted_ids [[buffer(11)]],
                             device const int64_t* pair_order [[buffer(12)]],
                             device const float* query_norms [[buffer(13)]],
                             device const float* document_norms [[buffer(14)]],
                             device uchar* gradient [[buffer(15)]],
                             uint3 group [[threadgroup_position_in_grid]],
                             uint3 groups [[threadgroups_per_grid]],
                             uint lane [[thread_index_in_simdgroup]],
                             uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  const Saved saved = {queries,     documents, query_extents, document_extents, query_ids,   document_ids,
                       grad_scores, argmax,    sorted_ids,    pair_order,       query_norms, document_norms};
  const int64_t width = params.problem.argmax_width;
  for (int64_t item = int64_t(group.x) * kSimdgroups + simdgroup; item < params.items; item += groups.x * kSimdgroups) {
    const int64_t segment = quotient(item, width);
    query_gradient(params.problem, saved, gradient, segment, item - segment * width, int(lane));
  }
}

[[kernel, max_total_threads_per_threadgroup(kThreads)]]
void maxsim_backward_documents(constant BackwardParams& params [[buffer(0)]],
                               device const uchar* queries [[buffer(1)]],
                               device const uchar* documents [[buffer(2)]],
                               device const uchar* query_extents [[buffer(3)]],
                               device const uchar* document_extents [[buffer(4)]],
                               device const uchar* query_ids [[buffer(7)]],
                               device const uchar* document_ids [[buffer(8)]],
                               device const float* grad_scores [[buffer(9)]],
                               device const int32_t* argmax [[buffer(10)]],
                               device const int64_t* sorted_ids [[buffer(11)]],
                               device const int64_t* pair_order [[buffer(12)]],
                               device const float* query_norms [[buffer(13)]],
                               device const float* document_norms [[buffer(14)]],
                               device uchar* gradient [[buffer(15)]],
                               threadgroup uchar* memory [[threadgroup(0)]],
                               uint3 group [[threadgroup_position_in_grid]],
                               uint3 groups [[threadgroups_per_grid]],
                               uint index [[thread_index_in_threadgroup]],
                               uint lane [[thread_index_in_simdgroup]],
                               uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  const Saved saved = {queries,     documents, query_extents, document_extents, query_ids,   document_ids,
                       grad_scores, argmax,    sorted_ids,    pair_order,       query_norms, document_norms};
  const Slice slice = slice_in(memory);
  for (int64_t segment = group.y; segment < params.items; segment += groups.y) {
    const Span span = span_of(params.problem.documents, document_extents, segment);
    for (int64_t first = int64_t(group.x) * kGradientTokens; first < span.length; first += groups.x * kGradientTokens)
      document_gradient(params.problem, saved, gradient, slice, segment, span, first, index, lane, simdgroup);
  }
}
