// Documents of eight bits a feature, with a scale and perhaps a minimum for each token.
#include <metal_stdlib>

#include "forward.h"

using namespace metal;
using namespace maxsim::metal_backend;

template <typename T, bool kArgmax>
[[kernel]] void maxsim_bytes(constant ForwardParams& params [[buffer(0)]],
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
                             device const uchar* scales [[buffer(17)]],
                             device const uchar* minima [[buffer(18)]],
                             threadgroup uchar* memory [[threadgroup(0)]],
                             uint3 group [[threadgroup_position_in_grid]],
                             uint3 groups [[threadgroups_per_grid]],
                             uint index [[thread_index_in_threadgroup]],
                             uint lane [[thread_index_in_simdgroup]],
                             uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  const Tensors tensors = {queries,       documents,  query_extents, document_extents, query_mask, document_mask,
                           query_ids,     document_ids, nullptr, scales, minima};
  forward<T, Format::bytes>(params, tensors, memory, group, groups, index, lane, simdgroup, scores,
                      kArgmax ? argmax : (device int32_t*)nullptr);
}

template [[host_name("maxsim_bytes_f32")]] [[kernel]]
decltype(maxsim_bytes<float, false>) maxsim_bytes<float, false>;
template [[host_name("maxsim_bytes_f16")]] [[kernel]]
decltype(maxsim_bytes<half, false>) maxsim_bytes<half, false>;
template [[host_name("maxsim_bytes_bf16")]] [[kernel]]
decltype(maxsim_bytes<bfloat, false>) maxsim_bytes<bfloat, false>;
template [[host_name("maxsim_bytes_f32_argmax")]] [[kernel]]
decltype(maxsim_bytes<float, true>) maxsim_bytes<float, true>;
template [[host_name("maxsim_bytes_f16_argmax")]] [[kernel]]
decltype(maxsim_bytes<half, true>) maxsim_bytes<half, true>;
template [[host_name("maxsim_bytes_bf16_argmax")]] [[kernel]]
decltype(maxsim_bytes<bfloat, true>) maxsim_bytes<bfloat, true>;
