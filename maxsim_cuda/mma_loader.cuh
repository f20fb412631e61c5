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
  int32_t chunk;  // features from chunk * kChunk on
};

// One chunk of features of one tile: what is loaded next. It lives in shared memory, so that it takes no registers from
// the products.
template <class C>
struct MmaStep {
  Unit unit;
  BlockInfo blocks[C::kBlocks];
  int32_t part, from, chunk;
  bool new_queries, exists;
};

template <class C>
struct MmaShared {
  MmaStage stages[C::kStages];
  MmaStep<C> steps[2];
  Unit ahead[32];
  BlockInfo blocks[C::kStream ? C::kStages : 1][C::kBlocks];
  // Of each row: what a split operand was divided by, and the sum of squares up to this chunk, its inverse root after
  // the last.
  float token_scale[C::kStages][C::N];
  float token_minimum[C::kSplit ? C::kStages : 1][C::N];
  float row_unit[C::kStream ? C::kStages : 2][C::kRows], row_scale[C::kStream ? C::kStages : 1][C::kRows];
  float best[C::kWarpsN][C::kRows];
  int32_t winner[C::kWarpsN][C::kRows];
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
  int query_alignment, document_alignment;  // how many bytes of a row can be fetched at a time: 16, 4 or a feature
  UnitWalk<C::kBlocks> walk;
  int at = 0;  // of the step that is loaded next

  __device__ __forceinline__ MmaLoader(const ForwardArgs& args_, MmaShared<C>& shared_, char* memory, int chunks_)
      : args(args_),
        shared(shared_),
        queries(memory),
        ring(memory + C::kResidentChunks * C::kRowBytes),
        thread(threadIdx.x),
        warp(threadIdx.x / 32),
        lane(threadIdx.x % 32),
        chunks(chunks_),
        query_alignment(alignment(args_.problem.queries)),
        document_alignment(alignment(args_.problem.documents)),
        walk(args_, shared_.ahead) {}

  __device__ __forceinline__ static int alignment(const Segments& side) {
    if (side.feature_stride != 1) return 1;
    const int64_t strides = side.token_stride | side.segment_stride.inner | side.segment_stride.outer;
    const uint64_t bytes = reinterpret_cast<uintptr_t>(side.data) | strides * element_size(side.dtype);
    return bytes % 16 == 0 ? 16 : bytes % 4 == 0 ? 4 : 1;
  }

  __device__ __forceinline__ const MmaStep<C>& step() const { return shared.steps[at]; }

  // The first warp finds the step that follows `step`; the others see it behind the next barrier.
  __device__ __forceinline__ void find_first() {
    if (warp == 0) enter_unit(shared.steps[at], INT64_MIN, 0);
  }
  __device__ __forceinline__ void find_next() {
    const MmaStep<C>& now = shared.steps[at];
    at ^= 1;
    if (warp != 0) return;
    MmaStep<C>& then = shared.steps[at];
    int chunk = now.chunk + 1, from = now.from, part = now.part;
    if (chunk == chunks) chunk = 0, from += C::N;
    if (chunk == 0 && from >= now.unit.document.length) from = 0, ++part;
    if (part == now.unit.parts) {
      enter_unit(then, now.unit.group, now.part);
      if (then.exists && !then.new_queries && lane < C::kBlocks) then.blocks[lane] = now.blocks[lane];
    } else {
      const bool other = part != now.part;
      if (lane < C::kBlocks)
        then.blocks[lane] =
            other ? describe_block<C::kBlocks>(args, walk.cross(), now.unit.group, part, lane) : now.blocks[lane];
      if (lane == 0) {
        then.unit = now.unit;
        then.part = part;
        then.from = from;
        then.chunk = chunk;
        then.new_queries = other;
        then.exists = true;
      }
    }
    __syncwarp();
  }

  __device__ __forceinline__ void enter_unit(MmaStep<C>& then, int64_t group, int part) {
    Unit unit;
    const bool exists = walk.next(unit, [] { __syncwarp(); });
    const bool new_queries = exists && (unit.group != group || part != 0);
    if (new_queries && lane < C::kBlocks)
      then.blocks[lane] = describe_block<C::kBlocks>(args, walk.cross(), unit.group, 0, lane);
    if (lane == 0) {
      then.unit = unit;
      then.part = then.from = then.chunk = 0;
      then.new_queries = new_queries;
      then.exists = exists;
    }
    __syncwarp();
  }

  // kRows rows of one chunk, 16 bytes a thread and step: row 0 begins at element `begin`, and rows that are not inside
  // become zeros.
  template <int kRows, class Inside>
  __device__ __forceinline__ void copy_rows(char* to, const Segments& side, int alignment, int chunk, int64_t begin,
                                            Inside inside) {
    if (C::kSplit && side.dtype == DType::bit) return copy_bits<kRows>(to, side, chunk, begin, inside);
    const int size = C::kSplit ? static_cast<int>(element_size(side.dtype)) : 2;
    const int shift = size == 4 ? 4 : size == 2 ? 3 : 2, per_copy = 16 / size, rows_a_step = C::kThreads >> shift;
    const int row0 = thread >> shift, copy = thread & ((1 << shift) - 1), feature = chunk * kChunk + copy * per_copy;
    const int count = static_cast<int>(max(int64_t{0}, min(int64_t{per_copy}, side.dim - feature)));
    to += swizzled_chunk<C>(row0, copy);
    const char* from =
        static_cast<const char*>(side.data) + (begin + row0 * side.token_stride + feature * side.feature_stride) * size;
    const int64_t row_step = rows_a_step * side.token_stride * size;
    const int to_step = rows_a_step * C::kPitch;
    static_assert(C::kThreads / 16 % 8 == 0, "steps keep the swizzle");
    if (alignment == 16) {
#pragma unroll
      for (int i = 0; i < kRows * C::kPitch / 16 / C::kThreads; ++i) {
        const int row = row0 + i * rows_a_step;
        if (C::kSplit && row >= kRows) break;
        ptx::copy_16(to + i * to_step, from, inside(row) ? count * size : 0);
        from += row_step;
      }
    } else if (alignment == 4) {
#pragma unroll 1
      for (int row = row0; row < kRows; row += rows_a_step) {
        const int bytes = inside(row) ? count * size : 0;
#pragma unroll
        for (int word = 0; word < 4; ++word)
          ptx::copy_4(to + word * 4, from + word * 4, max(0, min(bytes - word * 4, 4)));
        from += row_step;
        to += to_step;
      }
    } else {
#pragma unroll 1
      for (int row = row0; row < kRows; row += rows_a_step) {
        const int there = inside(row) ? count : 0;
        uint32_t words[4] = {};
#pragma unroll
        for (int k = 0; k < (C::kSplit ? 16 : 8); ++k) {  // no branch between loads: all are on their way together
          if (k >= there) continue;
          const char* at = from + k * side.feature_stride * size;
          if (C::kSplit && size == 1)
            words[k / 4] |= uint32_t{*reinterpret_cast<const uint8_t*>(at)} << (k % 4 * 8);
          else if (size == 2)
            words[k / 2 % 4] |= uint32_t{*reinterpret_cast<const uint16_t*>(at)} << (k % 2 * 16);
          else
            words[k % 4] = *reinterpret_cast<const uint32_t*>(at);
        }
        *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
        from += row_step;
        to += to_step;
      }
    }
  }

  // The same of signs: eight bytes a row.
  template <int kRows, class Inside>
  __device__ __forceinline__ void copy_bits(char* to, const Segments& side, int chunk, int64_t begin, Inside inside) {
    const int64_t bytes = (side.dim + 7) / 8;
    for (int i = thread; i < kRows * 8; i += C::kThreads) {
      const int row = i / 8, byte = chunk * 8 + i % 8;
      const bool there = inside(row) && byte < bytes;
      to[swizzled_chunk<C>(row, 0) + i % 8] =
          there ? static_cast<const char*>(side.data)[begin + row * side.token_stride + byte] : 0;
    }
  }

  // Scales and minima of a tile's tokens, behind the tile.
  __device__ __forceinline__ void copy_factors(int stage, const Unit& unit, int first, int rows) {
    const Segments& side = args.problem.documents;
    const int64_t segment = unit.outer * side.inner + unit.inner;
    if (thread >= rows) return;
    if (side.scale)
      ptx::copy_4(&shared.token_scale[stage][thread],
                  &token_factor(side, side.scale, segment, unit.document, first + thread));
    if (side.minimum)
      ptx::copy_4(&shared.token_minimum[stage][thread],
                  &token_factor(side, side.minimum, segment, unit.document, first + thread));
  }

  __device__ __forceinline__ void copy_queries(char* to, int chunk) {
    const Segments& side = args.problem.queries;
#pragma unroll 1
    for (int b = 0; b < C::kBlocks; ++b) {
      const BlockInfo& block = step().blocks[b];
      const uint32_t kept = block.kept;
      copy_rows<kBlockTokens>(to + b * kBlockTokens * C::kPitch, side, query_alignment, chunk, block.begin,
                              [&](int row) { return kept >> row & 1; });
    }
  }

  __device__ __forceinline__ void load_resident() {
    if (warp == 0 && lane < C::kBlocks) shared.blocks[0][lane] = step().blocks[lane];
    for (int chunk = 0; chunk < chunks; ++chunk) copy_queries(queries + chunk * C::kRowBytes, chunk);
  }

  __device__ __forceinline__ void load(int stage) {
    const Segments& side = args.problem.documents;
    const MmaStep<C>& now = step();
    const Span document = now.unit.document;
    const int chunk = now.chunk;
    const Tile<C::N> tile(now.from, document.length, side.mask);
    int flags = (document.valid ? 0 : StageInfo::kInvalid) | (tile.last ? StageInfo::kLast : 0);
    MmaStage& info = shared.stages[stage];
    if (chunk + 1 == chunks) {
      bool full = tile.rows == C::N, any = full;
      if (side.mask || !full) {
        const int column = warp * 32 + lane;
        const bool kept = column < tile.rows && token_kept(side, document, tile.first + column);
        static_assert(C::N <= C::kThreads, "a thread looks at a column");
        const uint32_t bits = __ballot_sync(~0u, kept);
        if (lane == 0) info.bits[warp] = bits;
        full = false;
        any = any_column(document, tile);
      }
      flags |= (full ? StageInfo::kFull : 0) | (any ? StageInfo::kAnyToken : 0);
    }
    if (thread == 0) {
      info.flags = flags;
      info.first_token = tile.first;
      info.target = now.unit.target;
      info.chunk = chunk;
    }
    char* to = ring + stage * C::kStageBytes;
    if constexpr (C::kSplit) copy_factors(stage, now.unit, tile.first, tile.rows);
    copy_rows<C::N>(to, side, document_alignment, chunk, document.begin + tile.first * side.token_stride,
                    [&](int row) { return row < tile.rows; });
    if (C::kStream) {
      if (warp == 0 && lane < C::kBlocks) shared.blocks[stage][lane] = now.blocks[lane];
      copy_queries(to + C::kTileBytes, chunk);
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
