// The backward's kernels under a soft maximum: the gradients of either side.
#include <metal_stdlib>

#include "soft_backward.h"

using namespace metal;
using namespace maxsim::metal_backend;

template <bool kOfQueries>
[[kernel, max_total_threads_per_threadgroup(kThreads)]]
void maxsim_soft_backward(constant BackwardParams& params [[buffer(0)]],
                          device const uchar* queries [[buffer(1)]],
                          device const uchar* documents [[buffer(2)]],
                          device const uchar* query_extents [[buffer(3)]],
                          device const uchar* document_extents [[buffer(4)]],
                          device const uchar* query_mask [[buffer(5)]],
                          device const uchar* document_mask [[buffer(6)]],
                          device const uchar* query_ids [[buffer(7)]],
                          device const uchar* document_ids [[buffer(8)]],
                          device const float* grad_scores [[buffer(9)]],
                          device const int64_t* sorted_ids [[buffer(11)]],
                          device const int64_t* pair_order [[buffer(12)]],
                          device const float* query_norms [[buffer(13)]],
                          device const float* document_norms [[buffer(14)]],
                          device uchar* gradient [[buffer(15)]],
                          device const float* parts [[buffer(22)]],
                          threadgroup uchar* memory [[threadgroup(0)]],
                          uint3 group [[threadgroup_position_in_grid]],
                          uint3 groups [[threadgroups_per_grid]],
                          uint index [[thread_index_in_threadgroup]],
                          uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  const SoftSaved saved = {queries,      documents,   query_extents, document_extents, query_mask,
                           document_mask, query_ids,  document_ids,  grad_scores,      parts,
                           sorted_ids,   pair_order,  query_norms,   document_norms};
  constant SideParams& own = kOfQueries ? params.problem.queries : params.problem.documents;
  const Places places = learn_places(memory, index);
  const SoftSpace space = soft_space_in(memory);
  for (int64_t segment = group.y; segment < params.items; segment += groups.y) {
    const Span span = span_of(own, kOfQueries ? query_extents : document_extents, segment);
    if (kOfQueries && span.length > params.problem.argmax_width) continue;
    for (int64_t first = int64_t(group.x) * kSoftRows; first < span.length; first += groups.x * kSoftRows)
      soft_gradient<kOfQueries>(params, saved, gradient, space, places, segment, span, first, index, simdgroup);
  }
}

template [[host_name("maxsim_soft_backward_queries")]] [[kernel]]
decltype(maxsim_soft_backward<true>) maxsim_soft_backward<true>;
template [[host_name("maxsim_soft_backward_documents")]] [[kernel]]
decltype(maxsim_soft_backward<false>) maxsim_soft_backward<false>;
