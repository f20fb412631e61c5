// Producer side of the Hopper forward: which tiles a block meets, in which order, and how they get into shared memory.
#pragma once

#include "ptx/mbarrier.cuh"
#include "ptx/tma.cuh"
#include "ptx/wgmma.cuh"
#include "sm90_config.cuh"

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
  float halves[C::kGroups * 4];  // sums of 16 rows on their way to the neighbouring warp
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
    const Problem& problem = args.problem;
    const bool cross = problem.pairing == Pairing::cross;
    const int64_t groups = cross ? (args.block_count + C::kBlocks - 1) / C::kBlocks : 1;
    const int64_t units = groups * args.count;
    // One query group: documents are dealt round-robin. Several: a contiguous range each, so that rows stay resident.
    const bool deal = cross && groups == 1;
    const int64_t from = deal ? blockIdx.x : units * blockIdx.x / gridDim.x;
    const int64_t to = deal ? units : units * (blockIdx.x + 1) / gridDim.x;
    const int64_t step = deal ? gridDim.x : 1;
    int64_t resident = -1;
    for (int64_t base = from; base < to; base += 32 * step) {
      const int64_t mine = base + lane * step;
      Span span;
      PairIds ids{-1, -1};
      int my_parts = 1;
      int64_t next_query = -1;
      if (mine < to) {
        ids = cross ? PairIds{mine / args.count, args.first + mine % args.count} : pair_ids(problem, args.first + mine);
        span = span_of(problem.documents, ids.document);
        const int64_t next = mine + step;
        if (next < to) next_query = cross ? next / args.count : pair_ids(problem, args.first + next).query;
        if (!cross) my_parts = max(1, (span_of(problem.queries, ids.query).length + C::kRows - 1) / C::kRows);
      }
      const int batch = static_cast<int>(min(int64_t{32}, (to - base + step - 1) / step));
      for (int u = 0; u < batch; ++u) {
        Span document;
        document.begin = __shfl_sync(~0u, span.begin, u);
        document.mask_begin = __shfl_sync(~0u, span.mask_begin, u);
        document.first_row = __shfl_sync(~0u, span.first_row, u);
        document.length = __shfl_sync(~0u, span.length, u);
        document.valid = __shfl_sync(~0u, span.valid, u);
        const int64_t group = __shfl_sync(~0u, ids.query, u), id = __shfl_sync(~0u, ids.document, u);
        const int64_t target = cross ? id : args.first + base + u * step;
        const int parts = __shfl_sync(~0u, my_parts, u);
        const bool release = parts > 1 || __shfl_sync(~0u, next_query, u) != group;
        for (int part = 0; part < parts; ++part) {
          const int64_t key = group << 32 | part;
          const bool load = key != resident;
          if (load) load_queries(cross, group, part);
          resident = key;
          stream(document, id, target, load, release);
        }
      }
    }
    StageInfo end{};
    end.flags = StageInfo::kEnd;
    acquire();
    publish(end, 0);
  }

  __device__ __forceinline__ void load_queries(bool cross, int64_t group, int part) {
    const Segments& side = args.problem.queries;
    ptx::mbarrier_wait(&shared.queries_empty, query_phase);
    query_phase ^= 1;
    int64_t row_begin = 0, inner_row = 0;
    BlockInfo info{-1, 0, 0, 0, 0, true};
    if (lane < C::kBlocks) {
      if (!cross) {
        info.query = group;
        info.chunk = part * C::kBlocks + lane;
      } else {
        const int64_t block = group * C::kBlocks + lane;
        if (block < args.block_count) {
          info.query = args.blocks ? args.blocks[block].x : block / args.chunks;
          info.chunk = args.blocks ? args.blocks[block].y : static_cast<int>(block % args.chunks);
        }
      }
      info.slot = cross ? group * C::kBlocks + lane : info.chunk;
      if (info.query >= 0) {
        const Span span = span_of(side, info.query);
        info.valid = span.valid && (!args.argmax || span.length <= args.problem.argmax_width);
        const int length = info.valid ? span.length : 0;
        info.chunks = max(1, (length + kBlockTokens - 1) / kBlockTokens);
        if (info.chunk >= info.chunks) {
          info.query = -1;
        } else {
          const int first = info.chunk * kBlockTokens, rows = min(kBlockTokens, length - first);
          for (int t = 0; t < rows; ++t)
            if (token_kept(side, span, first + t)) info.kept |= 1u << t;
          inner_row = side.packed() ? span.first_row + first : first;
          row_begin = span.begin + first * side.token_stride;
        }
      }
      if (warp == 0) shared.blocks[lane] = info;
    }
    const unsigned present = __ballot_sync(~0u, lane < C::kBlocks && info.query >= 0 && info.kept);
    __syncwarp();
    if (args.tma && lane == 0)
      ptx::mbarrier_arrive_expect(&shared.queries_full, __popc(present) * kBlockTokens * C::kAtoms * 128);
    __syncwarp();
    for (int b = 0; b < C::kBlocks; ++b) {
      if (!(present >> b & 1)) continue;
      const int64_t row = __shfl_sync(~0u, inner_row, b), begin = __shfl_sync(~0u, row_begin, b);
      const int64_t query = __shfl_sync(~0u, info.query, b);
      const uint32_t kept = __shfl_sync(~0u, info.kept, b);
      if (args.tma) {
        // 16-row boxes: the two halves of a block lie in different row tiles when a warpgroup has two.
        if (lane < 2 * C::kAtoms) {
          const int half = lane % 2, atom = lane / 2, place = block_row<C>(b, half * 16);
          char* tile = queries + place / 64 * 64 * C::kAtoms * 128;
          ptx::tma_load(tile + atom * 64 * 128 + place % 64 * 128, &query_map, &shared.queries_full, atom * kAtom,
                        static_cast<int>(row) + half * 16, 0, side.packed() ? 0 : static_cast<int>(query));
        }
      } else {
        for (int i = warp * 32 + lane; i < kBlockTokens * C::kAtoms * 8; i += 128) {
          const int token = i / (C::kAtoms * 8), chunk = i % (C::kAtoms * 8), place = block_row<C>(b, token);
          char* tile = queries + place / 64 * 64 * C::kAtoms * 128;
          copy_chunk(tile + swizzled(64, place % 64, chunk), side, begin + token * side.token_stride, chunk,
                     kept >> token & 1);
        }
      }
    }
    if (!args.tma) {
      ptx::fence_async_proxy();
      if (kNormalize) {
        sync_loaders();
        for (int row = warp * 32 + lane; row < C::kRows; row += 128)
          shared.row_scale[row] = inverse_norm_of<C, T>(queries + row / 64 * 64 * C::kAtoms * 128, 64, row % 64);
      }
      __syncwarp();
      if (lane == 0) ptx::mbarrier_arrive(&shared.queries_full);
    }
  }

  __device__ __forceinline__ void acquire() { ptx::mbarrier_wait(&shared.empty[ring.stage], ring.phase); }

  // The stage's description goes out with the arrival that counts its bytes.
  __device__ __forceinline__ void publish(const StageInfo& info, int bytes) {
    if (lane == 0) {
      if (warp == 0) shared.stages[ring.stage] = info;
      if (bytes)
        ptx::mbarrier_arrive_expect(&shared.full[ring.stage], bytes);
      else
        ptx::mbarrier_arrive(&shared.full[ring.stage]);
    }
    __syncwarp();
  }

  __device__ __forceinline__ void stream(const Span& document, int64_t id, int64_t target, bool new_queries,
                                         bool release) {
    const Segments& side = args.problem.documents;
    const int tile_count = max(1, (document.length + C::N - 1) / C::N);
    for (int t = 0; t < tile_count; ++t) {
      const int first = t * C::N, rows = min(C::N, document.length - first);
      StageInfo info{};
      info.first_token = first;
      info.target = target;
      info.flags = (new_queries && t == 0 ? StageInfo::kNewQueries : 0) |
                   (t + 1 == tile_count ? StageInfo::kLast | (release ? StageInfo::kRelease : 0) : 0) |
                   (document.valid ? 0 : StageInfo::kInvalid);
      uint32_t any = 0;
#pragma unroll
      for (int w = 0; w < 5; ++w) {
        const int column = w * 32 + lane;
        info.bits[w] = __ballot_sync(~0u, column < rows && token_kept(side, document, first + column));
        any |= info.bits[w];
      }
      if (rows == C::N && !side.mask) info.flags |= StageInfo::kFull;
      if (any) info.flags |= StageInfo::kAnyToken;
      acquire();
      char* tile = tiles + ring.stage * C::kTileBytes;
      if (args.tma)
        copy_by_map(info, tile, rows, first, document, id);
      else
        copy_by_hand(info, tile, rows, first, document);
      ring.advance<C::kStages>();
    }
  }

  __device__ __forceinline__ void copy_by_map(const StageInfo& info, char* tile, int rows, int first,
                                              const Span& document, int64_t id) {
    const Segments& side = args.problem.documents;
    const int row = static_cast<int>(side.packed() ? document.first_row : 0) + first;
    const int inner = side.packed() ? 0 : static_cast<int>(id % side.inner);
    const int outer = side.packed() ? 0 : static_cast<int>(id / side.inner);
    uint64_t* barrier = &shared.full[ring.stage];
    if (rows == C::N) {
      publish(info, C::kTileBytes);
      if (lane < C::kAtoms)
        ptx::tma_load(tile + lane * C::N * 128, &document_map, barrier, lane * kAtom, row, inner, outer);
    } else {
      const int boxes = (max(rows, 0) + 7) / 8;
      publish(info, boxes * 8 * C::kAtoms * 128);
      if (lane < boxes)
#pragma unroll
        for (int atom = 0; atom < C::kAtoms; ++atom)
          ptx::tma_load(tile + atom * C::N * 128 + lane * 1024, &tail_map, barrier, atom * kAtom, row + lane * 8, inner,
                        outer);
    }
  }

  __device__ __forceinline__ void copy_by_hand(const StageInfo& info, char* tile, int rows, int first,
                                               const Span& document) {
    const Segments& side = args.problem.documents;
    for (int i = warp * 32 + lane; i < C::N * C::kAtoms * 8; i += 128) {
      const int row = i / (C::kAtoms * 8), chunk = i % (C::kAtoms * 8);
      copy_chunk(tile + swizzled(C::N, row, chunk), side, document.begin + (first + row) * side.token_stride, chunk,
                 row < rows);
    }
    ptx::fence_async_proxy();
    if (kNormalize) {
      sync_loaders();  // a row's chunks come from several warps
      for (int row = warp * 32 + lane; row < C::N; row += 128)
        shared.token_scale[ring.stage][row] = inverse_norm_of<C, T>(tile, C::N, row);
    }
    __syncwarp();
    publish(info, 0);
  }

  __device__ __forceinline__ void sync_loaders() { asm volatile("bar.sync 8, 128;" ::: "memory"); }
};

}  // namespace cuda
}  // namespace maxsim
