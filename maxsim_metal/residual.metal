// Documents as centroids and residuals (ColBERTv2, PLAID), decompressed on the way into the tile.
#include <metal_stdlib>

#include "forward.h"

using namespace metal;
using namespace maxsim::metal_backend;

template <typename T, bool kArgmax>
[[kernel, max_total_threads_per_threadgroup(kThreads)]]
void maxsim_residual(constant ForwardParams& params [[buffer(0)]],
                     device const uchar* queries [[buffer(1)]],
                     device const uchar* documents [[buffer(2)]],
                     device const uchar* query_extents [[buffer(3)]],
                     device const uchar* document_extents [[buffer(4)]],
                     device const uchar* query_mask [[buffer(5)]],
                     device const uchar* document_mask [[buffer(6)]],
                     device const uchar* query_ids [[buffer(7)]],
                     device const uchar* document_ids [[buffer(8)]],
                     device float* scores [[buffer(9)]],
                     device int32_t* argmax [[buffer(10)]],
                     device const uchar* codes [[buffer(16)]],
                     device const uchar* centroids [[buffer(17)]],
                     device const uchar* bucket_weights [[buffer(18)]],
                     threadgroup uchar* memory [[threadgroup(0)]],
                     uint3 group [[threadgroup_position_in_grid]],
                     uint3 groups [[threadgroups_per_grid]],
                     uint index [[thread_index_in_threadgroup]],
                     uint lane [[thread_index_in_simdgroup]],
                     uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  const Tensors tensors = {queries,    documents,     query_extents, document_extents,
                           query_mask, document_mask, query_ids,     document_ids};
  const Extras extras = {codes, centroids, bucket_weights, nullptr, nullptr, nullptr};
  forward<T, Format::residual, Hard>(params, tensors, extras, memory, group, groups, index, lane, simdgroup, scores,
                                  kArgmax ? argmax : (device int32_t*)nullptr);
}

template [[host_name("maxsim_residual_f32")]] [[kernel]]
decltype(maxsim_residual<float, false>) maxsim_residual<float, false>;
template [[host_name("maxsim_residual_f16")]] [[kernel]]
decltype(maxsim_residual<half, false>) maxsim_residual<half, false>;
template [[host_name("maxsim_residual_bf16")]] [[kernel]]
decltype(maxsim_residual<bfloat, false>) maxsim_residual<bfloat, false>;
template [[host_name("maxsim_residual_f32_argmax")]] [[kernel]]
decltype(maxsim_residual<float, true>) maxsim_residual<float, true>;
template [[host_name("maxsim_residual_f16_argmax")]] [[kernel]]
decltype(maxsim_residual<half, true>) maxsim_residual<half, true>;
template [[host_name("maxsim_residual_bf16_argmax")]] [[kernel]]
decltype(maxsim_residual<bfloat, true>) maxsim_residual<bfloat, true>;
