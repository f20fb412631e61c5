// Producer of the Hopper forward for the plain case: both sides padded, every token kept, all pairs of a cross product
// or of slabs. Which tile comes next is counted, not looked up: the first tile is on its way after some hundred
// cycles, where a short call would otherwise wait longer for its description than for its data.
#pragma once

#include "sm90_feed.cuh"

namespace maxsim {
namespace cuda {

// kFactors: of the warp that walks beside it and fetches the factors of tokens.
template <class C, class T, Columns kColumns, bool kFactors = false>
struct Sm90DenseProducer : Sm90Feed<C, T, kColumns> {
  using Sm90Feed<C, T, kColumns>::Sm90Feed;

  __device__ __forceinline__ void run() {
    const Sm90Args& args = this->args;
    const uint32_t pieces = kOnlyDense<C> ? 1 : args.pieces;
    const int length = static_cast<int>(args.problem.documents.extent);
    walk_padded<C>(args, args.dense_units, args.dense_share, blockIdx.x / pieces, gridDim.x / pieces,
                   [&](bool cross, uint32_t group, int part, uint32_t document, uint32_t unit, bool new_queries,
                       bool release) { stream(cross, group, part, document, unit, length, new_queries, release); });
    if constexpr (kFactors) {
      this->acquire();
      this->copies_arrive();
    } else {
      this->end();
    }
  }

  __device__ __forceinline__ void stream(bool cross, uint32_t group, int part, uint32_t document, uint32_t unit,
                                         int length, bool new_queries, bool release) {
    int flags = new_queries ? StageInfo::kNewQueries : 0;
    const int64_t target = this->args.first + (cross ? document : unit);
    const Piece piece = kOnlyDense<C> ? Piece{0, length} : piece_of<C::N>(this->args, length);
    for (int from = piece.from;; from += C::N) {
      const Tile<C::N> tile(from, piece.to, false);
      const int rows = kOnlyDense<C> ? C::N : tile.rows;
      const bool last = tile.last;
      if (last) flags |= StageInfo::kLast | (release ? StageInfo::kRelease : 0);
      this->acquire();
      const int inner = cross ? 0 : static_cast<int>(document);
      const int outer = cross ? static_cast<int>(target) : static_cast<int>(group);
      if constexpr (kFactors) {
        this->fetch_tile_factors(rows, rows, tile.first, inner, outer);
        this->copies_arrive();
      } else {
        flags |= this->keep_first(rows);
        this->copy_tile(flags, tile.first, rows, rows, target, tile.first, inner, outer);
      }
      this->ring.advance();
      if (!kFactors && from == piece.from && new_queries)
        load_queries(cross, group, part);  // behind the tile that takes longer to come
      if (last) return;
      flags = 0;
    }
  }

  __device__ __forceinline__ void load_queries(bool cross, uint32_t group, int part) {
    const ForwardArgs& args = this->args;
    const uint32_t chunks = args.chunks, lane = this->lane;
    BlockInfo info;
    uint32_t chunk = part * C::kBlocks + lane, query = group;
    if (cross) {
      const uint32_t block = group * C::kBlocks + lane;
      query = block / chunks;
      chunk = block - query * chunks;
      info.slot = block;
    } else {
      info.slot = chunk;
    }
    if (lane < C::kBlocks && query < args.problem.queries.count && chunk < chunks) {
      const int rows = min(kBlockTokens, static_cast<int>(args.problem.queries.extent) - static_cast<int>(chunk) * 32);
      info.query = query;
      info.chunk = chunk;
      info.chunks = chunks;
      info.row = chunk * kBlockTokens;
      if (C::kLoose)
        info.begin = query * args.problem.queries.segment_stride.outer + info.row * args.problem.queries.token_stride;
      info.kept = rows < 32 ? (1u << max(rows, 0)) - 1 : ~0u;
    }
    this->acquire_queries();
    this->copy_queries(info, false);
    this->buffer.advance();
  }
};

}  // namespace cuda
}  // namespace maxsim
