// The forward under a soft maximum, with and without what each query token adds to its score.
#include <metal_stdlib>

#include "forward.h"

using namespace metal;
using namespace maxsim::metal_backend;

template <typename T, bool kParts>
[[kernel, max_total_threads_per_threadgroup(kThreads)]]
void maxsim_soft(constant ForwardParams& params [[buffer(0)]],
                 device const uchar* queries [[buffer(1)]],
                 device const uchar* documents [[buffer(2)]],
                 device const uchar* query_extents [[buffer(3)]],
                 device const uchar* document_extents [[buffer(4)]],
                 device const uchar* query_mask [[buffer(5)]],
                 device const uchar* document_mask [[buffer(6)]],
                 device const uchar* query_ids [[buffer(7)]],
                 device const uchar* document_ids [[buffer(8)]],
                 device float* scores [[buffer(9)]],
                 device float* parts [[buffer(22)]],
                 threadgroup uchar* memory [[threadgroup(0)]],
                 uint3 group [[threadgroup_position_in_grid]],
                 uint3 groups [[threadgroups_per_grid]],
                 uint index [[thread_index_in_threadgroup]],
                 uint lane [[thread_index_in_simdgroup]],
                 uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  const Tensors tensors = {queries,    documents,     query_extents, document_extents,
                           query_mask, document_mask, query_ids,     document_ids};
  const Extras extras = {nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
  forward<T, Format::dense, Soft>(params, tensors, extras, memory, group, groups, index, lane, simdgroup, scores,
                                  kParts ? parts : (device float*)nullptr);
}

template [[host_name("maxsim_soft_f32")]] [[kernel]]
decltype(maxsim_soft<float, false>) maxsim_soft<float, false>;
template [[host_name("maxsim_soft_f16")]] [[kernel]]
decltype(maxsim_soft<half, false>) maxsim_soft<half, false>;
template [[host_name("maxsim_soft_bf16")]] [[kernel]]
decltype(maxsim_soft<bfloat, false>) maxsim_soft<bfloat, false>;
template [[host_name("maxsim_soft_f32_parts")]] [[kernel]]
decltype(maxsim_soft<float, true>) maxsim_soft<float, true>;
template [[host_name("maxsim_soft_f16_parts")]] [[kernel]]
decltype(maxsim_soft<half, true>) maxsim_soft<half, true>;
template [[host_name("maxsim_soft_bf16_parts")]] [[kernel]]
decltype(maxsim_soft<bfloat, true>) maxsim_soft<bfloat, true>;
