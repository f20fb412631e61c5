// Row maxima in registers, for products laid out as mma.sync and wgmma leave them: a thread holds columns
// 8j + 2 (lane % 4) and the next one, of row lane / 4 and of the row 8 below, in four consecutive accumulators.
#pragma once

#include "device_problem.cuh"

namespace maxsim {
namespace cuda {

// NaN if either is.
__device__ __forceinline__ float max_nan(float a, float b) {
#if __CUDA_ARCH__ >= 800
  float out;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(out) : "f"(a), "f"(b));
  return out;
#else
  return a != a || a > b ? a : b;
#endif
}

// The two rows a thread holds of one tile.
template <bool kArgmax>
struct RowState {
  float best[2];
  int32_t winner[2];

  __device__ __forceinline__ void reset() {
    best[0] = best[1] = -INFINITY;
    if (kArgmax) winner[0] = winner[1] = INT32_MAX;
  }
  __device__ __forceinline__ void take(int row, float value, int32_t token) {
    if (!kArgmax) {
      best[row] = max_nan(best[row], value);
    } else if (beats(value, token, best[row], winner[row])) {
      best[row] = value;
      winner[row] = token;
    }
  }
  // Over the four lanes that share a row.
  __device__ __forceinline__ void reduce() {
#pragma unroll
    for (int row = 0; row < 2; ++row)
#pragma unroll
      for (int step = 1; step <= 2; step *= 2) {
        const float other = __shfl_xor_sync(~0u, best[row], step);
        const int32_t token = kArgmax ? __shfl_xor_sync(~0u, winner[row], step) : 0;
        take(row, other, token);
      }
  }
};

// Factors of the columns: null where the products are what they are.
template <bool kScaled>
struct ColumnScale {
  const float* factors;  // of the tile's first column

  __device__ __forceinline__ float2 at(int column) const {
    return kScaled ? *reinterpret_cast<const float2*>(factors + column) : make_float2(1.f, 1.f);
  }
  __device__ __forceinline__ float apply(float value, const float2& scale, int column) const {
    return kScaled ? value * (column % 2 ? scale.y : scale.x) : value;
  }
};

// Winners of a full tile by plain comparison, which passes over NaN: false, with nothing taken, where there may be one.
template <int kCount, bool kScaled>
__device__ __forceinline__ bool take_winners(const float (&c)[kCount], RowState<true>& row, int32_t first_token,
                                             int column0, const ColumnScale<kScaled>& scale) {
  float best[2] = {row.best[0], row.best[1]}, probe = 0.f;  // v * 0 is NaN for NaN and for infinity
  int32_t column[2] = {-1, -1};
#pragma unroll
  for (int j = 0; j < kCount / 4; ++j) {
    const float2 factor = scale.at(column0 + j * 8);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float value = scale.apply(c[4 * j + e], factor, e);
      probe = fmaf(value, 0.f, probe);
      if (value > best[e / 2]) best[e / 2] = value, column[e / 2] = j * 8 + e % 2;
    }
  }
  const bool exact = __any_sync(~0u, probe != probe || !(best[0] > -INFINITY) || !(best[1] > -INFINITY));
  if (__shfl_sync(~0u, exact, 0)) return false;  // shuffled for the compiler: it keeps wgmma's control flow uniform
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    row.best[r] = best[r];
    if (column[r] >= 0) row.winner[r] = first_token + column0 + column[r];
  }
  return true;
}

// Maxima of a full tile by the bits of its products, three at a time, which is four times as fast: as integers they are
// ordered as floats are, with NaN above all of them, as long as the maximum is not negative. False, with nothing taken,
// where one is.
template <int kCount, bool kScaled>
__device__ __forceinline__ bool take_positive_maxima(const float (&c)[kCount], RowState<false>& row, int column0,
                                                     const ColumnScale<kScaled>& scale) {
  int32_t best[2] = {INT32_MIN, INT32_MIN};
#pragma unroll
  for (int j = 0; j < kCount / 4; ++j) {
    const float2 factor = scale.at(column0 + j * 8);
#pragma unroll
    for (int r = 0; r < 2; ++r)
      best[r] = __vimax3_s32(best[r], __float_as_int(scale.apply(c[4 * j + 2 * r], factor, 0)),
                             __float_as_int(scale.apply(c[4 * j + 2 * r + 1], factor, 1)));
  }
  const bool negative = __any_sync(~0u, (best[0] | best[1]) < 0);
  if (__shfl_sync(~0u, negative, 0)) return false;  // shuffled for the compiler, as above
#pragma unroll
  for (int r = 0; r < 2; ++r) row.best[r] = max_nan(row.best[r], __int_as_float(best[r]));
  return true;
}

// The products of one tile of rows and kCount * 2 columns, of which this thread's first is column0. `bits` are the kept
// columns from the tile's first one on, looked at unless the tile is full.
template <int kCount, bool kArgmax, bool kScaled>
__device__ __forceinline__ void take_products(const float (&c)[kCount], RowState<kArgmax>& row, int32_t first_token,
                                              int column0, bool full, const uint32_t* bits,
                                              const ColumnScale<kScaled>& scale) {
  if constexpr (kArgmax) {
    if (full && take_winners(c, row, first_token, column0, scale)) return;
  } else if (full) {
    if (take_positive_maxima(c, row, column0, scale)) return;
  }
#pragma unroll
  for (int j = 0; j < kCount / 4; ++j) {
    const int column = column0 + j * 8;
    const float2 factor = scale.at(column);
    const uint32_t kept = full ? ~0u : bits[column / 32] >> column % 32;
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (kept >> e % 2 & 1) row.take(e / 2, scale.apply(c[4 * j + e], factor, e), first_token + column + e % 2);
  }
}

// Maxima are added in double, where 24-bit terms add without rounding unless they lie 2^20 apart: so the order, which
// holes in a query mask change, does not show.
__device__ __forceinline__ double sum_lanes(double sum) {
#pragma unroll
  for (int step = 1; step <= 16; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
  return sum;
}

}  // namespace cuda
}  // namespace maxsim
