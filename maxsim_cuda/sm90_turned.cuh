// Stored documents under one short query of 16 bits: turned round, so that document tokens are the rows of products.
// Those come from registers, and bytes become the queries' type on the way there: nothing is written back to shared
// memory. Products are a warp's, with all query tokens in registers too: Hopper's own are as fast for so few columns,
// and have the same sums to the bit.
#pragma once

#include "ptx/mma.cuh"
#include "ptx/shared.cuh"
#include "row_max.cuh"
#include "sm90_widen.cuh"

namespace maxsim {
namespace cuda {

// What a math thread keeps. A warp has half of the rows of every other tile: a product waits for the one before it, and
// two blocks of sixteen rows wait together. Of a block a thread has row lane / 4 and the row eight below, and of the
// query tokens, which are columns, 8j + 2 (lane % 4) and the next one.
template <class C, class T, bool kArgmax, Columns kColumns>
struct TurnedRows {
  static constexpr int kEights = kBlockTokens / 8, kMine = kEights * 2, kSteps = C::kRowBytes / 16;
  static constexpr int kRowBlocks = 2;
  static_assert(C::kTiles == 1 && C::N == 2 * kRowBlocks * 16, "two warps to a tile");
  static_assert(C::kStages % 2 == 0, "and the others to the next, all round the ring");
  static constexpr bool kAffine = kColumns == Columns::affine, kSigned = !kAffine;

  uint32_t queries[kSteps][kEights][2];
  float products[kRowBlocks][kEights][4];
  float best[kMine];
  int32_t winner[kMine];
  int32_t first;      // the lowest document token that was met
  float sums[kMine];  // of the features of query tokens, where document tokens have minima

  // Whether this warp has rows of the tile in `stage`: others only pass by.
  __device__ __forceinline__ static bool has(int stage, int warp) { return (stage ^ warp / 2) % 2 == 0; }
  __device__ __forceinline__ static int first_row(int warp) { return warp % 2 * (C::N / 2); }

  __device__ __forceinline__ void reset() {
    first = INT32_MAX;
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      best[i] = -INFINITY;
      if (kArgmax) winner[i] = INT32_MAX;
    }
  }

  // Of every sixteen features a lane has four neighbours, because that is how `multiply` finds those of documents; a
  // product takes them for two pairs that are eight apart. In which order it adds its features changes no sum.
  __device__ __forceinline__ void take_queries(uint32_t from, float* shared_sums, int warp, int lane) {
    asm volatile("" : "+r"(lane));  // addresses of rare loads would be kept
    const auto chunk = [&](int row, int i) { return from + swizzled<C::kQueryAtomBytes>(C::kOperandRows, row, i); };
#pragma unroll
    for (int k = 0; k < kSteps; ++k)
#pragma unroll
      for (int j = 0; j < kEights; ++j) {
        const uint2 four = ptx::load_shared_8(chunk(j * 8 + lane / 4, k * 2 + lane % 4 / 2) + lane % 2 * 8);
        queries[k][j][0] = four.x;
        queries[k][j][1] = four.y;
      }
    if constexpr (kAffine) {
      const int row = warp * 8 + lane / 4;
      float sum = 0.f;
#pragma unroll
      for (int i = 0; i < C::kQueryAtoms * 2; ++i) {
        const uint4 eight = ptx::load_shared_16(chunk(row, i * 4 + lane % 4));
        const T* value = reinterpret_cast<const T*>(&eight);
#pragma unroll
        for (int k = 0; k < 8; ++k) sum += static_cast<float>(value[k]);
      }
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      if (lane % 4 == 0) shared_sums[row] = sum;
      asm volatile("bar.sync 2, 128;" ::: "memory");
#pragma unroll
      for (int i = 0; i < kMine; ++i) sums[i] = shared_sums[i / 2 * 8 + lane % 4 * 2 + i % 2];
    }
  }

  // A warp's rows of a tile by all query tokens.
  __device__ __forceinline__ void multiply(const char* stage, int warp, int lane) {
    const char* from = stage + swizzled<C::kAtomBytes>(C::N, first_row(warp) + lane % 16, lane / 16);
#pragma unroll
    for (int b = 0; b < kRowBlocks; ++b)
#pragma unroll
      for (int j = 0; j < kEights; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) products[b][j][i] = 0.f;
#pragma unroll
    for (int k = 0; k < kSteps; k += 2) {
      uint32_t raw[kRowBlocks][4];
#pragma unroll
      for (int b = 0; b < kRowBlocks; ++b)  // a swizzled row's chunks are an exclusive or apart
        ptx::ldmatrix(
            raw[b], reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(from) ^ k * 16) + b * 16 * C::kAtomBytes);
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int b = 0; b < kRowBlocks; ++b) {
          uint32_t rows[4];
#pragma unroll
          for (int i = 0; i < 4; ++i)  // rows and those eight below alternate
            rows[i] = widen_integers<kSigned>(raw[b][half * 2 + i % 2], i / 2, T());
#pragma unroll
          for (int j = 0; j < kEights; ++j) ptx::mma<T>(products[b][j], rows, queries[k + half][j]);
        }
    }
  }

  template <class Tokens>
  __device__ __forceinline__ void take(int warp, int lane, const Tokens& tokens, bool full, const uint32_t* bits,
                                       const float* scales, const float* minima) {
#pragma unroll
    for (int r = 0; r < 2 * kRowBlocks; ++r) {
      const int column = first_row(warp) + r * 8 + lane / 4;
      const bool kept = full || bits[column / 32] >> column % 32 & 1;
      const float scale = has_factors(kColumns) ? scales[column] : 1.f;
      const float minimum = kAffine ? fmaf(scale, kUnsignedCentre, minima[column]) : 0.f;
      const int32_t token = kArgmax ? tokens.at(column) : 0;
      if (kArgmax) first = kept ? min(first, token) : first;
#pragma unroll
      for (int i = 0; i < kMine; ++i) {
        const float product = products[r / 2][i / 2][r % 2 * 2 + i % 2];
        const float value = kAffine                      ? fmaf(product, scale, sums[i] * minimum)
                            : kColumns == Columns::given ? product * scale
                                                         : product;
        take(i, kept ? value : -INFINITY, token);
      }
    }
  }

  // Over the eight lanes that share columns; a lane of the first four hands over what it has.
  __device__ __forceinline__ void hand_over(float* maxima, int32_t* winners, int lane) {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      RowState<kArgmax> state;
      state.best[0] = best[i];
      if (kArgmax) state.winner[0] = winner[i] == INT32_MAX ? first : winner[i];
#pragma unroll
      for (int step = 4; step <= 16; step *= 2) {
        const float other = __shfl_xor_sync(~0u, state.best[0], step);
        state.take(0, other, kArgmax ? __shfl_xor_sync(~0u, state.winner[0], step) : 0);
      }
      if (lane < 4) {
        maxima[i / 2 * 8 + lane * 2 + i % 2] = state.best[0];
        if (kArgmax) winners[i / 2 * 8 + lane * 2 + i % 2] = state.winner[0];
      }
    }
    reset();
  }

 private:
  // A thread meets its tokens in ascending order, except for those that it has met before: so an equal one changes
  // nothing. Infinities below zero win nothing here either, for which `first` makes up.
  __device__ __forceinline__ void take(int i, float value, int32_t token) {
    if constexpr (kArgmax) {
      const bool better = !(value <= best[i]) && best[i] == best[i];  // NaN is, the first one for good
      best[i] = better ? value : best[i];
      winner[i] = better ? token : winner[i];
    } else {
      best[i] = max_nan(best[i], value);
    }
  }
};

}  // namespace cuda
}  // namespace maxsim
