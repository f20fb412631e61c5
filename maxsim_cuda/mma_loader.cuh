// Loading side of the forward on mma.sync: which tiles a thread block meets, in which order, and how they get into
// shared memory, as operands that ldmatrix reads without bank conflicts.
#pragma once

#include "blocks.cuh"
#include "mma_config.cuh"
#include "ptx/cp_async.cuh"
#include "units.cuh"

namespace maxsim {
namespace cuda {

struct MmaStage : StageInfo {
  int32_t chunk;   // features from chunk * kChunk on
  int64_t begin;   // element offset of the document's first token
  int32_t exotic;  // a row of this stage is beyond what split operands hold
};

template <class C>
struct MmaShared {
  MmaStage stages[C::kStages];
  BlockInfo blocks[C::kStream ? C::kStages : 1][C::kBlocks];
  // Of each row: what a split operand was divided by, and the sum of squares up to this chunk, its inverse root after
  // the last.
  float token_unit[C::kStages][C::N], token_scale[C::kStages][C::N];
  float row_unit[C::kStream ? C::kStages : 2][C::kRows], row_scale[C::kStream ? C::kStages : 1][C::kRows];
  float best[C::kWarpsN][C::kRows];
  int32_t winner[C::kWarpsN][C::kRows];
  int32_t exotic_queries;  // a resident row is beyond what split operands hold
};

// A step: one chunk of features of one tile.
struct MmaStep {
  Unit unit;
  int32_t part = 0, from = 0, chunk = 0;
  bool new_queries = true;
};

template <class C>
__device__ __forceinline__ int swizzled_chunk(int row, int chunk) {
  return row * C::kPitch + (chunk ^ (row % 8)) * 16;
}

template <class C>
struct MmaLoader {
  const ForwardArgs& args;
  MmaShared<C>& shared;
  char* queries;  // resident
  char* ring;
  int thread, warp, lane, chunks;
  bool query_aligned, document_aligned;  // 16 bytes of a row can be fetched at a time
  UnitWalk<C::kBlocks> walk;
  MmaStep step;
  BlockInfo block;  // of the step's queries, one a lane

  __device__ __forceinline__ MmaLoader(const ForwardArgs& args_, MmaShared<C>& shared_, char* memory, int chunks_)
      : args(args_),
        shared(shared_),
        queries(memory),
        ring(memory + C::kResidentChunks * C::kRowBytes),
        thread(threadIdx.x),
        warp(threadIdx.x / 32),
        lane(threadIdx.x % 32),
        chunks(chunks_),
        query_aligned(aligned(args_.problem.queries)),
        document_aligned(aligned(args_.problem.documents)),
        walk(args_, true) {}

  __device__ __forceinline__ static bool aligned(const Segments& side) {
    const int64_t strides = side.token_stride | side.segment_stride.inner | side.segment_stride.outer;
    return side.feature_stride == 1 &&
           ((reinterpret_cast<uintptr_t>(side.data) | strides * element_size(side.dtype)) & 15) == 0;
  }

  __device__ __forceinline__ bool first() {
    if (!walk.next(step.unit)) return false;
    block = describe_block<C::kBlocks>(args, walk.cross(), step.unit.group, 0, lane);
    return true;
  }

  // The step behind this one; false at the end.
  __device__ __forceinline__ bool next() {
    step.new_queries = false;
    if (++step.chunk < chunks) return true;
    step.chunk = 0;
    step.from += C::N;
    if (step.from < step.unit.document.length) return true;
    step.from = 0;
    const int64_t group = step.unit.group;
    const int part = step.part;
    if (++step.part == step.unit.parts) {
      step.part = 0;
      if (!walk.next(step.unit)) return false;
    }
    step.new_queries = step.unit.group != group || step.part != part;
    if (step.new_queries)
      block = describe_block<C::kBlocks>(args, walk.cross(), step.unit.group, step.part, lane);
    return true;
  }

  // kRows rows of one chunk, 16 bytes a thread and step: row 0 begins at element `begin`, and rows that are not inside
  // become zeros.
  template <int kRows, class Inside>
  __device__ __forceinline__ void copy_rows(char* to, const Segments& side, bool aligned, int chunk, int64_t begin,
                                            Inside inside) {
    const int size = C::kSplit ? static_cast<int>(element_size(side.dtype)) : 2;
    const int per_row = kChunk * size / 16, per_copy = 16 / size, rows_a_step = C::kThreads / per_row;
    const int row0 = thread / per_row, copy = thread % per_row, feature = chunk * kChunk + copy * per_copy;
    const int count = static_cast<int>(max(int64_t{0}, min(int64_t{per_copy}, side.dim - feature)));
    to += C::kSplit ? row0 * C::kPitch + copy * 16 : swizzled_chunk<C>(row0, copy);
    const char* from =
        static_cast<const char*>(side.data) + (begin + row0 * side.token_stride + feature * side.feature_stride) * size;
    const int64_t row_step = rows_a_step * side.token_stride * size;
    const int to_step = rows_a_step * C::kPitch;
    static_assert(C::kSplit || kRows % 16 == 0, "steps keep the swizzle");
    if (aligned) {
#pragma unroll
      for (int i = 0; i < kRows * C::kPitch / 16 / C::kThreads; ++i) {
        const int row = row0 + i * rows_a_step;
        if (C::kSplit && row >= kRows) break;
        ptx::copy_16(to + i * to_step, from, inside(row) ? count * size : 0);
        from += row_step;
      }
    } else {
#pragma unroll 1
      for (int row = row0; row < kRows; row += rows_a_step) {
        uint32_t words[4] = {};
#pragma unroll
        for (int k = 0; k < 8; ++k) {
          if (k >= count || !inside(row)) break;
          const char* at = from + k * side.feature_stride * size;
          if (size == 2)
            words[k / 2] |= uint32_t{*reinterpret_cast<const uint16_t*>(at)} << (k % 2 * 16);
          else
            words[k % 4] = *reinterpret_cast<const uint32_t*>(at);
        }
        *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
        from += row_step;
        to += to_step;
      }
    }
  }

  __device__ __forceinline__ void copy_queries(char* to, int chunk) {
    const Segments& side = args.problem.queries;
#pragma unroll 1
    for (int b = 0; b < C::kBlocks; ++b) {
      const int64_t begin = __shfl_sync(~0u, block.begin, b);
      const uint32_t kept = __shfl_sync(~0u, block.kept, b);
      copy_rows<kBlockTokens>(to + b * kBlockTokens * C::kPitch, side, query_aligned, chunk, begin,
                              [&](int row) { return kept >> row & 1; });
    }
  }

  __device__ __forceinline__ void load_resident() {
    if (warp == 0 && lane < C::kBlocks) shared.blocks[0][lane] = block;
    for (int chunk = 0; chunk < chunks; ++chunk) copy_queries(queries + chunk * C::kRowBytes, chunk);
  }

  __device__ __forceinline__ void load(int stage) {
    const Segments& side = args.problem.documents;
    const Unit& unit = step.unit;
    const Tile<C::N> tile(step.from, unit.document.length, side.mask);
    int flags = (step.new_queries ? StageInfo::kNewQueries : 0) | (unit.document.valid ? 0 : StageInfo::kInvalid) |
                (tile.last ? StageInfo::kLast : 0);
    MmaStage& info = shared.stages[stage];
    if (step.chunk + 1 == chunks) {
      bool full = tile.rows == C::N, any = full;
      if (side.mask || !full) {
        const int column = warp * 32 + lane;
        const bool kept = column < tile.rows && token_kept(side, unit.document, tile.first + column);
        static_assert(C::N <= C::kThreads, "a thread looks at a column");
        const uint32_t bits = __ballot_sync(~0u, kept);
        if (lane == 0) info.bits[warp] = bits;
        full = false;
        any = any_column(unit.document, tile);
      }
      flags |= (full ? StageInfo::kFull : 0) | (any ? StageInfo::kAnyToken : 0);
    }
    if (thread == 0) {
      info.flags = flags;
      info.first_token = tile.first;
      info.target = unit.target;
      info.chunk = step.chunk;
      info.begin = unit.document.begin;
      info.exotic = 0;
    }
    char* to = ring + stage * C::kStageBytes;
    copy_rows<C::N>(to, side, document_aligned, step.chunk,
                    unit.document.begin + tile.first * side.token_stride,
                    [&](int row) { return row < tile.rows; });
    if (C::kStream) {
      if (warp == 0 && lane < C::kBlocks) shared.blocks[stage][lane] = block;
      copy_queries(to + C::kTileBytes, step.chunk);
    }
  }

  // Whether the tile has a kept token: thread 0's answer is the one that counts.
  __device__ __forceinline__ bool any_column(const Span& document, const Tile<C::N>& tile) {
    if (warp != 0) return false;
    const Segments& side = args.problem.documents;
    bool any = false;
#pragma unroll
    for (int column = 0; column < C::N; column += 32)
      any |= column + lane < tile.rows && token_kept(side, document, tile.first + column + lane);
    return __any_sync(~0u, any);
  }
};

}  // namespace cuda
}  // namespace maxsim
