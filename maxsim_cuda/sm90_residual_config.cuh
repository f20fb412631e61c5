// Shapes of the Hopper kernel on residual documents.
#pragma once

#include "residual_config.cuh"

namespace maxsim {
namespace cuda {

// Blocks of 32 query rows that share what is decompressed: with their maxima, 64 registers, and two blocks' products a
// thread has no register left.
constexpr int kStreamBlocks = 8;
// So that a prologue of as many centroids as PLAID's largest indexes have passes over them once or twice.
constexpr int kProloguePerSm = 4;
// Steps before which a line of tokens is asked of memory: the nearer ones come from L2 then.
constexpr int kStreamAhead = 4;

// kTable: similarities of the centroids stand in for them. A block of threads is one warpgroup, and holds a look-up
// table of 32 KB and 8 KB for each block of queries.
//
//                registers  blocks an SM  why
//   one block      144         3          32 of them are centroids on their way; at 128 they spill
//   its table      136         3          four at 128 registers spill
//   8 blocks       255         2          64 maxima, 32 sums, 32 rows, 32 centroids
template <bool kTable, int kBlocks, int kBits>
struct Sm90Residual {
  static constexpr int kPerSm = kBlocks == 1 ? 3 : 2;
  static constexpr int kBytes = kBlocks * kQueryBlockBytes + 1024;  // operands begin at a multiple of 1024
  // Where a token has few bytes, its centroid many and one block of queries meets it, asking for more lines costs more
  // than it saves.
  static constexpr bool kPrefetch = kTable || kBits > 2 || kBlocks > 1;
};

}  // namespace cuda
}  // namespace maxsim
