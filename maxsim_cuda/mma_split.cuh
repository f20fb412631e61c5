// Operands that are neither plain fp16 nor plain bf16: each value becomes the sum of two fp16 values, in registers.
#pragma once

#include "mma_loader.cuh"

namespace maxsim {
namespace cuda {

// Two fp16 values hold 22 bits of an fp32 value, more than products of 11 bits add up to, as long as it is neither tiny
// nor huge. So each row of a chunk is divided by a power of two that brings its largest value to [8, 16); rows beyond
// kLargest, rows that are all tiny and rows that are not finite are exotic: multiplied one by one, in fp32.
// (Ootomo and Yokota, Recovering single precision accuracy from Tensor Cores while surpassing the FP32 theoretical peak
// performance, 2022.)
constexpr float kLargest = 0x1p60f, kSmallest = 0x1p-60f;

// The part of a row that one of the four lanes has that share it: features 16 s + 4 (lane % 4) on, for s = 0 .. 3. The
// order of features within a product is free, so they are multiplied as its features 2 t, 2 t + 1, 2 t + 8 and 2 t + 9.
struct SplitRow {
  float value[16];
  float unit;    // what they were divided by: NaN for an exotic row
  float square;  // sum of squares, of the whole row

  // By four lanes that share a row of shared memory, swizzled and in its own dtype.
  template <class C>
  __device__ __forceinline__ void load(const char* rows, int row, DType dtype, bool normalize) {
    const int part = threadIdx.x % 4;
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      const int group = 4 * s + part;
      float* out = value + 4 * s;
      if (dtype == DType::f32) {
        *reinterpret_cast<float4*>(out) = *reinterpret_cast<const float4*>(rows + swizzled_chunk<C>(row, group));
      } else {
        const uint2 raw = *reinterpret_cast<const uint2*>(rows + swizzled_chunk<C>(row, group / 2) + group % 2 * 8);
        const uint32_t words[2] = {raw.x, raw.y};
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const unsigned short bits = static_cast<unsigned short>(words[k / 2] >> (k % 2 * 16));
          out[k] = dtype == DType::f16 ? __half2float(__ushort_as_half(bits)) : __uint_as_float(uint32_t{bits} << 16);
        }
      }
    }
    float largest = 0.f;  // passes over NaN, whose products are NaN in any case
#pragma unroll
    for (int i = 0; i < 16; ++i) largest = fmaxf(largest, fabsf(value[i]));
    square = 0.f;
    if (normalize)
#pragma unroll
      for (int i = 0; i < 16; ++i) square = fmaf(value[i], value[i], square);
#pragma unroll
    for (int step = 1; step <= 2; step *= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
      if (normalize) square += __shfl_xor_sync(~0u, square, step);
    }
    unit = __int_as_float((__float_as_int(largest) & 0x7f800000) - (3 << 23));
    if (!(largest >= kSmallest && largest <= kLargest)) unit = largest == 0.f ? 0.f : __int_as_float(0x7fc00000);
  }

  __device__ __forceinline__ bool exotic() const { return unit != unit; }

  // Values 4 s + 2 half and the next one, as pairs of fp16. Those of an exotic row are NaN or zero.
  __device__ __forceinline__ void split(int s, int half, uint32_t& high, uint32_t& low) const {
    const float inverse = unit > 0.f ? __int_as_float(0x7f000000 - __float_as_int(unit)) : 0.f;
    const float x = value[4 * s + 2 * half] * inverse, y = value[4 * s + 2 * half + 1] * inverse;
    const __half2 rounded = __floats2half2_rn(x, y);
    const float2 back = __half22float2(rounded);
    const __half2 rest = __floats2half2_rn(x - back.x, y - back.y);
    high = *reinterpret_cast<const uint32_t*>(&rounded);
    low = *reinterpret_cast<const uint32_t*>(&rest);
  }
};

// Query rows, in place: their 256 bytes become 128 of high parts and 128 of low parts, in the order of SplitRow. Their
// sums of squares go on from `before`, which is null at the first chunk. Says whether a row is exotic.
template <class C>
__device__ __forceinline__ bool split_query_rows(char* rows, DType dtype, bool normalize, const float* before,
                                                 float* units, float* squares) {
  const int part = threadIdx.x % 4;
  bool exotic = false;
#pragma unroll 1
  for (int row = threadIdx.x / 4; row < C::kRows; row += C::kThreads / 4) {
    SplitRow mine;
    mine.load<C>(rows, row, dtype, normalize);
    __syncwarp();  // the row has been read
#pragma unroll
    for (int s = 0; s < 4; ++s)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t high, low;
        mine.split(s, half, high, low);
        char* to = rows + swizzled_chunk<C>(row, 2 * s + half) + part * 4;
        *reinterpret_cast<uint32_t*>(to) = high;
        *reinterpret_cast<uint32_t*>(to + 128) = low;
      }
    exotic |= mine.exotic();
    if (part == 0) {
      units[row] = mine.unit;
      squares[row] = mine.square + (before ? before[row] : 0.f);
    }
  }
  return exotic;
}

}  // namespace cuda
}  // namespace maxsim
