// Tile shapes of the Hopper forward for rows of any length, with their reasons; and what its warps share.
#pragma once

#include "sm90_shared.cuh"

namespace maxsim {
namespace cuda {

// What more warps do with a stage before it is multiplied. Whole rows stay as they are: these warps take the sums of
// their squares, if they are to be normalised. Split ones become pairs of fp16.
enum class Prepared { no, whole, split };

// Two math warpgroups hold 64 query rows each against two halves of N document tokens: as many products as there are
// registers for. They are added up over the 128-byte atoms of both sides, which come through the ring together. At N =
// 152 an atom takes the tensor cores 1216 clocks and brings 55 KB, 46 bytes a clock; 256 query rows to a tile of half
// the width would be the same, but read in four operands instead of two, and leave short documents no half to save.
// Loading documents once for two blocks of a cluster halves their bytes and was slower by a sixth: the blocks wait for
// each other. kLoads: those who prepare a stage copy it too, because no tensor map describes it.
template <int N_, Prepared kPrepared_ = Prepared::no, int kGroups_ = 2, int kMoreWarps_ = 0, int kTeams_ = 1,
          int kBatch_ = 1, int kStages_ = 4, bool kLoads_ = false>
struct Sm90DeepConfig {
  static constexpr int N = N_, kGroups = kGroups_, kTiles = 1, kQueryBuffers = 2, kMoreWarps = kMoreWarps_;
  static constexpr Prepared kPrepared = kPrepared_;
  static constexpr bool kPrepares = kMoreWarps > 0, kSplit = kPrepared == Prepared::split;
  static constexpr bool kWidens = false, kTurned = false;  // as kernels of shorter rows may
  static constexpr int kHalves = kSplit ? 1 : 2, kAtoms = kSplit ? 2 : 1;
  static constexpr int kTeams = kTeams_, kBatch = kBatch_;          // of those who prepare rows
  static constexpr bool kCrowded = kGroups == 2 && kMoreWarps > 4;  // few registers are left for each thread
  static constexpr bool kLoads = kLoads_;
  // Query rows. Where they are one block, what follows them in a stage takes the place of the rest of an operand, whose
  // products are nobody's.
  static constexpr int kRows = kPrepares && kGroups == 1 ? kBlockTokens : kGroups * 64, kBlocks = kRows / kBlockTokens;
  static constexpr int kOperandRows = kRows < 64 ? kRows : 64;
  static constexpr int kColumns = kHalves * N;
  static constexpr int kThreads = (kGroups + 1) * 128 + kMoreWarps * 32;
  static constexpr int kMathRegisters = kCrowded ? 152 : !kSplit ? 208 : kGroups == 2 ? 168 : 152;
  static constexpr int kOtherRegisters = kCrowded ? 56 : kMoreWarps == 12 ? (kSplit ? 80 : 64) : 88;
  static constexpr int kRowBytes = kAtoms * 128;
  static constexpr int kQueryBytes = kRows * kRowBytes, kHalfBytes = N * kRowBytes;
  static constexpr int kStageBytes = kQueryBytes + kHalves * kHalfBytes;
  static constexpr int kStages = kStages_;
  // Behind the stages: a chunk of each row, where rows come shifted.
  static constexpr int kStagedBytes = kLoads ? (kRows + kColumns) * 16 : 0, kStaged = kStages * kStageBytes;
  static constexpr int kSharedBytes = kStaged + kStages * kStagedBytes;
  static_assert(N % 8 == 0 && N <= 160, "five words of kept bits, and a legal wgmma width");
  static_assert((kPrepared != Prepared::no) == kPrepares);
  static_assert(kGroups * 128 * kMathRegisters + (kThreads - kGroups * 128) * kOtherRegisters <=
                65536 / kThreads / 8 * 8 * kThreads);
};

// Features of a stage: an atom of 16 bits each, or two of 32.
constexpr int kStageFeatures = 64;

// Rows of 16 bits that are normalised, or begin anywhere. Beside eight more warps there are registers for 104 columns.
// To put rows where they belong takes more warps than their squares do.
template <bool kLoads>
using Sm90DeepWholeLean = Sm90DeepConfig<104, Prepared::whole, 1, kLoads ? 12 : 8, kLoads ? 3 : 2, 2, 6, kLoads>;
template <bool kLoads>
using Sm90DeepWholeWide = Sm90DeepConfig<104, Prepared::whole, 2, 8, 2, 2, 4, kLoads>;

// Rows of fp32, or of different types: a stage's features become an atom of high parts and one of low ones
// (sm90_split.cuh). Each thread keeps its products twice, of the stage and of all so far, because each row of a stage
// has a unit of its own; 104 columns are what 152 and 168 registers hold. Query rows are split with every tile that
// they meet: one block of them has a warpgroup to itself, room for six stages, and three teams of four warps to split
// them, which is faster than eight or twelve warps together; four teams of three are no faster. Where they copy rows
// too, two teams take turns under many queries as well.
template <bool kLoads>
using Sm90DeepSplitLean = Sm90DeepConfig<104, Prepared::split, 1, 12, 3, 1, 6, kLoads>;
template <bool kLoads>
using Sm90DeepSplitWide =
    Sm90DeepConfig<104, Prepared::split, 2, kLoads ? 8 : 4, kLoads ? 2 : 1, kLoads ? 1 : 2, 3, kLoads>;

struct Sm90DeepArgs : ForwardArgs {
  int32_t steps;                         // of kStageFeatures
  const char *query_end, *document_end;  // behind the last of all rows
};

// What is prepared of a stage beside its tile: so many query rows, whose factors go to a buffer.
struct PreparedQueries {
  int rows, buffer;
};

// No more than the kernel and its finisher need: four stages leave 10 KB. What a tile's last stage says: `stages` about
// its first half and its document, `second` about the other half.
template <int N, Prepared kPrepared, int kGroups, int kMoreWarps, int kTeams, int kBatch, int kStages, bool kLoads>
struct alignas(1024) Sm90Shared<Sm90DeepConfig<N, kPrepared, kGroups, kMoreWarps, kTeams, kBatch, kStages, kLoads>> {
  using C = Sm90DeepConfig<N, kPrepared, kGroups, kMoreWarps, kTeams, kBatch, kStages, kLoads>;
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
  // Of rows that are normalised, those of queries and then of tokens, the sums of squares so far and, behind the last
  // features, the inverse norms of tokens; those of query rows are `row_scale`. Of split rows what each was divided by.
  static constexpr int kPreparedStages = C::kPrepares ? C::kStages : 1, kSplitStages = C::kSplit ? C::kStages : 1;
  PreparedQueries queries[kPreparedStages];
  TokenRows sources[C::kLoads ? C::kStages : 1][C::kHalves];  // of tokens that who prepares them copies
  alignas(8) float squares[kPreparedStages][C::kRows + C::kColumns];
  alignas(8) float token_unit[kSplitStages][C::N];
  float row_unit[kSplitStages][C::kRows];

  __device__ __forceinline__ void init() {
    for (int i = 0; i < C::kStages; ++i) {
      ptx::mbarrier_init(&full[i], C::kLoads ? 32 : 1);  // who wrote what is read behind it
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
