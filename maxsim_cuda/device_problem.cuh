// A problem as kernels see it: every offset, length and id is clamped before it becomes an address.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

#include "../maxsim_common/problem.h"
#include "ptx/load.cuh"

namespace maxsim {
namespace cuda {

// Rows of one segment that lie inside the tensor; `valid` is false where the stated ones did not.
struct Span {
  int64_t begin = 0;       // element offset of row 0
  int64_t mask_begin = 0;  // mask offset of row 0
  int64_t first_row = 0;   // row number in the packed view, or in the padded tensor's token order
  int32_t length = 0;
  bool valid = false;
};

__device__ __forceinline__ Span span_of(const Segments& side, int64_t s) {
  Span span;
  if (s < 0 || s >= side.count) return span;
  if (side.packed()) {
    const int64_t from = side.offsets[s], to = side.offsets[s + 1];
    span.valid = from >= 0 && from <= to && to <= side.extent;
    if (!span.valid) return span;
    span.first_row = from;
    span.length = static_cast<int32_t>(to - from);
    span.begin = from * side.token_stride;
    span.mask_begin = from * side.mask_token_stride;
  } else {
    const int64_t length = side.length(s);
    span.valid = length >= 0 && length <= side.extent;
    if (!span.valid) return span;
    span.first_row = s * side.extent;
    span.length = static_cast<int32_t>(length);
    span.begin = side.stride(side.segment_stride, s);
    span.mask_begin = side.stride(side.mask_stride, s);
  }
  return span;
}

struct PairIds {
  int64_t query, document;
};

__device__ __forceinline__ PairIds pair_ids(const Problem& problem, int64_t pair) {
  switch (problem.pairing) {
    case Pairing::cross:
      return {quotient(pair, problem.documents.count),
              pair - quotient(pair, problem.documents.count) * problem.documents.count};
    case Pairing::slab:
      return {quotient(pair, problem.documents.inner), pair};
    default:
      return {problem.query_ids[pair], problem.document_ids[pair]};
  }
}

__device__ __forceinline__ bool token_kept(const Segments& side, const Span& span, int64_t token) {
  return !side.mask || side.mask[span.mask_begin + token * side.mask_token_stride];
}

// Its mask's byte, or zero where it is not `there`. No branch stands before the load, so that several may be on their
// way at once.
__device__ __forceinline__ int mask_byte(const Segments& side, const Span& span, int64_t token, bool there) {
  return ptx::load_byte_if(there, side.mask + span.mask_begin + token * side.mask_token_stride);
}

__device__ __forceinline__ float load_element(const void* data, DType type, int64_t element) {
  switch (type) {
    case DType::f32:
      return static_cast<const float*>(data)[element];
    case DType::f16:
      return __half2float(static_cast<const __half*>(data)[element]);
    case DType::bf16:
      return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[element]);
    case DType::e4m3:
      return static_cast<float>(static_cast<const __nv_fp8_e4m3*>(data)[element]);
    case DType::e5m2:
      return static_cast<float>(static_cast<const __nv_fp8_e5m2*>(data)[element]);
    case DType::s8:
      return static_cast<const int8_t*>(data)[element];
    default:
      return static_cast<const uint8_t*>(data)[element];
  }
}

__device__ __forceinline__ float load_element(const Segments& side, int64_t element) {
  return load_element(side.data, side.dtype, element);
}

// Feature k of the row that begins at element `row`.
__device__ __forceinline__ float load_feature(const Segments& side, int64_t row, int64_t k) {
  if (side.dtype != DType::bit) return load_element(side, row + k * side.feature_stride);
  return static_cast<const uint8_t*>(side.data)[row + k / 8] >> k % 8 & 1 ? 1.f : -1.f;
}

// A factor of token `token` of segment s, whose rows are `span`.
__device__ __forceinline__ const float& token_factor(const Segments& side, const TokenFactor& factor, int64_t s,
                                                     const Span& span, int64_t token) {
  return Segments::factor(factor, side.factors(factor, s), token + (side.packed() ? span.first_row : 0));
}

// Sum of squares of sixteen neighbouring features of 16 bits. Long rows add these in pairs of pairs, and 64 features to
// those before.
template <class T>
__device__ __forceinline__ float square_of_sixteen(const uint4 (&chunks)[2]) {
  float sum[2] = {};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const T* part = reinterpret_cast<const T*>(&chunks[i]);
#pragma unroll
    for (int k = 0; k < 8; ++k) sum[k % 2] = fmaf(static_cast<float>(part[k]), static_cast<float>(part[k]), sum[k % 2]);
  }
  return sum[0] + sum[1];
}

// What normalises a row, by its sum of squares.
__device__ __forceinline__ float inverse_norm(float square) {
  const float norm = sqrtf(square);
  return 1.f / (norm < kNormEps ? kNormEps : norm);
}

__device__ __forceinline__ void store_element(const Segments& side, void* out, int64_t element, float value) {
  switch (side.dtype) {
    case DType::f32:
      static_cast<float*>(out)[element] = value;
      return;
    case DType::f16:
      static_cast<__half*>(out)[element] = __float2half_rn(value);
      return;
    default:
      static_cast<__nv_bfloat16*>(out)[element] = __float2bfloat16_rn(value);
  }
}

// torch.max's order: NaN above everything, then the value, then the lower index.
__device__ __forceinline__ bool beats(float value, int32_t index, float best, int32_t best_index) {
  const bool nan = value != value, best_nan = best != best;
  if (nan != best_nan) return nan;
  if (!nan && value != best) return value > best;
  return index < best_index;
}

}  // namespace cuda
}  // namespace maxsim
