// Tile shapes of the Hopper forward, a row each with its reason.
#pragma once

#include <cuda.h>

#include "forward_args.cuh"

namespace maxsim {
namespace cuda {

constexpr int kAtom = 64;  // features of a 128-byte swizzled row

// What a block may take of the 227 KB, less the barriers and descriptions that Sm90Shared holds.
constexpr int kSharedLimit = 221 * 1024;

// kGroups math warpgroups hold kTiles x 64 query rows each and meet N document tokens a step; kAtoms x 64 features.
template <int kGroups_, int kTiles_, int N_, int kAtoms_, int kStageBytes, int kPerSm_ = 1>
struct Sm90Config {
  static constexpr int kGroups = kGroups_, kTiles = kTiles_, N = N_, kAtoms = kAtoms_, kPerSm = kPerSm_;
  static constexpr int kRows = kGroups * kTiles * 64;
  static constexpr int kBlocks = kRows / kBlockTokens;
  static constexpr int kThreads = (kGroups + 1) * 128;
  static constexpr int kTileBytes = N * kAtoms * 128;
  static constexpr int kQueryBytes = kRows * kAtoms * 128;
  static constexpr int kStages = kStageBytes / kTileBytes;
  static constexpr int kSharedBytes = 1024 + kQueryBytes + kStages * kTileBytes;  // 1024 to align the swizzle atoms
  static_assert(N % 8 == 0 && N <= 160, "five words of kept bits, and a legal wgmma width");
  static_assert(kStages >= 2, "a tile must arrive while another is read");
  static_assert(kSharedBytes * kPerSm <= kSharedLimit, "the blocks of an SM share its memory");
};

// One short query: half of M idles and the copy engine is the limit. Two blocks an SM, so that one block's waits are
// the other's work, and no more in flight than the memory likes: over 10 000 documents three 16 KB tiles a ring beat
// four and five by 3 %.
template <int kAtoms>
using Sm90Lean = Sm90Config<1, 1, 128 / kAtoms, kAtoms, 3 * 16384, 2>;
// Up to 128 query tokens for each document token read: memory-bound still, so shaped alike, with two row tiles. N = 64
// because two blocks an SM leave 128 registers a thread, of which 64 hold products.
template <int kAtoms>
using Sm90Middle = Sm90Config<1, 2, 64, kAtoms, 4 * 8192 * kAtoms, 2>;
// 256 query rows for each document tile: at 128 the tiles would come from L2 faster than it gives them. Two row tiles a
// warpgroup keep one product in flight while the other's max is taken. N follows the document's length (least waste).
template <int kAtoms, int N>
using Sm90Wide = Sm90Config<2, 2, N, kAtoms, kSharedLimit - 1024 - 256 * kAtoms * 128>;

struct Sm90Args : ForwardArgs {
  bool tma;  // both sides can be described by a tensor map
};

}  // namespace cuda
}  // namespace maxsim
