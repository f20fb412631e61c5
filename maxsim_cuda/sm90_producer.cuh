// Producer side of the Hopper forward: which tiles a block meets, in which order, and how they get into shared memory.
#pragma once

#include "blocks.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tma.cuh"
#include "ptx/wgmma.cuh"
#include "sm90_config.cuh"
#include "units.cuh"

namespace maxsim {
namespace cuda {

template <class C>
struct Sm90Shared {
  uint64_t full[C::kStages], empty[C::kStages], scaled[C::kStages];
  uint64_t queries_full, queries_empty;
  StageInfo stages[C::kStages];
  BlockInfo blocks[C::kBlocks];
  float token_scale[C::kStages][C::N];
  float row_scale[C::kRows];
  double halves[C::kGroups * 4];  // sums of 16 rows on their way to the neighbouring warp
};

struct Ring {
  int stage = 0, phase = 0;
  template <int kStages>
  __device__ __forceinline__ void advance() {
    if (++stage == kStages) stage = 0, phase ^= 1;
  }
};

// Where token t of block b sits. With two row tiles a warp owns a block, 16 tokens in each tile; with one, two warps
// do.
template <class C>
__device__ __forceinline__ int block_row(int block, int token) {
  if (C::kTiles == 1) return block * kBlockTokens + token;
  return (block / 4) * 128 + (token / 16) * 64 + (block % 4) * 16 + token % 16;
}

// Byte offset of a 16-byte chunk in a [rows][kAtoms x 128 B] operand whose atoms are `rows` x 128 B, swizzled.
__device__ __forceinline__ int swizzled(int rows, int row, int chunk) {
  return (chunk / 8) * rows * 128 + row * 128 + ((chunk % 8) ^ (row % 8)) * 16;
}

// Rows by ordinary loads, for tensors that no tensor map describes. One thread moves a 16-byte chunk at a time.
__device__ __forceinline__ void copy_chunk(char* shared, const Segments& side, int64_t row_element, int chunk,
                                           bool inside) {
  uint4 value = make_uint4(0, 0, 0, 0);
  const uint16_t* source = static_cast<const uint16_t*>(side.data) + row_element + chunk * 8 * side.feature_stride;
  if (inside) {
    uint16_t* part = reinterpret_cast<uint16_t*>(&value);
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (chunk * 8 + i < side.dim) part[i] = source[i * side.feature_stride];
  }
  *reinterpret_cast<uint4*>(shared) = value;
}

// Factors of normalisation, taken from the tiles in shared memory by warps that have nothing else to do.
template <class C, class T>
__device__ __forceinline__ float inverse_norm_of(const char* operand, int rows, int row) {
  float square = 0.f;
#pragma unroll 4
  for (int chunk = 0; chunk < C::kAtoms * 8; ++chunk) {
    const uint4 value = *reinterpret_cast<const uint4*>(operand + swizzled(rows, row, chunk));
    const T* part = reinterpret_cast<const T*>(&value);
#pragma unroll
    for (int i = 0; i < 8; ++i) square = fmaf(static_cast<float>(part[i]), static_cast<float>(part[i]), square);
  }
  const float norm = sqrtf(square);
  return 1.f / (norm < kNormEps ? kNormEps : norm);
}

template <class C, class T, bool kNormalize>
struct Sm90Producer {
  const Sm90Args& args;
  const CUtensorMap& query_map;
  const CUtensorMap& document_map;
  const CUtensorMap& tail_map;  // boxes of 8 rows
  Sm90Shared<C>& shared;
  char* queries;
  char* tiles;
  int warp, lane;  // warp 0 drives the copy engine alone; without tensor maps all four warps load
  Ring ring{0, 1};
  int query_phase = 1;

  __device__ __forceinline__ void run() {
    const bool rows_by_hand = !args.tma || args.problem.documents.mask;
    UnitWalk<C::kBlocks> walk(args, rows_by_hand);
    int64_t resident = -1;
    Unit unit;
    while (walk.next(unit)) {
      for (int part = 0; part < unit.parts; ++part) {
        const int64_t key = unit.group << 32 | part;
        const bool load = key != resident;
        if (load) load_queries(walk.cross(), unit.group, part);
        resident = key;
        stream(unit, load);
      }
    }
    acquire();
    publish(StageInfo::kEnd, 0, 0, 0);
  }

  __device__ __forceinline__ void load_queries(bool cross, int64_t group, int part) {
    const Segments& side = args.problem.queries;
    ptx::mbarrier_wait(&shared.queries_empty, query_phase);
    query_phase ^= 1;
    const BlockInfo info = describe_block<C::kBlocks>(args, cross, group, part, lane);
    if (warp == 0 && lane < C::kBlocks) shared.blocks[lane] = info;
    const unsigned present = __ballot_sync(~0u, lane < C::kBlocks && info.query >= 0 && info.kept);
    __syncwarp();
    if (args.tma && lane == 0)
      ptx::mbarrier_arrive_expect(&shared.queries_full, __popc(present) * kBlockTokens * C::kAtoms * 128);
    __syncwarp();
    if (args.tma) {
      copy_queries_by_map(present, info.row, side.packed() ? 0 : static_cast<int>(info.query));
      return;
    }
    for (int b = 0; b < C::kBlocks; ++b) {
      const int64_t begin = __shfl_sync(~0u, info.begin, b);
      const uint32_t kept = __shfl_sync(~0u, info.kept, b);
      for (int i = warp * 32 + lane; kept && i < kBlockTokens * C::kAtoms * 8; i += 128) {
        const int token = i / (C::kAtoms * 8), chunk = i % (C::kAtoms * 8);
        copy_chunk(query_row(b, token) + swizzled(64, block_row<C>(b, token) % 64, chunk), side,
                   begin + token * side.token_stride, chunk, kept >> token & 1);
      }
    }
    ptx::fence_async_proxy();
    if (kNormalize) {
      sync_loaders();
      for (int row = warp * 32 + lane; row < C::kRows; row += 128)
        shared.row_scale[row] = inverse_norm_of<C, T>(queries + row / 64 * 64 * C::kAtoms * 128, 64, row % 64);
    }
    __syncwarp();
    if (lane == 0) ptx::mbarrier_arrive(&shared.queries_full);
  }

  // The 64-row operand that holds a token of a block.
  __device__ __forceinline__ char* query_row(int block, int token) const {
    return queries + block_row<C>(block, token) / 64 * 64 * C::kAtoms * 128;
  }

  // 16-row boxes, a lane each: the halves of a block lie in different operands when a warpgroup has two. Lane b holds
  // block b's row and query.
  __device__ __forceinline__ void copy_queries_by_map(unsigned present, int row, int query) {
    constexpr int kBoxes = C::kBlocks * C::kAtoms * 2;
#pragma unroll
    for (int first = 0; first < kBoxes; first += 32) {
      const int box = first + lane, half = box % 2, atom = box / 2 % C::kAtoms, block = box / (2 * C::kAtoms);
      const int from = __shfl_sync(~0u, row, block) + half * 16, outer = __shfl_sync(~0u, query, block);
      if (box < kBoxes && (present >> block & 1))
        ptx::tma_load(query_row(block, half * 16) + atom * 64 * 128 + block_row<C>(block, half * 16) % 64 * 128,
                      &query_map, &shared.queries_full, atom * kAtom, from, 0, outer);
    }
  }

  __device__ __forceinline__ void acquire() { ptx::mbarrier_wait(&shared.empty[ring.stage], ring.phase); }

  // The stage's description goes out with the arrival that counts its bytes.
  __device__ __forceinline__ void publish(int flags, int first, int64_t target, int bytes) {
    if (lane == 0) {
      if (warp == 0) {
        StageInfo& info = shared.stages[ring.stage];
        info.flags = flags;
        info.first_token = first;
        info.target = target;
      }
      if (bytes)
        ptx::mbarrier_arrive_expect(&shared.full[ring.stage], bytes);
      else
        ptx::mbarrier_arrive(&shared.full[ring.stage]);
    }
  }

  __device__ __forceinline__ void stream(const Unit& unit, bool new_queries) {
    const Segments& side = args.problem.documents;
    const int length = unit.document.length;
    int flags = (new_queries ? StageInfo::kNewQueries : 0) | (unit.document.valid ? 0 : StageInfo::kInvalid);
    for (int from = 0;; from += C::N) {
      const Tile<C::N> part(from, length, side.mask);
      if (part.last) flags |= StageInfo::kLast | (unit.release ? StageInfo::kRelease : 0);
      acquire();
      if (part.rows == C::N && !side.mask)
        flags |= StageInfo::kFull | StageInfo::kAnyToken;
      else
        flags |= keep_columns(unit.document, part.first, part.rows);
      char* tile = tiles + ring.stage * C::kTileBytes;
      if (args.tma)
        copy_by_map(unit, flags, tile, part.rows, part.first);
      else
        copy_by_hand(unit, flags, tile, part.rows, part.first);
      ring.advance<C::kStages>();
      if (part.last) return;
      flags &= StageInfo::kInvalid;
    }
  }

  // Writes the stage's kept columns; says whether there is one, and whether there are all.
  __device__ __forceinline__ int keep_columns(const Span& document, int first, int rows) {
    const Segments& side = args.problem.documents;
    constexpr int kWords = (C::N + 31) / 32;
    bool kept[kWords];
#pragma unroll
    for (int w = 0; w < kWords; ++w) {  // all bytes of the mask are on their way before the first is looked at
      const int column = w * 32 + lane;
      kept[w] = column < rows && token_kept(side, document, first + column);
    }
    int count = 0;
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      const uint32_t bits = __ballot_sync(~0u, kept[w]);
      if (lane == 0 && warp == 0) shared.stages[ring.stage].bits[w] = bits;
      count += __popc(bits);
    }
    return (count ? StageInfo::kAnyToken : 0) | (count == C::N ? StageInfo::kFull : 0);
  }

  __device__ __forceinline__ void copy_by_map(const Unit& unit, int flags, char* tile, int rows, int first) {
    const int row = static_cast<int>(args.problem.documents.packed() ? unit.document.first_row : 0) + first;
    uint64_t* barrier = &shared.full[ring.stage];
    if (rows == C::N) {
      publish(flags, first, unit.target, C::kTileBytes);
      if (lane == 0)
#pragma unroll
        for (int atom = 0; atom < C::kAtoms; ++atom)
          ptx::tma_load(tile + atom * C::N * 128, &document_map, barrier, atom * kAtom, row, unit.inner, unit.outer);
    } else {
      const int boxes = (max(rows, 0) + 7) / 8;
      publish(flags, first, unit.target, boxes * 8 * C::kAtoms * 128);
      __syncwarp();  // no byte may arrive before its count
      if (lane < boxes)
#pragma unroll
        for (int atom = 0; atom < C::kAtoms; ++atom)
          ptx::tma_load(tile + atom * C::N * 128 + lane * 1024, &tail_map, barrier, atom * kAtom, row + lane * 8,
                        unit.inner, unit.outer);
    }
    __syncwarp();
  }

  __device__ __forceinline__ void copy_by_hand(const Unit& unit, int flags, char* tile, int rows, int first) {
    const Segments& side = args.problem.documents;
    for (int i = warp * 32 + lane; i < C::N * C::kAtoms * 8; i += 128) {
      const int row = i / (C::kAtoms * 8), chunk = i % (C::kAtoms * 8);
      copy_chunk(tile + swizzled(C::N, row, chunk), side, unit.document.begin + (first + row) * side.token_stride,
                 chunk, row < rows);
    }
    ptx::fence_async_proxy();
    if (kNormalize) {
      sync_loaders();  // a row's chunks come from several warps
      for (int row = warp * 32 + lane; row < C::N; row += 128)
        shared.token_scale[ring.stage][row] = inverse_norm_of<C, T>(tile, C::N, row);
    }
    __syncwarp();
    publish(flags, first, unit.target, 0);
    __syncwarp();
  }

  __device__ __forceinline__ void sync_loaders() { asm volatile("bar.sync 8, 128;" ::: "memory"); }
};

}  // namespace cuda
}  // namespace maxsim
