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

// A block of threads is one warpgroup, and holds a look-up table of 32 KB and 8 KB for each block of queries.
//
//                registers  blocks an SM  why
//   one block      145         3          32 of them are centroids on their way; at 128 they spill
//   8 blocks       255         2          64 maxima, 32 sums, 32 rows, 32 centroids
template <int kBlocks, int kBits>
struct Sm90Residual {
  static constexpr int kPerSm = kBlocks == 1 ? 3 : 2;
  static constexpr int kBytes = kBlocks * kQueryBlockBytes + 1024;  // operands begin at a multiple of 1024
  // Where a token has few bytes, its centroid many and one block of queries meets it, asking for more lines costs more
  // than it saves.
  static constexpr bool kPrefetch = kBits > 2 || kBlocks > 1;
};

// Of similarities: at 160 to 168 registers 64 are rows of two steps, one of which is multiplied while the next is
// looked up.
struct Sm90ResidualTable {
  static constexpr int kPerSm = 3;
  static constexpr int kBytes = 2 * kLookupBytes;  // the look-up table begins at a multiple of itself
  static constexpr int kAhead = 4;                 // as kStreamAhead
  // Each has a pass over the documents: a pass of eight queries over the centroids themselves takes as long as five.
  static constexpr int kMostQueries = 4;
};

}  // namespace cuda
}  // namespace maxsim
