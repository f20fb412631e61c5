// Shapes of the kernels on residual documents, and how a warp shares out a token.
#pragma once

#include <cstdint>

#include "../maxsim_common/problem.h"

namespace maxsim {
namespace cuda {

constexpr int kResidualWarps = 4;
constexpr int kResidualThreads = 32 * kResidualWarps;
// Four lanes share a token: lane t has features 8t to 8t + 7 of every 32, so that one load of 16 bytes a lane covers 64
// bytes of a row.
constexpr int kMaxResidualDim = 128;
constexpr int kChunk8 = 8;
constexpr int kChunks = kMaxResidualDim / 32;  // of eight features a lane
constexpr int kShare = kChunks * kChunk8;
constexpr int kSteps =
    kMaxResidualDim / 16;  // of mma.m16n8k16; the order of features is free, so each lane keeps its own

// Weights of every byte of packed buckets, as often as 128 bytes hold them: lane l reads copy l mod copies, so that 32
// lanes that look up 32 different bytes never meet in a bank.
constexpr int kLookupRow = 128;
constexpr int kLookupBytes = 256 * kLookupRow;

constexpr int kQueryBlockBytes = 32 * kMaxResidualDim * 2;

// Tokens of a stream that a warp takes at least: fewer would not pay for finding them.
constexpr int kLeastPart = 64;
// How many each of `warps` warps takes, a multiple of `grain`.
MAXSIM_INLINE int32_t part_rows(int64_t tokens, int warps, int grain) {
  const auto share = static_cast<int32_t>(quotient(tokens + warps - 1, warps));
  const int32_t rounded = share + grain - 1;
  return (rounded > kLeastPart ? rounded : kLeastPart) / grain * grain;
}

// A warp decompresses 16 kTiles tokens a step, for kBlocks blocks of 32 query rows, which wait in shared memory: in
// registers they would leave none for the rows in flight.
struct ResidualSingle {  // each warp has its own query; the next step's centroids are on their way during this one
  static constexpr int kTiles = 1, kBlocks = 1, kPerSm = 3;
  static constexpr int kQueryBytes = kResidualWarps * kQueryBlockBytes;
};
struct ResidualBatch {  // all warps share their queries, each of whose operands meets 32 tokens
  static constexpr int kTiles = 2, kBlocks = 8, kPerSm = 2;
  static constexpr int kQueryBytes = kBlocks * kQueryBlockBytes;
};

template <class C>
constexpr int residual_shared_bytes() {
  return kLookupBytes + C::kQueryBytes;
}

}  // namespace cuda
}  // namespace maxsim
