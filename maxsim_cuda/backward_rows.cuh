// Half a warp moves one token row: eight features a lane, 128 at a time. Rows come as 16-byte vectors where the layout
// allows it, and go out in the gradient's dtype.
#pragma once

#include <type_traits>

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

__device__ __forceinline__ uint32_t pack(float a, float b, __half) {
  const __half2 pair = __floats2half2_rn(a, b);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ uint32_t pack(float a, float b, __nv_bfloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// How the other side's rows are read, from element k on. Where they begin is a Place. As many as a batch are in flight
// before the first is added; the queries' gradient does better with fewer and more warps.
template <typename T>
struct VectorRows {
  static constexpr int kBatch = 8, kQueryBatch = 4;
  using Place = uint32_t;  // in vectors, so that a lane hands it on in one register
  using Raw = uint4;
  static __device__ __forceinline__ Place place(int64_t row) { return static_cast<Place>(row / kLaneFeatures); }
  // Lanes behind the last feature read the first ones, whose sums nobody takes.
  static __device__ __forceinline__ Raw fetch(const Segments& side, Place place, int64_t k) {
    return ptx::load_16_now(reinterpret_cast<const uint4*>(static_cast<const T*>(side.data) + (k < side.dim ? k : 0)) +
                            place);
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
  static __device__ __forceinline__ bool stores(const Segments& gradient) {
    constexpr DType kOwn = std::is_same_v<T, __half> ? DType::f16 : DType::bf16;
    return gradient.dtype == kOwn && gradient.dim % kLaneFeatures == 0;
  }
  static __device__ __forceinline__ void store(void* to, const LaneSum& sum) {
    *reinterpret_cast<uint4*>(to) = {pack(sum[0], sum[1], T()), pack(sum[2], sum[3], T()), pack(sum[4], sum[5], T()),
                                     pack(sum[6], sum[7], T())};
  }
};

template <>
struct VectorRows<float> {
  static constexpr int kBatch = 4, kQueryBatch = 2;
  using Place = uint32_t;
  struct Raw {
    uint4 low, high;
  };
  static __device__ __forceinline__ Place place(int64_t row) { return static_cast<Place>(row / 4); }
  static __device__ __forceinline__ Raw fetch(const Segments& side, Place place, int64_t k) {
    const uint4* from =
        reinterpret_cast<const uint4*>(static_cast<const float*>(side.data) + (k < side.dim ? k : 0)) + place;
    return {ptx::load_16_now(from), ptx::load_16_now(from + 1)};
  }
  static __device__ __forceinline__ void add(const Raw& raw, float factor, LaneSum& sum) {
    const uint32_t words[8] = {raw.low.x,  raw.low.y,  raw.low.z,  raw.low.w,
                               raw.high.x, raw.high.y, raw.high.z, raw.high.w};
#pragma unroll
    for (int i = 0; i < kLaneFeatures; ++i) sum[i] = fmaf(factor, __uint_as_float(words[i]), sum[i]);
  }
  static __device__ __forceinline__ bool stores(const Segments& gradient) {
    return gradient.dtype == DType::f32 && gradient.dim % kLaneFeatures == 0;
  }
  static __device__ __forceinline__ void store(void* to, const LaneSum& sum) {
    float4* out = static_cast<float4*>(to);
    out[0] = {sum[0], sum[1], sum[2], sum[3]};
    out[1] = {sum[4], sum[5], sum[6], sum[7]};
  }
};

// Any strides, any dim, one dtype or another.
struct AnyRows {
  static constexpr int kBatch = 2, kQueryBatch = 2;
  using Place = int64_t;
  struct Raw {
    LaneSum values;
  };
  static __device__ __forceinline__ Place place(int64_t row) { return row; }
  static __device__ __forceinline__ Raw fetch(const Segments& side, Place row, int64_t k) {
    Raw raw = {};
#pragma unroll
    for (int i = 0; i < kLaneFeatures; ++i)
      if (k + i < side.dim) raw.values[i] = load_element(side, row + (k + i) * side.feature_stride);
    return raw;
  }
  static __device__ __forceinline__ void add(const Raw& raw, float factor, LaneSum& sum) {
#pragma unroll
    for (int i = 0; i < kLaneFeatures; ++i) sum[i] = fmaf(factor, raw.values[i], sum[i]);
  }
  static __device__ __forceinline__ bool stores(const Segments&) { return false; }
  static __device__ __forceinline__ void store(void*, const LaneSum&) {}
};

// Whether VectorRows can read every row: 16-byte rows at 16-byte addresses, numbered by 32 bits.
inline bool vector_rows(const Segments& side) {
  const auto aligned = [&](int64_t elements) { return elements * element_size(side.dtype) % 16 == 0; };
  const int64_t end =
      side.extent * side.token_stride +
      (side.packed() ? 0
                     : side.count / side.inner * side.segment_stride.outer + side.inner * side.segment_stride.inner);
  return side.feature_stride == 1 && side.dim % kLaneFeatures == 0 &&
         reinterpret_cast<uintptr_t>(side.data) % 16 == 0 && aligned(side.token_stride) &&
         aligned(side.segment_stride.outer) && aligned(side.segment_stride.inner) &&
         end * element_size(side.dtype) / 16 < int64_t{UINT32_MAX};
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

// A row to add, looked up by one lane for its half warp and handed on through shared memory: a shuffle among half a
// warp has to find out who takes part, which costs more than all else that is done for a row.
template <typename Rows>
struct alignas(16) Hit {
  typename Rows::Place place = 0;  // the first row, which is there if any is
  float factor = 0.f;
  int token = -1;  // whose gradient it is a part of, where that may change
};

// Fetches `count` rows and hands each of them to `take` with its hit, in order.
template <typename Rows, int kBatch, typename Take>
__device__ __forceinline__ void add_hits(const Segments& side, const Hit<Rows>* found, int count, int64_t k,
                                         const Take& take) {
  static_assert(kRowLanes % kBatch == 0, "a batch never passes the hits that lanes looked up");
  typename Rows::Raw raw[kBatch];
  int s = 0;
#pragma unroll 1
  for (; s + kBatch <= count; s += kBatch) {
#pragma unroll
    for (int u = 0; u < kBatch; ++u) raw[u] = Rows::fetch(side, found[s + u].place, k);
#pragma unroll
    for (int u = 0; u < kBatch; ++u) take(raw[u], found[s + u]);
  }
  if (s == count) return;
#pragma unroll
  for (int u = 0; u < kBatch; ++u) raw[u] = Rows::fetch(side, found[s + u].place, k);
#pragma unroll
  for (int u = 0; u < kBatch; ++u)
    if (s + u < count) take(raw[u], found[s + u]);
}

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
