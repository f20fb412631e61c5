// What the warps of the Hopper forward share: barriers, descriptions, and rows on their way to scores.
#pragma once

#include "ptx/mbarrier.cuh"
#include "ptx/shared.cuh"
#include "sm90_config.cuh"
#include "units.cuh"

namespace maxsim {
namespace cuda {

// What a kernel has in place of what only others keep.
struct Nothing {};

// The roles of the warps of the warpgroup behind the math warpgroups; those that split operands may follow. Loaders
// take no part where tensor maps do, and then compute the factors of normalisation.
constexpr int kProducerWarp = 0, kFinisherWarp = 1, kLoaderWarps = 2;
constexpr int kScaleThreads = kLoaderWarps * 32, kLoaderThreads = 32 + kScaleThreads;

// Those that place loose rows.
template <class C>
constexpr int kPlacers = kLoaderWarps + C::kMoreWarps;

// A document that has met resident queries.
struct Finished {
  int64_t target;
  int32_t flags;  // StageInfo's kEnd, kInvalid, kAnyToken and kRelease
  int32_t buffer;
};

// A tile of which not every column may count, as it is described ahead of the producer.
struct MarkedTile {
  int64_t target, group;
  int32_t flags, begin, part;
  uint32_t kept[5], own[4];  // columns, as StageInfo and Sm90Shared have them
};

// Tokens of a tile: the first one's first element, and how many.
struct TokenRows {
  int64_t begin;
  int32_t rows;
};

// Whether those who split rows of a side load them too. Stored ones are left to the loader warps.
template <class C>
__device__ __forceinline__ bool splitters_load(const Segments& side) {
  return C::kLoads && !is_stored(side.dtype);
}

// Chunks of a row that is to be split.
template <class C>
__device__ __forceinline__ int split_chunks(const Segments& side) {
  return (side.dtype == DType::f32 ? C::kAtoms : C::kAtoms / 2) * 8;
}

template <class C>
struct Sm90Shared {
  static constexpr int kFinished = 2;  // so that math goes on while the finisher writes
  uint64_t full[C::kStages], empty[C::kStages], scaled[C::kStages];
  uint64_t queries_full[C::kQueryBuffers], queries_empty[C::kQueryBuffers];
  uint64_t finished_full[kFinished], finished_empty[kFinished];
  uint64_t pieces_full[kFinished];  // of the other blocks that share documents with this one
  static constexpr int kPages = kOnlyMarked<C> ? 4 : 1;
  uint64_t pages_full[kPages], pages_empty[kPages];
  uint32_t pages[kPages][32];
  StageInfo stages[C::kStages];
  TokenRows sources[C::kLoads ? C::kStages : 1];  // of tiles that splitters load
  // Of loose rows, tiles as they came: their places are free before those of placed ones.
  static constexpr int kCame = C::kLoose ? C::kStages : 1;
  uint64_t came_empty[kCame];
  StageInfo came[kCame];
  uint64_t queries_named[C::kQueryBuffers];  // the warps that copy them know which
  BlockInfo blocks[C::kQueryBuffers][C::kBlocks];
  Finished finished[kFinished];
  Unit ahead[32];
  float token_scale[C::kStages][C::N], token_minimum[C::kSplit || C::kWidens || C::kTurned ? C::kStages : 1][C::N];
  float row_scale[C::kQueryBuffers][C::kRows];
  alignas(16) float maxima[kFinished][C::kMaxima];  // [block][token]
  int32_t winners[kFinished][C::kMaxima];
  static constexpr int kMarkedTiles = kOnlyMarked<C> ? 4 : 1;
  uint64_t marked_full[kMarkedTiles], marked_empty[kMarkedTiles];
  MarkedTile marked[kMarkedTiles];
  // Columns that count, of the lanes of each number modulo four.
  uint32_t own[kOnlyMarked<C> ? C::kStages : 1][4];
  // And those in front of where a tile's first document begins and the next ones end, and of all that counts.
  static constexpr int kEnds = 8;
  uint4 bounds[kJoinsDocuments<C> ? C::kStages : 1][kEnds + 2];
  int first_group, last_group;  // of queries, that this thread block meets

  // `copies`: the producer's lanes copy parts of a tile themselves. `stored`: and factors of query rows. `scalers`: who
  // else has to do with a tile before it can be multiplied. `readers`: who lets go of one.
  __device__ __forceinline__ void init(bool tma, bool stored, bool copies, int scalers, int readers, int pieces) {
    // Where all lanes of a warp wrote or read, all of them arrive.
    const int loaders = tma ? 1 : 1 + kLoaderWarps;
    for (int i = 0; i < C::kStages; ++i) {
      ptx::mbarrier_init(&full[i], tma && !C::kLoose ? 1 + (copies ? 32 : 0) : loaders * 32);
      ptx::mbarrier_init(&empty[i], readers);
      ptx::mbarrier_init(&scaled[i], scalers);
    }
    for (int i = 0; i < C::kQueryBuffers; ++i) {
      ptx::mbarrier_init(&queries_full[i], C::kLoose ? kPlacers<C> * 32 : (loaders + (stored || C::kSplit)) * 32);
      if (C::kLoose) ptx::mbarrier_init(&queries_named[i], 32);
      ptx::mbarrier_init(&queries_empty[i], (C::kGroups * 4 + 1) * 32);  // and the finisher
    }
    for (int i = 0; C::kLoose && i < kCame; ++i) ptx::mbarrier_init(&came_empty[i], kPlacers<C> * 32);
    for (int i = 0; kOnlyMarked<C> && i < kPages; ++i) {
      ptx::mbarrier_init(&pages_full[i], 32);
      ptx::mbarrier_init(&pages_empty[i], 32);
      ptx::mbarrier_init(&marked_full[i], 32);
      ptx::mbarrier_init(&marked_empty[i], 32);
    }
    for (int i = 0; i < kFinished; ++i) {
      ptx::mbarrier_init(&finished_full[i], C::kGroups * 128);
      ptx::mbarrier_init(&finished_empty[i], 32);
      ptx::mbarrier_init(&pieces_full[i], max(1, pieces - 1));
    }
    ptx::mbarrier_init_fence();
  }
};

// A place in a ring of stages or buffers, and the parity of its barriers.
template <int kCount>
struct Ring {
  int at = 0, phase = 0;
  __device__ __forceinline__ void advance() {
    if (++at == kCount) at = 0, phase ^= 1;
  }
};

// Where token t of block b sits. With two row tiles a warp owns a block, 16 tokens in each tile; with one, two warps
// do.
template <class C>
__device__ __forceinline__ int block_row(int block, int token) {
  if (C::kTiles == 1 || C::kTurned) return block * kBlockTokens + token;
  return (block / 4) * 128 + (token / 16) * 64 + (block % 4) * 16 + token % 16;
}

// The document tokens of a tile's columns. Boxes of eight follow one another; from where there are no eight left on,
// each holds the last eight: tokens that were met already change nothing.
struct TileTokens {
  int32_t first, last_eight;
  __device__ __forceinline__ int32_t at(int column) const {
    return first + min(column & ~7, last_eight) + (column & 7);
  }
};

// Byte offset of a 16-byte chunk in an operand of atoms of `rows` x kAtomBytes, swizzled.
template <int kAtomBytes = 128>
__device__ __forceinline__ int swizzled(int rows, int row, int chunk) {
  constexpr int kChunks = kAtomBytes / 16;
  return (chunk / kChunks * rows + row) * kAtomBytes + ((chunk % kChunks) ^ (row * kAtomBytes / 128 % kChunks)) * 16;
}

// Factors of normalisation, taken from the tiles in shared memory by warps that have nothing else to do.
template <class C, class T>
__device__ __forceinline__ float inverse_norm_of(const char* operand, int rows, int row) {
  float square[8] = {};  // sums that do not wait for one another
  // An operand begins at a multiple of 1024: a row's chunks lie where one bit operation finds them.
  const uint32_t first = ptx::shared_address(operand) + row * 128 + row % 8 * 16;
#pragma unroll
  for (int atom = 0; atom < C::kAtoms; ++atom)
#pragma unroll
    for (int chunk = 0; chunk < 8; ++chunk) {
      const uint4 value = ptx::load_shared_16((first + atom * rows * 128) ^ chunk * 16);
      const T* part = reinterpret_cast<const T*>(&value);
#pragma unroll
      for (int i = 0; i < 8; ++i) square[i] = fmaf(static_cast<float>(part[i]), static_cast<float>(part[i]), square[i]);
    }
#pragma unroll
  for (int step = 4; step; step /= 2)
#pragma unroll
    for (int i = 0; i < step; ++i) square[i] += square[i + step];
  return inverse_norm(square[0]);
}

// Fills the stages' and the rows' factors while the math warpgroups are busy with earlier tiles.
template <class C, class T>
__device__ __forceinline__ void scale_stages(Sm90Shared<C>& shared, const char* queries, const char* tiles,
                                             int thread) {
  Ring<C::kStages> ring;
  Ring<C::kQueryBuffers> buffer;
  while (true) {
    ptx::mbarrier_wait(&shared.full[ring.at], ring.phase);
    const int flags = shared.stages[ring.at].flags;
    if (flags & StageInfo::kNewQueries) {
      ptx::mbarrier_wait(&shared.queries_full[buffer.at], buffer.phase);
      const char* rows = queries + buffer.at * C::kQueryBytes;
      for (int row = thread; row < C::kRows; row += kScaleThreads)
        shared.row_scale[buffer.at][row] = inverse_norm_of<C, T>(rows + row / 64 * 64 * C::kRowBytes, 64, row % 64);
      buffer.advance();
    }
    for (int row = thread; row < C::N; row += kScaleThreads)
      shared.token_scale[ring.at][row] = inverse_norm_of<C, T>(tiles + ring.at * C::kTileBytes, C::N, row);
    ptx::mbarrier_arrive(&shared.scaled[ring.at]);
    if (flags & StageInfo::kEnd) return;
    ring.advance();
  }
}

}  // namespace cuda
}  // namespace maxsim
