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
template <int N_>
struct Sm90DeepConfig {
  static constexpr int N = N_, kGroups = 2, kHalves = 2, kTiles = 1, kQueryBuffers = 2, kMoreWarps = 0;
  static constexpr bool kSplit = false, kWidens = false, kTurned = false;  // as kernels of shorter rows may
  static constexpr int kRows = kGroups * 64, kBlocks = kRows / kBlockTokens;
  static constexpr int kThreads = (kGroups + 1) * 128;
  static constexpr int kMathRegisters = 208, kOtherRegisters = 88;
  static constexpr int kQueryBytes = kRows * 128, kHalfBytes = N * 128;  // of an atom
  static constexpr int kStageBytes = kQueryBytes + kHalves * kHalfBytes;
  static constexpr int kStages = 4;                                  // what fits
  static constexpr int kSharedBytes = 1024 + kStages * kStageBytes;  // 1024 to align
  static_assert(N % 8 == 0 && N <= 160, "five words of kept bits, and a legal wgmma width");
};

struct Sm90DeepArgs : ForwardArgs {
  int32_t atoms;  // of a row
};

// No more than the kernel and its finisher need: four stages leave 10 KB. What a tile's last stage says: `stages` about
// its first half and its document, `second` about the other half.
template <int N>
struct Sm90Shared<Sm90DeepConfig<N>> {
  using C = Sm90DeepConfig<N>;
  static constexpr int kFinished = 2;   // so that math goes on while the finisher writes
  static constexpr int kTwo = 1 << 16;  // flag of a stage: its tile has two halves
  uint64_t full[C::kStages], empty[C::kStages];
  uint64_t queries_full[C::kQueryBuffers], queries_empty[C::kQueryBuffers];
  uint64_t finished_full[kFinished], finished_empty[kFinished], pieces_full[kFinished];
  StageInfo stages[C::kStages], second[C::kStages];
  BlockInfo blocks[C::kQueryBuffers][C::kBlocks];
  Finished finished[kFinished];
  Unit ahead[32];
  float row_scale[C::kQueryBuffers][C::kRows];
  alignas(16) float maxima[kFinished][C::kRows];  // [block][token]
  int32_t winners[kFinished][C::kRows];

  __device__ __forceinline__ void init() {
    for (int i = 0; i < C::kStages; ++i) {
      ptx::mbarrier_init(&full[i], 1);
      ptx::mbarrier_init(&empty[i], C::kGroups * 128);
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
