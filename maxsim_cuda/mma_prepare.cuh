// What is done to rows in shared memory before they are multiplied: inputs that are not plain fp16 or bf16 become pairs
// of fp16, and sums of squares are taken where rows are to be normalised.
#pragma once

#include "mma_loader.cuh"

namespace maxsim {
namespace cuda {

// An fp32 value is the sum of two fp16 values to 22 bits, more than products of 11 bits add up to, as long as it is
// neither tiny nor huge. So each row of a chunk is divided by a power of two that brings its largest value to [8, 16);
// rows beyond kLargest, rows that are all tiny and rows that are not finite are multiplied one by one instead.
// (Ootomo and Yokota, Recovering single precision accuracy from Tensor Cores, 2022.)
constexpr float kLargest = 0x1p60f, kSmallest = 0x1p-60f;

__device__ __forceinline__ float row_unit(float largest, bool& exotic) {
  if (largest == 0.f) return 0.f;
  exotic = !(largest >= kSmallest && largest <= kLargest);
  if (exotic) return __int_as_float(0x7fc00000);
  return __int_as_float((__float_as_int(largest) & 0x7f800000) - (3 << 23));
}

// A thread's 16 features of a row: groups of four, 16 apart.
struct RowPart {
  float value[16];

  __device__ __forceinline__ void load(const char* row, int part, DType dtype, int rotation) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int group = (i ^ rotation) * 4 + part;
      float* out = value + 4 * i;
      if (dtype == DType::f32) {
        *reinterpret_cast<float4*>(out) = *reinterpret_cast<const float4*>(row + group * 16);
      } else {
        const uint2 raw = *reinterpret_cast<const uint2*>(row + group * 8);
        const uint32_t words[2] = {raw.x, raw.y};
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const unsigned short bits = static_cast<unsigned short>(words[k / 2] >> (k % 2 * 16));
          out[k] = dtype == DType::f16 ? __half2float(__ushort_as_half(bits)) : __uint_as_float(uint32_t{bits} << 16);
        }
      }
    }
  }
};

// Four lanes a row: its 256 bytes become 128 of high parts and 128 of low parts, in place. Two rows of a thread at a
// time, so that one's shuffles hide the other's.
template <class C>
__device__ __forceinline__ bool split_rows(char* rows, int count, DType dtype, bool normalize,
                                           const float* squares_before, float* units, float* squares) {
  constexpr int kAtOnce = 2, kStep = C::kThreads / 4;
  const int part = threadIdx.x % 4, rotation = threadIdx.x / 4 % 4;  // rows read different banks
  bool any_exotic = false;
  for (int first = threadIdx.x / 4; first < count; first += kAtOnce * kStep) {
    RowPart parts[kAtOnce];
    int largest[kAtOnce];  // bits of the largest magnitude: NaN has the largest of all
    float square[kAtOnce];
#pragma unroll
    for (int r = 0; r < kAtOnce; ++r) {
      const int row = min(first + r * kStep, count - 1);
      parts[r].load(rows + row * C::kPitch, part, dtype, rotation);
      largest[r] = 0;
      square[r] = 0.f;
#pragma unroll
      for (int i = 0; i < 16; ++i) largest[r] = max(largest[r], __float_as_int(parts[r].value[i]) & 0x7fffffff);
      if (normalize) {  // a tree over groups, which no rotation changes
        const float(&v)[16] = parts[r].value;
        float sum[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
          sum[i] = fmaf(v[4 * i], v[4 * i], v[4 * i + 1] * v[4 * i + 1]) +
                   fmaf(v[4 * i + 2], v[4 * i + 2], v[4 * i + 3] * v[4 * i + 3]);
        square[r] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
      }
    }
#pragma unroll
    for (int step = 1; step <= 2; step *= 2)
#pragma unroll
      for (int r = 0; r < kAtOnce; ++r) {
        largest[r] = max(largest[r], __shfl_xor_sync(~0u, largest[r], step));
        if (normalize) square[r] += __shfl_xor_sync(~0u, square[r], step);
      }
    __syncwarp();  // the rows have been read
#pragma unroll
    for (int r = 0; r < kAtOnce; ++r) {
      const int row = first + r * kStep;
      if (row >= count) break;
      bool exotic = false;
      const float unit = row_unit(__int_as_float(largest[r]), exotic);
      any_exotic |= exotic;
      const float inverse = unit > 0.f ? 1.f / unit : 0.f;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int group = (i ^ rotation) * 4 + part;
        __half2 high[2], low[2];
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const float x = exotic ? 0.f : parts[r].value[4 * i + 2 * k] * inverse;
          const float y = exotic ? 0.f : parts[r].value[4 * i + 2 * k + 1] * inverse;
          high[k] = __floats2half2_rn(x, y);
          const float2 rounded = __half22float2(high[k]);
          low[k] = __floats2half2_rn(x - rounded.x, y - rounded.y);
        }
        char* to = rows + swizzled_chunk<C>(row, group / 2) + group % 2 * 8;
        *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(high);
        *reinterpret_cast<uint2*>(to + 128) = *reinterpret_cast<const uint2*>(low);
      }
      if (part == 0) {
        units[row] = unit;
        squares[row] = square[r] + (squares_before ? squares_before[row] : 0.f);
      }
    }
  }
  return any_exotic;
}

template <class C, class T>
__device__ __forceinline__ void square_rows(const char* rows, int count, const float* squares_before, float* squares) {
  for (int row = threadIdx.x; row < count; row += C::kThreads) {
    float square = squares_before ? squares_before[row] : 0.f;
#pragma unroll
    for (int chunk = 0; chunk < 8; ++chunk) {
      const uint4 value = *reinterpret_cast<const uint4*>(rows + swizzled_chunk<C>(row, chunk));
      const T* part = reinterpret_cast<const T*>(&value);
#pragma unroll
      for (int i = 0; i < 8; ++i) square = fmaf(static_cast<float>(part[i]), static_cast<float>(part[i]), square);
    }
    squares[row] = square;
  }
}

// One chunk of rows. Their sums of squares go on from `before`, which is null at the first chunk; after the last one
// they become the factors of normalisation, or 1. Says whether a row is exotic.
template <class C, class T>
__device__ __forceinline__ bool prepare_rows(char* rows, int count, const Problem& problem, DType dtype,
                                             const float* before, float* units, float* squares, bool last) {
  bool exotic = false;
  if (C::kSplit)
    exotic = split_rows<C>(rows, count, dtype, problem.normalize, before, units, squares);
  else
    square_rows<C, T>(rows, count, before, squares);
  if (!last) return exotic;
  __syncthreads();
  for (int row = threadIdx.x; row < count; row += C::kThreads) {
    const float norm = sqrtf(squares[row]);
    squares[row] = problem.normalize ? 1.f / (norm < kNormEps ? kNormEps : norm) : 1.f;
  }
  return exotic;
}

}  // namespace cuda
}  // namespace maxsim
