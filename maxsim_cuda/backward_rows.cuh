// Half a warp moves one token row: eight features a lane, 128 at a time. Rows come as 16-byte vectors where the layout
// allows it, and go out in the gradient's dtype.
#pragma once

#include "backward_args.cuh"

namespace maxsim {
namespace cuda {

constexpr int kRowLanes = 16;
constexpr int kLaneFeatures = 8;
constexpr int kRowFeatures = kRowLanes * kLaneFeatures;

using LaneSum = float[kLaneFeatures];

__device__ __forceinline__ float2 unpack(uint32_t pair, __half) {
  return __half22float2(*reinterpret_cast<const __half2*>(&pair));
}
__device__ __forceinline__ float2 unpack(uint32_t pair, __nv_bfloat16) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
}

// How the other side's rows are read. `fetch` gives zeros where nothing is wanted, so that a load never goes astray and
// `add` needs no condition; kBatch fetches are in flight before the first is added.
template <typename T>
struct VectorRows {
  static constexpr int kBatch = 4;
  using Raw = uint4;
  static __device__ __forceinline__ Raw fetch(const Segments& side, int64_t row, int64_t k, bool wanted) {
    if (!wanted || k >= side.dim) return {};
    return __ldg(reinterpret_cast<const uint4*>(static_cast<const T*>(side.data) + row + k));
  }
  static __device__ __forceinline__ void add(const Raw& raw, float factor, LaneSum& sum) {
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 value = unpack(words[i], T());
      sum[2 * i] = fmaf(factor, value.x, sum[2 * i]);
      sum[2 * i + 1] = fmaf(factor, value.y, sum[2 * i + 1]);
    }
  }
};

template <>
struct VectorRows<float> {
  static constexpr int kBatch = 2;
  struct Raw {
    float4 low, high;
  };
  static __device__ __forceinline__ Raw fetch(const Segments& side, int64_t row, int64_t k, bool wanted) {
    if (!wanted || k >= side.dim) return {};
    const float4* from = reinterpret_cast<const float4*>(static_cast<const float*>(side.data) + row + k);
    return {__ldg(from), __ldg(from + 1)};
  }
  static __device__ __forceinline__ void add(const Raw& raw, float factor, LaneSum& sum) {
    const float values[8] = {raw.low.x,  raw.low.y,  raw.low.z,  raw.low.w,
                             raw.high.x, raw.high.y, raw.high.z, raw.high.w};
#pragma unroll
    for (int i = 0; i < kLaneFeatures; ++i) sum[i] = fmaf(factor, values[i], sum[i]);
  }
};

// Any strides, any dim, one dtype or another.
struct AnyRows {
  static constexpr int kBatch = 2;
  struct Raw {
    LaneSum values;
  };
  static __device__ __forceinline__ Raw fetch(const Segments& side, int64_t row, int64_t k, bool wanted) {
    Raw raw = {};
#pragma unroll
    for (int i = 0; i < kLaneFeatures; ++i)
      if (wanted && k + i < side.dim) raw.values[i] = load_element(side, row + (k + i) * side.feature_stride);
    return raw;
  }
  static __device__ __forceinline__ void add(const Raw& raw, float factor, LaneSum& sum) {
#pragma unroll
    for (int i = 0; i < kLaneFeatures; ++i) sum[i] = fmaf(factor, raw.values[i], sum[i]);
  }
};

// Whether VectorRows can read every row: 16-byte rows at 16-byte addresses.
inline bool vector_rows(const Segments& side) {
  const auto aligned = [&](int64_t elements) { return elements * element_size(side.dtype) % 16 == 0; };
  return side.feature_stride == 1 && side.dim % kLaneFeatures == 0 &&
         reinterpret_cast<uintptr_t>(side.data) % 16 == 0 && aligned(side.token_stride) &&
         aligned(side.segment_stride.outer) && aligned(side.segment_stride.inner);
}

__device__ __forceinline__ uint32_t pack(float a, float b, __half) {
  const __half2 pair = __floats2half2_rn(a, b);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ uint32_t pack(float a, float b, __nv_bfloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// Features k … k + 7 of row `row` of a contiguous gradient.
__device__ __forceinline__ void store_row(void* gradient, const Segments& side, int64_t row, int64_t k,
                                          const LaneSum& sum) {
  if (k >= side.dim) return;
  const int64_t at = row * side.dim + k;
  if (side.dim % kLaneFeatures) {
#pragma unroll
    for (int i = 0; i < kLaneFeatures; ++i)
      if (k + i < side.dim) store_element(side, gradient, at + i, sum[i]);
  } else if (side.dtype == DType::f32) {  // the allocator aligns the first row, and so all of them
    float4* out = reinterpret_cast<float4*>(static_cast<float*>(gradient) + at);
    out[0] = {sum[0], sum[1], sum[2], sum[3]};
    out[1] = {sum[4], sum[5], sum[6], sum[7]};
  } else {
    uint32_t words[kLaneFeatures / 2];
#pragma unroll
    for (int i = 0; i < kLaneFeatures / 2; ++i)
      words[i] = side.dtype == DType::f16 ? pack(sum[2 * i], sum[2 * i + 1], __half())
                                          : pack(sum[2 * i], sum[2 * i + 1], __nv_bfloat16());
    *reinterpret_cast<uint4*>(static_cast<uint16_t*>(gradient) + at) = {words[0], words[1], words[2], words[3]};
  }
}

// The half warp that this thread belongs to.
struct RowGroup {
  int lane, index;
  unsigned mask;
  __device__ RowGroup()
      : lane(threadIdx.x % kRowLanes), index(threadIdx.x / kRowLanes), mask(0xffffu << (threadIdx.x & 16)) {}
  __device__ __forceinline__ float sum(float value) const {
#pragma unroll
    for (int step = kRowLanes / 2; step; step /= 2) value += __shfl_xor_sync(mask, value, step);
    return value;
  }
};

// One gradient row in `passes`: without normalisation it is written as summed. With it, the projection needs <x, g>
// over all features first: from the sum itself where it holds them all, else from a first pass over all of them.
struct Projection {
  int passes;
  int64_t chunks;
  __device__ explicit Projection(const Problem& problem)
      : chunks((problem.documents.dim + kRowFeatures - 1) / kRowFeatures) {
    passes = problem.normalize && chunks > 1 ? 2 : 1;
  }
  __device__ __forceinline__ bool writes(int pass) const { return pass + 1 == passes; }
};

__device__ __forceinline__ float lane_dot(const Segments& side, int64_t begin, int64_t k, const LaneSum& sum) {
  float dot = 0.f;
#pragma unroll
  for (int i = 0; i < kLaneFeatures; ++i)
    if (k + i < side.dim) dot = fmaf(load_element(side, begin + (k + i) * side.feature_stride), sum[i], dot);
  return dot;
}

__device__ __forceinline__ void project(const Segments& side, int64_t begin, int64_t k, float inverse, float dot,
                                        LaneSum& sum) {
  const float along = projection_factor(inverse, dot);
#pragma unroll
  for (int i = 0; i < kLaneFeatures; ++i)
    if (k + i < side.dim) {
      const float x = load_element(side, begin + (k + i) * side.feature_stride);
      sum[i] = inverse * (sum[i] - x * along);
    }
}

}  // namespace cuda
}  // namespace maxsim
