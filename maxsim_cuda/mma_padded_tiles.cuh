// What the padded kernel on mma.sync is shaped like and told, what its warps share, and in which order they meet tiles.
#pragma once

#include "mma_operands.cuh"

namespace maxsim {
namespace cuda {

constexpr int64_t kMostChunksAlone = 8;  // blocks of a query that has documents of its own

// Each warp holds 64 query rows, half of the registers that it can have: fewer would read each token from shared memory
// twice as often. Where there are fewer, kColumnWarps of the warps hold the same ones and meet the columns of a tile in
// turn. Columns multiplied together are 32 registers of products where query rows are 128, and 64 in the narrower form.
template <int kColumnWarps_, int kSteps_>
struct MmaPaddedConfig {
  static constexpr int kSteps = kSteps_, kPitch = kSteps * 64, kColumns = 64 / kSteps, kHeld = 2;
  static constexpr int kWarps = 4, kColumnWarps = kColumnWarps_, kRowWarps = kWarps / kColumnWarps;
  static constexpr int kBlocks = kRowWarps * kHeld, kRows = kBlocks * kBlockTokens, kThreads = kWarps * 32;
  static constexpr int kTogether = kColumns * kColumnWarps;  // columns that all warps meet at once
  static constexpr int kPerSm = 2, kMostColumns = 256;
  static constexpr int kAhead = 2, kStages = kAhead + 1;                  // tiles on their way, and at most in the ring
  static constexpr int kCopies = kPitch / 16, kRowsACopy = 32 / kCopies;  // rows that a copy of each lane fills
  static constexpr int kRowsAtOnce = 8 * kRowsACopy;
  static constexpr int kLanes = 32 / kBlocks, kTokens = kBlockTokens / kLanes;  // lanes a block adds up, tokens a lane
  static constexpr int kSlots = 2;                                              // documents that wait to be added up
  static_assert(kMostColumns % kTogether == 0, "tiles of whole rounds");
  static_assert(kRowsACopy % 2 == 0, "copies keep the exchange of halves");
};

// A group of query blocks meets documents one after the other: all of a cross product, else a query's own.
struct MmaPaddedArgs : PaddedSides {
  ForwardArgs forward;
  uint32_t units, share;  // groups x documents, and how many each thread block has, the first ones one more
  uint32_t of_a_group;    // documents
  uint32_t blocks;        // of all queries
  int32_t width;          // tokens of a tile
  int32_t stages;         // tiles of the ring: with one to spare nobody waits for the slowest warp
  bool cross;             // else each group is a query
};

// What is asked of a tile: all its columns as they are, only some, or some after normalisation.
enum class PaddedForm { plain, marked, normed };

template <class C, PaddedForm kForm>
struct MmaPaddedShared {
  // Of a tile of which not all is kept: a bit for each column, and zeros behind the last.
  struct Marks {
    uint32_t bits[C::kMostColumns / 32 + 1];
    bool any, valid;
  };
  struct Block {
    uint32_t kept;
    bool valid;
  };
  uint64_t full[C::kStages], empty[C::kStages], handed_over[C::kSlots], added_up[C::kSlots];
  Marks marks[C::kStages];
  Block blocks[C::kSlots][C::kBlocks];
  float maxima[C::kSlots][C::kColumnWarps][C::kRows];
};

// And inverse norms of a tile's columns, which warps find together, and of each warp's rows.
template <class C>
struct MmaPaddedShared<C, PaddedForm::normed> : MmaPaddedShared<C, PaddedForm::marked> {
  uint64_t scaled[C::kStages];
  float column_scale[C::kStages][C::kMostColumns], row_scale[C::kWarps][C::kHeld * kBlockTokens];
};

// A tile of a document under a group of query blocks, of those that a thread block meets.
template <class C>
struct PaddedPlace {
  uint32_t group, document;
  int left, from;  // documents, this one among them, and the tile's first token
  int stage = 0, parity = 0;

  __device__ __forceinline__ explicit PaddedPlace(const MmaPaddedArgs& args) {
    const uint32_t extra = args.units - args.share * gridDim.x;
    const uint32_t unit = deals(args) ? blockIdx.x : blockIdx.x * args.share + min(blockIdx.x, extra);
    group = unit / args.of_a_group;
    document = unit - group * args.of_a_group;
    left = static_cast<int>(args.share + (blockIdx.x < extra));
    from = 0;
  }
  __device__ __forceinline__ static bool deals(const MmaPaddedArgs& args) { return args.of_a_group == args.units; }
  __device__ __forceinline__ bool last_tile(const MmaPaddedArgs& args) const {
    return from + args.width >= args.tokens;
  }
  // A tile has kColumns rows at least, the first reaching back.
  __device__ __forceinline__ int first_row(const MmaPaddedArgs& args) const {
    return min(from, args.tokens - C::kColumns);
  }
  __device__ __forceinline__ int rows(const MmaPaddedArgs& args) const {
    return min(args.width, args.tokens - first_row(args));
  }
  __device__ __forceinline__ void advance(const MmaPaddedArgs& args) {
    if (++stage == args.stages) stage = 0, parity ^= 1;
    if (!last_tile(args)) {
      from += args.width;
      return;
    }
    from = 0;
    --left;
    if (deals(args)) {
      document += gridDim.x;
    } else if (++document == args.of_a_group) {
      document = 0;
      ++group;
    }
  }
};

}  // namespace cuda
}  // namespace maxsim
