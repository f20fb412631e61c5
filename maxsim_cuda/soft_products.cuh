// The two products of the soft maximum on tiles in shared memory: similarities of 16 tokens a warp and 64 of the other
// side, and weighted sums of those 64. Three ways to multiply, one interface.
#pragma once

#include "../maxsim_common/problem.h"
#include "ptx/mma.cuh"
#include "ptx/tf32.cuh"

namespace maxsim {
namespace cuda {

constexpr int kSoftTokens = 64;  // `columns` of them count, a multiple of 16
// 256 bytes of features, and 16 that spread the rows over the banks for every access below.
constexpr int kSoftBytes = 256, kSoftPitch = kSoftBytes + 16;

// A thread's part of 16 rows by 8 columns: rows lane / 4 and 8 more, columns 2 (lane % 4) and the next.
__device__ __forceinline__ int fragment_row(int i) { return threadIdx.x % 32 / 4 + i / 2 * 8; }
__device__ __forceinline__ int fragment_column(int i) { return threadIdx.x % 4 * 2 + i % 2; }

template <class T>
struct Pair16;
template <>
struct Pair16<__half> {
  static constexpr DType kType = DType::f16;
  static __device__ __forceinline__ uint32_t pack(float x, float y) {
    const __half2 both = __floats2half2_rn(x, y);
    return *reinterpret_cast<const uint32_t*>(&both);
  }
  static __device__ __forceinline__ float2 unpack(uint32_t bits) {
    return __half22float2(*reinterpret_cast<const __half2*>(&bits));
  }
};
template <>
struct Pair16<__nv_bfloat16> {
  static constexpr DType kType = DType::bf16;
  static __device__ __forceinline__ uint32_t pack(float x, float y) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(x, y);
    return *reinterpret_cast<const uint32_t*>(&both);
  }
  static __device__ __forceinline__ float2 unpack(uint32_t bits) {
    return make_float2(__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u));
  }
};

// Both sides fp16 or both bf16. Weights go into the tensor cores as sums of two values, which keeps 16 bits of them.
template <class T>
struct SoftHalf {
  using Element = T;
  static constexpr DType kType = Pair16<T>::kType;
  static constexpr int kFeatures = kSoftBytes / 2;
  static constexpr bool kExactWhereNaN = false;

  static __device__ __forceinline__ void similarities(const char* own, const char* other, int features, int columns,
                                                      float (&s)[8][4]) {
    const int lane = threadIdx.x % 32;
    own += (threadIdx.x / 32 * 16 + lane % 16) * kSoftPitch + lane / 16 * 16;
    other += (lane % 8 + lane / 16 * 8) * kSoftPitch + lane / 8 % 2 * 16;
#pragma unroll
    for (int k = 0; k < kFeatures / 16; ++k) {
      if (k * 16 >= features) break;
      uint32_t a[4], b[4];
      ptx::ldmatrix(a, own + k * 32);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (j * 16 >= columns) break;
        ptx::ldmatrix(b, other + j * 16 * kSoftPitch + k * 32);
        ptx::mma<T>(s[2 * j], a, {b[0], b[1]});
        ptx::mma<T>(s[2 * j + 1], a, {b[2], b[3]});
      }
    }
  }

  static __device__ __forceinline__ void weighted_sums(const char* other, int features, int columns,
                                                       const float (&w)[8][4], float (&sum)[kFeatures / 8][4]) {
    const int lane = threadIdx.x % 32;
    other += lane % 16 * kSoftPitch + lane / 16 * 16;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (j * 16 >= columns) break;
      uint32_t high[4], low[4], b[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float x = w[2 * j + i / 2][i % 2 * 2], y = w[2 * j + i / 2][i % 2 * 2 + 1];
        high[i] = Pair16<T>::pack(x, y);
        const float2 rounded = Pair16<T>::unpack(high[i]);
        low[i] = Pair16<T>::pack(x - rounded.x, y - rounded.y);
      }
#pragma unroll
      for (int f = 0; f < kFeatures / 16; ++f) {
        if (f * 16 >= features) break;
        ptx::ldmatrix_transposed(b, other + j * 16 * kSoftPitch + f * 32);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          ptx::mma<T>(sum[2 * f + half], high, {b[2 * half], b[2 * half + 1]});
          ptx::mma<T>(sum[2 * f + half], low, {b[2 * half], b[2 * half + 1]});
        }
      }
    }
  }
};

// fp32 in shared memory, whatever came: each value is the sum of two TF32 values and three of their four products are
// added. Infinities and values beyond TF32's range become NaN that the caller looks into.
struct SoftSplit {
  using Element = float;
  static constexpr DType kType = DType::f32;
  static constexpr int kFeatures = kSoftBytes / 4;
  static constexpr bool kExactWhereNaN = true;

  template <int kCount>
  static __device__ __forceinline__ void split(const float (&x)[kCount], float (&high)[kCount], float (&low)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      high[i] = ptx::to_tf32(x[i]);
      low[i] = ptx::to_tf32(x[i] - high[i]);
    }
  }

  static __device__ __forceinline__ void multiply(float (&c)[4], const float (&a_high)[4], const float (&a_low)[4],
                                                  const float (&b)[2]) {
    float b_high[2], b_low[2];
    split(b, b_high, b_low);
    ptx::mma_tf32(c, a_low, b_high);
    ptx::mma_tf32(c, a_high, b_low);
    ptx::mma_tf32(c, a_high, b_high);
  }

  static __device__ __forceinline__ float at(const char* rows, int row, int feature) {
    return *reinterpret_cast<const float*>(rows + row * kSoftPitch + feature * 4);
  }

  static __device__ __forceinline__ void similarities(const char* own, const char* other, int features, int columns,
                                                      float (&s)[8][4]) {
    const int group = threadIdx.x % 32 / 4, part = threadIdx.x % 4;
    own += threadIdx.x / 32 * 16 * kSoftPitch;
#pragma unroll
    for (int k = 0; k < kFeatures; k += 8) {
      if (k >= features) break;
      const float a[4] = {at(own, group, k + part), at(own, group + 8, k + part), at(own, group, k + part + 4),
                          at(own, group + 8, k + part + 4)};
      float high[4], low[4];
      split(a, high, low);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        if (j * 8 >= columns) break;
        multiply(s[j], high, low, {at(other, j * 8 + group, k + part), at(other, j * 8 + group, k + part + 4)});
      }
    }
  }

  // The order of tokens within a product is free: a thread's two columns are its tokens `part` and `part + 4`.
  static __device__ __forceinline__ void weighted_sums(const char* other, int features, int columns,
                                                       const float (&w)[8][4], float (&sum)[kFeatures / 8][4]) {
    const int group = threadIdx.x % 32 / 4, part = threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      if (j * 8 >= columns) break;
      const float a[4] = {w[j][0], w[j][2], w[j][1], w[j][3]};
      float high[4], low[4];
      split(a, high, low);
#pragma unroll
      for (int f = 0; f < kFeatures / 8; ++f) {
        if (f * 8 >= features) break;
        const int token = j * 8 + 2 * part;
        multiply(sum[f], high, low, {at(other, token, f * 8 + group), at(other, token + 1, f * 8 + group)});
      }
    }
  }
};

// Plain multiply-adds: GPUs before 8.0, and what the others are compared with.
struct SoftFma {
  using Element = float;
  static constexpr DType kType = DType::f32;
  static constexpr int kFeatures = kSoftBytes / 4;
  static constexpr bool kExactWhereNaN = false;

  static __device__ __forceinline__ void similarities(const char* own, const char* other, int features, int columns,
                                                      float (&s)[8][4]) {
    own += threadIdx.x / 32 * 16 * kSoftPitch;
    for (int k = 0; k < min(features, kFeatures); ++k)
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int i = 0; i < 4 && j * 8 < columns; ++i)
          s[j][i] = fmaf(SoftSplit::at(own, fragment_row(i), k), SoftSplit::at(other, j * 8 + fragment_column(i), k),
                         s[j][i]);
  }

  // The four lanes of a row pass its weights around.
  static __device__ __forceinline__ void weighted_sums(const char* other, int features, int columns,
                                                       const float (&w)[8][4], float (&sum)[kFeatures / 8][4]) {
#pragma unroll
    for (int j = 0; j < 8; ++j)
      for (int lane = 0; lane < 4 && j * 8 < columns; ++lane)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float weight = __shfl_sync(~0u, w[j][i], lane, 4);
          const int token = j * 8 + lane * 2 + i % 2;
#pragma unroll
          for (int f = 0; f < kFeatures / 8; ++f)
#pragma unroll
            for (int k = 0; k < 2; ++k)
              sum[f][i / 2 * 2 + k] =
                  fmaf(weight, SoftSplit::at(other, token, f * 8 + threadIdx.x % 4 * 2 + k), sum[f][i / 2 * 2 + k]);
        }
  }
};

}  // namespace cuda
}  // namespace maxsim
