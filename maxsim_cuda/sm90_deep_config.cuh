// Tile shapes of the Hopper forward for rows of any length, with their reasons; and what its warps share.
#pragma once

#include "sm90_shared.cuh"

namespace maxsim {
namespace cuda {

// Two math warpgroups hold 64 query rows each against two halves of N document tokens: as many products as there are
// registers for. They are added up over the 128-byte atoms of both sides, which come through the ring together. At N =
// 152 an atom takes the tensor cores 1216 clocks and brings 55 KB, 46 bytes a clock; 256 query rows to a tile of half
// the width would be the same, but read in four operands instead of two, and leave short documents no half to save.
// Loading documents once for two blocks of a cluster halves their bytes and was slower by a sixth: the blocks wait for
// each other.
template <int N_, int kGroups_ = 2, int kMoreWarps_ = 0, int kTeams_ = 1, int kSplitBatch_ = 1, int kStages_ = 4>
struct Sm90DeepConfig {
  static constexpr int N = N_, kGroups = kGroups_, kTiles = 1, kQueryBuffers = 2, kMoreWarps = kMoreWarps_;
  static constexpr bool kSplit = kMoreWarps > 0, kWidens = false, kTurned = false;  // as kernels of shorter rows may
  static constexpr int kHalves = kSplit ? 1 : 2, kAtoms = kSplit ? 2 : 1;
  static constexpr int kTeams = kTeams_, kSplitBatch = kSplitBatch_;  // of those who split rows
  // Query rows. Where they are one block, what follows them in a stage takes the place of the rest of an operand, whose
  // products are nobody's.
  static constexpr int kRows = kSplit && kGroups == 1 ? kBlockTokens : kGroups * 64, kBlocks = kRows / kBlockTokens;
  static constexpr int kOperandRows = kRows < 64 ? kRows : 64;
  static constexpr int kThreads = (kGroups + 1) * 128 + kMoreWarps * 32;
  static constexpr int kMathRegisters = !kSplit ? 208 : kGroups == 2 ? 168 : 152;
  static constexpr int kOtherRegisters = kSplit && kGroups == 1 ? 80 : 88;
  static constexpr int kRowBytes = kAtoms * 128;
  static constexpr int kQueryBytes = kRows * kRowBytes, kHalfBytes = N * kRowBytes;
  static constexpr int kStageBytes = kQueryBytes + kHalves * kHalfBytes;
  static constexpr int kStages = kStages_;
  static constexpr int kSharedBytes = 1024 + kStages * kStageBytes;  // 1024 to align
  static_assert(N % 8 == 0 && N <= 160, "five words of kept bits, and a legal wgmma width");
  static_assert(kGroups * 128 * kMathRegisters + (kThreads - kGroups * 128) * kOtherRegisters <=
                65536 / kThreads / 8 * 8 * kThreads);
};

// Rows of fp32, kSplitFeatures a stage: two atoms that become one of high parts and one of low ones (sm90_split.cuh).
// Each thread keeps its products twice, of the stage and of all so far, because each row of a stage has a unit of its
// own; 104 columns are what 152 and 168 registers hold. Query rows are split with every tile that they meet: one block
// of them has a warpgroup to itself, room for six stages, and three teams of four warps to split them, which is faster
// than eight or twelve warps together; four teams of three are no faster.
constexpr int kSplitFeatures = 64;
using Sm90DeepSplitLean = Sm90DeepConfig<104, 1, 12, 3, 1, 6>;
using Sm90DeepSplitWide = Sm90DeepConfig<104, 2, 4, 1, 2, 3>;

struct Sm90DeepArgs : ForwardArgs {
  int32_t steps;  // of features, kAtoms 128-byte atoms each
  bool tma;       // both sides can be described by a tensor map
};

// What is split of a stage beside its tile: so many query rows, whose factors go to a buffer.
struct SplitQueries {
  int rows, buffer;
};

// No more than the kernel and its finisher need: four stages leave 10 KB. What a tile's last stage says: `stages` about
// its first half and its document, `second` about the other half.
template <int N, int kGroups, int kMoreWarps, int kTeams, int kSplitBatch, int kStages>
struct Sm90Shared<Sm90DeepConfig<N, kGroups, kMoreWarps, kTeams, kSplitBatch, kStages>> {
  using C = Sm90DeepConfig<N, kGroups, kMoreWarps, kTeams, kSplitBatch, kStages>;
  static constexpr int kFinished = 2;   // so that math goes on while the finisher writes
  static constexpr int kTwo = 1 << 16;  // flag of a stage: its tile has two halves
  uint64_t full[C::kStages], empty[C::kStages], scaled[C::kStages];
  uint64_t queries_full[C::kQueryBuffers], queries_empty[C::kQueryBuffers];
  uint64_t finished_full[kFinished], finished_empty[kFinished], pieces_full[kFinished];
  StageInfo stages[C::kStages], second[C::kHalves == 2 ? C::kStages : 1];
  BlockInfo blocks[C::kQueryBuffers][C::kBlocks];
  Finished finished[kFinished];
  Unit ahead[32];
  float row_scale[C::kQueryBuffers][C::kRows];
  alignas(16) float maxima[kFinished][C::kRows];  // [block][token]
  int32_t winners[kFinished][C::kRows];
  // Of split rows: what each was divided by in a stage, and of normalised ones the sum of squares so far and, behind
  // the last features, the inverse norms of tokens. Those of query rows are `row_scale`.
  static constexpr int kSplitStages = C::kSplit ? C::kStages : 1;
  SplitQueries queries[kSplitStages];
  float row_unit[kSplitStages][C::kRows];
  alignas(8) float token_unit[kSplitStages][C::N], token_norm[kSplitStages][C::N];
  float squares[kSplitStages][C::kRows + C::N];

  // `loaders`: warps that load what no tensor map describes, or none.
  __device__ __forceinline__ void init(int loaders) {
    for (int i = 0; i < C::kStages; ++i) {
      ptx::mbarrier_init(&full[i], 1 + loaders * 32);
      ptx::mbarrier_init(&empty[i], C::kGroups * 128);
      ptx::mbarrier_init(&scaled[i], max(1, C::kMoreWarps / C::kTeams * 32));
    }
    for (int i = 0; i < C::kQueryBuffers; ++i) {
      ptx::mbarrier_init(&queries_full[i], 32);
      ptx::mbarrier_init(&queries_empty[i], 32);  // the finisher
    }
    for (int i = 0; i < kFinished; ++i) {
      ptx::mbarrier_init(&finished_full[i], C::kGroups * 128);
      ptx::mbarrier_init(&finished_empty[i], 32);
    }
    ptx::mbarrier_init_fence();
  }
};

}  // namespace cuda
}  // namespace maxsim
