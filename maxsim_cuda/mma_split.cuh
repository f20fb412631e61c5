// Operands of the forward on mma.sync that are neither plain fp16 nor plain bf16: they are split in registers.
#pragma once

#include "mma_loader.cuh"
#include "split.cuh"

namespace maxsim {
namespace cuda {

// The part of a row that one of the four lanes has that share it: features 16 s + 4 (lane % 4) on, for s = 0 .. 3. The
// order of features within a product is free, so they are multiplied as its features 2 t, 2 t + 1, 2 t + 8 and 2 t + 9.
struct SplitRow {
  float value[16];
  float unit;    // what they are divided by
  float square;  // sum of squares, of the whole row

  // By four lanes that share a row of shared memory, swizzled and in its own dtype; as `value * scale + minimum`.
  template <class C>
  __device__ __forceinline__ void load(const char* rows, int row, DType dtype, bool normalize, float scale = 1.f,
                                       float minimum = 0.f) {
    const int part = threadIdx.x % 4;
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      const int group = 4 * s + part;
      float* out = value + 4 * s;
      if (dtype == DType::f32) {
        *reinterpret_cast<float4*>(out) = *reinterpret_cast<const float4*>(rows + swizzled_chunk<C>(row, group));
      } else if (dtype == DType::bit) {
        widen_stored(dtype, static_cast<uint8_t>(rows[swizzled_chunk<C>(row, 0) + group / 2]) >> group % 2 * 4, out);
      } else if (is_stored(dtype)) {
        widen_stored(dtype,
                     *reinterpret_cast<const uint32_t*>(rows + swizzled_chunk<C>(row, group / 4) + group % 4 * 4), out);
      } else {
        const uint2 raw = *reinterpret_cast<const uint2*>(rows + swizzled_chunk<C>(row, group / 2) + group % 2 * 8);
        widen(dtype, raw, out);
      }
    }
    if (minimum != 0.f)
#pragma unroll
      for (int i = 0; i < 16; ++i) value[i] = fmaf(value[i], scale, minimum);
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
    unit = unit_of(largest);
  }

  // Values 4 s + 2 half and the next one.
  __device__ __forceinline__ void split(int s, int half, uint32_t& high, uint32_t& low) const {
    split_pair(value[4 * s + 2 * half], value[4 * s + 2 * half + 1], inverse_unit(unit), high, low);
  }
};

// Query rows, in place: their 256 bytes become 128 of high parts and 128 of low parts, in the order of SplitRow. Their
// sums of squares go on from `before`, which is null at the first chunk.
template <class C>
__device__ __forceinline__ void split_query_rows(char* rows, DType dtype, bool normalize, const float* before,
                                                 float* units, float* squares) {
  const int part = threadIdx.x % 4;
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
    if (part == 0) {
      units[row] = mine.unit;
      squares[row] = mine.square + (before ? before[row] : 0.f);
    }
  }
}

}  // namespace cuda
}  // namespace maxsim
