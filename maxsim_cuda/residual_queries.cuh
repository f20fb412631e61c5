// Query rows as operands of mma.sync, for the order of features that residual tokens have: lane t of a quad owns
// features 8t to 8t + 7 of every 32, of rows g, g + 8, g + 16 and g + 24 of a block of columns.
#pragma once

#include <type_traits>

#include "residual_args.cuh"
#include "residual_config.cuh"

namespace maxsim {
namespace cuda {

template <class E>
struct Pair;
template <>
struct Pair<__half> {
  using Two = __half2;
  static __device__ __forceinline__ uint32_t pack(float a, float b) {
    const __half2 two = __floats2half2_rn(a, b);
    return *reinterpret_cast<const uint32_t*>(&two);
  }
  static __device__ __forceinline__ float2 unpack(uint32_t bits) {
    return __half22float2(*reinterpret_cast<const __half2*>(&bits));
  }
};
template <>
struct Pair<__nv_bfloat16> {
  using Two = __nv_bfloat162;
  static __device__ __forceinline__ uint32_t pack(float a, float b) {
    const __nv_bfloat162 two = __floats2bfloat162_rn(a, b);
    return *reinterpret_cast<const uint32_t*>(&two);
  }
  static __device__ __forceinline__ float2 unpack(uint32_t bits) {
    return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&bits));
  }
};

// One lane's part of one query row, and the factor that makes its products what the caller asked for.
struct QueryShare {
  uint32_t pairs[kShare / 2];
  float factor;
  float length;  // of the row as it is multiplied
};

// Rows are divided by a power of two, which their factors give back: halves have less range than the other types, and
// what is added to all rows' products must not outweigh those of the shortest.
constexpr float kMostLength = 1.5f;  // and half of it at least: the usual length of 1 stays

// What is loaded of it, if it can be 16 bytes at a time. Nobody has to wait for it before it becomes a share.
template <class E>
struct RawQueryShare {
  bool whole;
  uint4 chunks[kChunks];

  __device__ __forceinline__ void load(const Segments& side, const Span& span, int token, bool inside) {
    const auto* plain =
        static_cast<const E*>(side.data) + span.begin + token * side.token_stride + threadIdx.x % 4 * kChunk8;
    const bool is_e = side.dtype == (std::is_same<E, __half>::value ? DType::f16 : DType::bf16);
    whole =
        is_e && side.feature_stride == 1 && side.dim == kMaxResidualDim && reinterpret_cast<uintptr_t>(plain) % 16 == 0;
#pragma unroll
    for (int c = 0; c < kChunks; ++c)
      chunks[c] = whole && inside ? __ldg(reinterpret_cast<const uint4*>(plain + 32 * c)) : make_uint4(0, 0, 0, 0);
  }
};

template <class E>
__device__ __forceinline__ QueryShare query_share(const RawQueryShare<E>& raw, const Segments& side, const Span& span,
                                                  int token, bool normalize, bool inside) {
  const int first = threadIdx.x % 4 * kChunk8;
  float values[kShare];
  float largest = 0.f, square = 0.f;
  if (raw.whole) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const uint32_t words[4] = {raw.chunks[c].x, raw.chunks[c].y, raw.chunks[c].z, raw.chunks[c].w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 two = Pair<E>::unpack(words[i]);
        values[kChunk8 * c + 2 * i] = two.x, values[kChunk8 * c + 2 * i + 1] = two.y;
      }
    }
  } else {
    const int64_t row = span.begin + token * side.token_stride;
#pragma unroll
    for (int k = 0; k < kShare; ++k) {
      const int feature = k / kChunk8 * 32 + first + k % kChunk8;
      values[k] = inside && feature < side.dim ? load_element(side, row + feature * side.feature_stride) : 0.f;
    }
  }
#pragma unroll
  for (int k = 0; k < kShare; ++k) largest = fmaxf(largest, fabsf(values[k]));
#pragma unroll
  for (int step = 1; step <= 2; step *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
  const bool scalable = largest > 0.f && largest < INFINITY;
  const int exponent = scalable ? max(-126, ilogbf(largest)) : 0;
  const float down = exp2f(static_cast<float>(-exponent)), up = exp2f(static_cast<float>(exponent));
#pragma unroll
  for (int k = 0; k < kShare; ++k) {
    values[k] *= down;
    square = fmaf(values[k], values[k], square);
  }
#pragma unroll
  for (int step = 1; step <= 2; step *= 2) square += __shfl_xor_sync(~0u, square, step);
  const float length = sqrtf(square);
  const int more = scalable ? ilogbf(length * (2.f / kMostLength)) : 0;
  const float further = exp2f(static_cast<float>(-more));
  QueryShare share;
  share.factor = up * exp2f(static_cast<float>(more));
  if (normalize) share.factor *= 1.f / (length * up < kNormEps ? kNormEps : length * up);
  share.length = length * further;
#pragma unroll
  for (int k = 0; k < kShare; k += 2) share.pairs[k / 2] = Pair<E>::pack(values[k] * further, values[k + 1] * further);
  return share;
}

template <class E>
__device__ __forceinline__ QueryShare load_query_share(const Segments& side, const Span& span, int token,
                                                       bool normalize, bool inside) {
  RawQueryShare<E> raw;
  raw.load(side, span, token, inside);
  return query_share(raw, side, span, token, normalize, inside);
}

// What is left of a block of 32 query rows beside its operands: the factor of the row whose number is the lane's, and
// which rows count.
struct QueryRows {
  float factor;
  uint32_t kept;
  float longest;  // of those that count
};

// Operands of 16 query rows for 16 features, as 16 bytes a lane, one after another for the lanes: no two meet in a
// bank.
__device__ __forceinline__ uint4* staged_operand(unsigned char* block, int half, int s) {
  return reinterpret_cast<uint4*>(block) + (half * kSteps + s) * 32 + threadIdx.x % 32;
}

// By one warp, which has to meet the others, or itself, before anybody reads.
template <class E>
__device__ __forceinline__ QueryRows stage_query_block(unsigned char* block, const Segments& side, const Span& span,
                                                       int chunk, bool normalize) {
  const int lane = threadIdx.x % 32, group = lane / 4, first = chunk * 32;
  QueryRows rows{0.f, 0, 0.f};
#pragma unroll 1
  for (int half = 0; half < 2; ++half) {
    const int low_row = first + half * 16 + group, high_row = low_row + 8;
    const QueryShare low = load_query_share<E>(side, span, low_row, normalize, low_row < span.length);
    const QueryShare high = load_query_share<E>(side, span, high_row, normalize, high_row < span.length);
#pragma unroll
    for (int s = 0; s < kSteps; ++s)
      *staged_operand(block, half, s) =
          make_uint4(low.pairs[2 * s], low.pairs[2 * s + 1], high.pairs[2 * s], high.pairs[2 * s + 1]);
    const float low_factor = __shfl_sync(~0u, low.factor, lane % 8 * 4);
    const float high_factor = __shfl_sync(~0u, high.factor, lane % 8 * 4);
    if (low_row < span.length && token_kept(side, span, low_row)) rows.longest = fmaxf(rows.longest, low.length);
    if (high_row < span.length && token_kept(side, span, high_row)) rows.longest = fmaxf(rows.longest, high.length);
    if (lane / 16 == half) rows.factor = lane / 8 % 2 ? high_factor : low_factor;
  }
#pragma unroll
  for (int step = 4; step <= 16; step *= 2)
    rows.longest = fmaxf(rows.longest, __shfl_xor_sync(~0u, rows.longest, step));
  const int token = first + lane;
  rows.kept = __ballot_sync(~0u, token < span.length && token_kept(side, span, token));
  return rows;
}

}  // namespace cuda
}  // namespace maxsim
