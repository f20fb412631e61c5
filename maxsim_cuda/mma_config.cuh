// Tile shapes of the forward on mma.sync, a row each with its reason.
#pragma once

#include "forward_args.cuh"

namespace maxsim {
namespace cuda {

constexpr int kChunk = 64;  // features a step: a 128-byte row of 16-bit operands

// Four warps, kWarpsM x kWarpsN of them, each holding kTilesM x 16 query rows against kTilesN x 8 document tokens.
// kSplit: operands are pairs of fp16 whose sum is the input. Queries lie so in shared memory, 256 bytes a row;
// documents lie there as they came, in up to 256 bytes, and are split in registers, so each token belongs to one warp.
// kStream: queries come through the ring beside each tile, for d above two chunks and for pair lists, where every unit
// brings another query; otherwise they stay in shared memory.
template <bool kSplit_, bool kStream_, int kWarpsM_, int kTilesM_, int kWarpsN_, int kTilesN_>
struct MmaConfig {
  static constexpr bool kSplit = kSplit_, kStream = kStream_;
  static constexpr int kWarpsM = kWarpsM_, kTilesM = kTilesM_, kWarpsN = kWarpsN_, kTilesN = kTilesN_;
  // Blocks whose registers an SM holds: as many warps as the products of each leave room for.
  static constexpr int kProducts = kTilesM * kTilesN * (kSplit ? 2 : 1);
  static constexpr int kPerSm = kProducts <= 8 ? 4 : kProducts <= 16 ? 3 : 2;
  static constexpr int kStages = 3;  // two where that is all that fits
  static constexpr int kThreads = 128;
  static constexpr int kRows = kWarpsM * kTilesM * 16, kBlocks = kRows / kBlockTokens;
  static constexpr int N = kWarpsN * kTilesN * 8;
  static constexpr int kPitch = kSplit ? 256 : 128;
  static constexpr int kResidentChunks = kStream ? 0 : 2;
  static constexpr int kTileBytes = N * kPitch, kRowBytes = kRows * kPitch;
  static constexpr int kStageBytes = kTileBytes + (kStream ? kRowBytes : 0);
  static constexpr int shared_bytes(int stages) { return kResidentChunks * kRowBytes + stages * kStageBytes; }
  static_assert(kWarpsM * kWarpsN == 4 && kBlocks <= 4, "a warp sums a block");
  static_assert(kTilesN % 2 == 0, "ldmatrix fetches two tiles of 8 tokens");
  static_assert(!kSplit || kWarpsM == 1, "a token is split once");
  static_assert(N <= 160, "five words of kept bits");
};

// One short query, which comes through the ring too.
using MmaLeanStream = MmaConfig<false, true, 1, 2, 4, 4>;
// Products decide; 96 tokens, so that three stages fit 99 KB.
using MmaWideStream = MmaConfig<false, true, 2, 4, 2, 6>;
// Split operands are twice the bytes and three products, and each thread keeps its products twice, of the chunk and of
// all chunks. More than 64 rows would share the cost of splitting a token, but two blocks an SM are then all there is
// room for, and no faster.
template <bool kStream, int kTilesM>
using MmaSplit = MmaConfig<true, kStream, 1, kTilesM, 4, 2>;

}  // namespace cuda
}  // namespace maxsim
