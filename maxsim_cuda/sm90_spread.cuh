// Rows of a few bytes, which come as they lie in memory: one linear copy for a tile, where the copy engine would need a
// request for each row, and cannot keep up with memory. The loader warps spread them to the swizzled rows of an
// operand.
#pragma once

#include "ptx/shared.cuh"
#include "sm90_shared.cuh"

namespace maxsim {
namespace cuda {

// A warp takes 32 rows a step, of up to three 16-byte chunks: a lane's place among them is the same every time.
template <class C, int kWarps>
struct Sm90Spreader {
  static constexpr int kChunks = C::kAtomBytes / 16, kMost = kSpreadBytes / 16;
  static_assert(C::N % (32 * kWarps) == 0, "whole steps for each warp");

  const Sm90Args& args;
  Sm90Shared<C>& shared;
  uint32_t tiles;  // shared address; the staged rows lie behind them
  int warp, lane;

  __device__ __forceinline__ void run() {
    const int chunks = static_cast<int>(args.problem.documents.dim) / 16;
    const uint32_t staged = tiles + C::kStages * C::kTileBytes;
    for (int row = warp * 32 + lane; row < C::kStages * C::N; row += kWarps * 32)  // what no row fills
      for (int chunk = chunks; chunk < kChunks; ++chunk)
        ptx::store_shared_16(tiles + swizzled<C::kAtomBytes>(0, row, chunk), make_uint4(0, 0, 0, 0));
    int row[kMost], chunk[kMost], to[kMost];
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      row[i] = (i * 32 + lane) / chunks;
      chunk[i] = i * 32 + lane - row[i] * chunks;
      to[i] = swizzled<C::kAtomBytes>(0, row[i], chunk[i]);
    }
    Ring<C::kStages> ring;
    int flags = 0;
    while (!(flags & StageInfo::kEnd)) {
      ptx::mbarrier_wait(&shared.full[ring.at], ring.phase);
      flags = shared.stages[ring.at].flags;
      const int last_eight = shared.stages[ring.at].last_eight;
      constexpr int kSteps = C::N / 32 / kWarps;
      uint4 value[kSteps][kMost];
#pragma unroll
      for (int step = 0; step < kSteps; ++step)
#pragma unroll
        for (int i = 0; i < kMost; ++i)
          if (i < chunks) {
            const int column = (step * kWarps + warp) * 32 + row[i];
            const int from = min(column & ~7, last_eight) + (column & 7);
            value[step][i] = ptx::load_shared_16(staged + ring.at * C::kStagedBytes + (from * chunks + chunk[i]) * 16);
          }
#pragma unroll
      for (int step = 0; step < kSteps; ++step)
#pragma unroll
        for (int i = 0; i < kMost; ++i)
          if (i < chunks)
            ptx::store_shared_16(tiles + ring.at * C::kTileBytes + (step * kWarps + warp) * 32 * C::kAtomBytes + to[i],
                                 value[step][i]);
      ptx::fence_async_proxy();
      __syncwarp();
      if (lane == 0) ptx::mbarrier_arrive(&shared.scaled[ring.at]);
      ring.advance();
    }
  }
};

}  // namespace cuda
}  // namespace maxsim
