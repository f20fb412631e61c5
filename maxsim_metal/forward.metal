// The forward's kernels: one for each type of tile, with and without an argmax.
#include <metal_stdlib>

#include "forward.h"

using namespace metal;
using namespace maxsim::metal_backend;

template <typename T, bool kArgmax>
[[kernel, max_total_threads_per_threadgroup(kThreads)]]
void maxsim_forward(constant ForwardParams& params [[buffer(0)]],
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
                    threadgroup uchar* memory [[threadgroup(0)]],
                    uint3 group [[threadgroup_position_in_grid]],
                    uint3 groups [[threadgroups_per_grid]],
                    uint index [[thread_index_in_threadgroup]],
                    uint lane [[thread_index_in_simdgroup]],
                    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  const Tensors tensors = {queries,    documents,     query_extents, document_extents,
                           query_mask, document_mask, query_ids,     document_ids};
  const Extras extras = {nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
  forward<T, Format::dense, Hard>(params, tensors, extras, memory, group, groups, index, lane, simdgroup, scores,
                                  kArgmax ? argmax : (device int32_t*)nullptr);
}

template [[host_name("maxsim_forward_f32")]] [[kernel]]
decltype(maxsim_forward<float, false>) maxsim_forward<float, false>;
template [[host_name("maxsim_forward_f16")]] [[kernel]]
decltype(maxsim_forward<half, false>) maxsim_forward<half, false>;
template [[host_name("maxsim_forward_bf16")]] [[kernel]]
decltype(maxsim_forward<bfloat, false>) maxsim_forward<bfloat, false>;
template [[host_name("maxsim_forward_f32_argmax")]] [[kernel]]
decltype(maxsim_forward<float, true>) maxsim_forward<float, true>;
template [[host_name("maxsim_forward_f16_argmax")]] [[kernel]]
decltype(maxsim_forward<half, true>) maxsim_forward<half, true>;
template [[host_name("maxsim_forward_bf16_argmax")]] [[kernel]]
decltype(maxsim_forward<bfloat, true>) maxsim_forward<bfloat, true>;
