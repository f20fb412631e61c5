// Documents of eight bits a feature, or one; queries of floats, or of eight bits too.
#include <metal_stdlib>

#include "forward.h"

using namespace metal;
using namespace maxsim::metal_backend;

template <typename T, bool kArgmax>
[[kernel, max_total_threads_per_threadgroup(kThreads)]]
void maxsim_stored(constant ForwardParams& params [[buffer(0)]],
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
                   device const float* query_scales [[buffer(19)]],
                   device const float* document_scales [[buffer(20)]],
                   device const float* document_minima [[buffer(21)]],
                   threadgroup uchar* memory [[threadgroup(0)]],
                   uint3 group [[threadgroup_position_in_grid]],
                   uint3 groups [[threadgroups_per_grid]],
                   uint index [[thread_index_in_threadgroup]],
                   uint lane [[thread_index_in_simdgroup]],
                   uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  const Tensors tensors = {queries,    documents,     query_extents, document_extents,
                           query_mask, document_mask, query_ids,     document_ids};
  const Extras extras = {nullptr, nullptr, nullptr, query_scales, document_scales, document_minima};
  forward<T, Format::stored, Hard>(params, tensors, extras, memory, group, groups, index, lane, simdgroup, scores,
                                  kArgmax ? argmax : (device int32_t*)nullptr);
}

template [[host_name("maxsim_stored_f32")]] [[kernel]]
decltype(maxsim_stored<float, false>) maxsim_stored<float, false>;
template [[host_name("maxsim_stored_f16")]] [[kernel]]
decltype(maxsim_stored<half, false>) maxsim_stored<half, false>;
template [[host_name("maxsim_stored_bf16")]] [[kernel]]
decltype(maxsim_stored<bfloat, false>) maxsim_stored<bfloat, false>;
template [[host_name("maxsim_stored_f32_argmax")]] [[kernel]]
decltype(maxsim_stored<float, true>) maxsim_stored<float, true>;
template [[host_name("maxsim_stored_f16_argmax")]] [[kernel]]
decltype(maxsim_stored<half, true>) maxsim_stored<half, true>;
template [[host_name("maxsim_stored_bf16_argmax")]] [[kernel]]
decltype(maxsim_stored<bfloat, true>) maxsim_stored<bfloat, true>;
