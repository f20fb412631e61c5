// How tiles and queries get into shared memory through tensor maps: what both producers of the Hopper forward do.
#pragma once

#include "blocks.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/dependent_launch.cuh"
#include "ptx/tma.cuh"
#include "sm90_shared.cuh"

namespace maxsim {
namespace cuda {

// The padded documents that a thread block meets, of `units` of which each block has `share`, the first ones one more:
// call(cross, group, part, document, unit, new_queries, release) for each part of a query. Cross: units are documents
// within groups. Slab: documents of a query, of which there is one to a group.
template <class C, class Call>
__device__ __forceinline__ void walk_padded(const Sm90Args& args, uint32_t units, uint32_t share, uint32_t block,
                                            uint32_t blocks, const Call& call) {
  const bool cross = args.problem.pairing == Pairing::cross;
  const uint32_t inner = cross ? static_cast<uint32_t>(args.count) : args.problem.documents.inner;
  const bool deal = cross && units == inner;
  const uint32_t extra = units - share * blocks;
  uint32_t unit = deal ? block : block * share + min(block, extra);
  const uint32_t to = deal ? units : unit + share + (block < extra), step = deal ? blocks : 1;
  uint32_t group = deal ? 0 : unit / inner, document = unit - group * inner;
  const int parts = cross ? 1 : (args.chunks + C::kBlocks - 1) / C::kBlocks;
  bool new_group = true;
  for (; unit < to; unit += step) {
    const bool ends = unit + step >= to || (!deal && document + 1 == inner);
    for (int part = 0; part < parts; ++part)
      call(cross, group, part, document, unit, new_group || parts > 1, ends || parts > 1);
    new_group = ends;
    document += step;
    if (!deal && document == inner) document = 0, ++group;
  }
}

struct Sm90Maps {
  const CUtensorMap& queries;    // boxes of kQueryBoxRows
  const CUtensorMap& documents;  // boxes of N rows
  const CUtensorMap& tails;      // boxes of 8 rows
};

template <class C, class T, Columns kColumns>
struct Sm90Feed {
  // In the plain case a warp of its own fetches the factors of tokens: the producer has no time for that.
  static constexpr bool kFactorWarp = has_factors(kColumns) && !C::kWidens;

  const Sm90Args& args;
  const Sm90Maps maps;
  Sm90Shared<C>& shared;
  char* queries;
  char* tiles;
  char* staged;  // behind the tiles: rows that are yet to be spread
  int warp, lane;
  Ring<C::kStages> ring{0, 1};
  Ring<C::kQueryBuffers> buffer{0, 1};
  const uint64_t stream_policy;

  __device__ __forceinline__ Sm90Feed(const Sm90Args& args_, const Sm90Maps& maps_, Sm90Shared<C>& shared_,
                                      char* queries_, char* tiles_, int warp_, int lane_)
      : args(args_),
        maps(maps_),
        shared(shared_),
        queries(queries_),
        tiles(tiles_),
        staged(tiles_ + C::kStages * C::kTileBytes),
        warp(warp_),
        lane(lane_),
        stream_policy(ptx::pass_through_l2()) {}

  __device__ __forceinline__ char* tile() const { return tiles + ring.at * C::kTileBytes; }
  __device__ __forceinline__ char* query_buffer() const { return queries + buffer.at * C::kQueryBytes; }

  // The place that the next tile comes to.
  __device__ __forceinline__ StageInfo& stage() const {
    return C::kLoose ? shared.came[ring.at] : shared.stages[ring.at];
  }
  __device__ __forceinline__ void acquire() {
    ptx::mbarrier_wait(C::kLoose ? &shared.came_empty[ring.at] : &shared.empty[ring.at], ring.phase);
  }
  __device__ __forceinline__ void acquire_queries() {
    ptx::mbarrier_wait(&shared.queries_empty[buffer.at], buffer.phase);
  }

  // The stage's description goes out with the arrival that counts its bytes.
  __device__ __forceinline__ void publish(int flags, int first, int last_eight, int64_t target, int bytes) {
    if (lane == 0) {
      if (warp == kProducerWarp) {
        StageInfo& info = stage();
        info.flags = flags;
        info.first_token = first;
        info.last_eight = last_eight;
        info.target = target;
      }
      if (bytes)
        ptx::mbarrier_arrive_expect(&shared.full[ring.at], bytes);
      else
        ptx::mbarrier_arrive(&shared.full[ring.at]);
    } else if (C::kLoose || (!kOnlyOne<C> && !args.tma)) {
      ptx::mbarrier_arrive(&shared.full[ring.at]);  // for what this lane wrote
    }
  }

  // Rows of a side as they are loaded: 128-byte atoms, and the features of one.
  __device__ __forceinline__ static int atoms(const Segments& side) {
    if (C::kWidens || C::kTurned) return is_stored(side.dtype) ? 1 : C::kQueryAtoms;
    if (!C::kSplit || side.dtype == DType::f32) return C::kAtoms;
    return is_stored(side.dtype) ? 1 : C::kAtoms / 2;
  }
  // Where a document tile begins to arrive: rows that are to be widened take the place of their last atom.
  static constexpr int kArrival = C::kWidens ? (C::kAtoms - 1) * C::N * C::kAtomBytes : 0;
  __device__ __forceinline__ static int atom_features(const Segments& side) {
    return C::kSplit ? static_cast<int>(128 / element_size(side.dtype)) : kAtom<T>;
  }

  __device__ __forceinline__ void load(char* to, const CUtensorMap& map, int atom, int row, int inner, int outer) {
    const int feature = atom * atom_features(args.problem.documents);
    if (args.pass_through)
      ptx::tma_load(to, &map, &shared.full[ring.at], feature, row, inner, outer, stream_policy);
    else
      ptx::tma_load(to, &map, &shared.full[ring.at], feature, row, inner, outer);
  }

  __device__ __forceinline__ void load_whole(int row, int document) {
    if (args.pass_through)
      ptx::tma_load_whole(tile(), &maps.documents, &shared.full[ring.at], row, document, stream_policy);
    else
      ptx::tma_load_whole(tile(), &maps.documents, &shared.full[ring.at], row, document);
  }

  // The kept columns of a tile of the first `rows`, which are copied in boxes of eight: from eight on, all of them.
  __device__ __forceinline__ int keep_first(int rows) {
    if (rows >= 8) return StageInfo::kFull | StageInfo::kAnyToken;
    if (lane == 0)  // who also says that they are written
#pragma unroll
      for (int word = 0; word < 5; ++word) stage().bits[word] = word ? 0 : (1u << max(rows, 0)) - 1;
    return rows > 0 ? StageInfo::kAnyToken : 0;
  }

  // One tile, described already but for its bytes. Row 0 of the tile is row `row` of the map. Factors are those of the
  // first `tokens`.
  __device__ __forceinline__ void copy_tile(int flags, int first, int rows, int tokens, int64_t target, int row,
                                            int inner, int outer) {
    const Segments& side = args.problem.documents;
    const char* from =
        static_cast<const char*>(side.data) +
        (outer * side.segment_stride.outer + inner * side.segment_stride.inner + row * side.token_stride) *
            element_size(side.dtype);
    const bool loose = C::kLoose || (C::kWidens && args.signs);
    if (loose) copy_loose(from, rows);
    const int boxes = rows >= 8 ? C::N / 8 : rows > 0, last_eight = max(rows - 8, 0);
    const int bytes = loose         ? 0
                      : C::kSpreads ? rows * static_cast<int>(side.dim)
                                    : boxes * 8 * atoms(side) * C::kAtomBytes;
    publish(flags, first, last_eight, target, bytes);
    if (C::kSpreads) {
      if (lane == 0 && bytes) ptx::bulk_load(staged + ring.at * C::kStagedBytes, from, bytes, &shared.full[ring.at]);
    } else if (C::kTogether) {
      if (lane == 0) load_whole(row, static_cast<int>(target));
    } else if (!loose) {
      load_boxes(boxes, last_eight, row, inner, outer);
    }
    if (!kFactorWarp || !args.dense) {
      fetch_tile_factors(rows, tokens, row, inner, outer);
      copies_arrive();
    }
    __syncwarp();
  }

  // A whole tile in one box of each atom; else boxes of eight, a lane each.
  __device__ __forceinline__ void load_boxes(int boxes, int last_eight, int row, int inner, int outer) {
    const int present = atoms(args.problem.documents);
    if (last_eight == C::N - 8) {
      if (lane == 0)
#pragma unroll
        for (int atom = 0; atom < C::kAtoms; ++atom)
          if (atom < present)
            load(tile() + kArrival + atom * C::N * C::kAtomBytes, maps.documents, atom, row, inner, outer);
    } else {
      __syncwarp();  // no byte may arrive before its count
      if (lane < boxes)
#pragma unroll
        for (int atom = 0; atom < C::kAtoms; ++atom)
          if (atom < present)
            load(tile() + kArrival + (atom * C::N + lane * 8) * C::kAtomBytes, maps.tails, atom,
                 row + min(lane * 8, last_eight), inner, outer);
    }
  }

  // A tile's rows as they lie in memory, in one piece, or where there is too much between them, in a piece each. Bytes
  // are counted before the arrival that publishes them.
  __device__ __forceinline__ void copy_loose(const char* from, int rows) {
    const Segments& side = args.problem.documents;
    const int64_t size = element_size(side.dtype), stride = side.token_stride * size;
    char* to = staged + ring.at * C::kStagedBytes;
    if (lane == 0) stage().skipped = reinterpret_cast<uintptr_t>(from) & 15;
    if (C::kLoose && args.apart)
#pragma unroll 1
      for (int row = lane; row < rows; row += 32)
        copy_piece(from + row * stride, row_elements(side) * size, to + row * C::kStagedRowBytes);
    else if (lane == 0 && rows > 0)
      copy_piece(from, rows * stride, to);
    __syncwarp();
  }
  // A linear copy begins at a multiple of 16 and ends at one. It could read what is not the documents' behind their
  // last one: those few bytes this lane copies.
  __device__ __forceinline__ void copy_piece(const char* from, int64_t bytes, char* to) {
    constexpr uintptr_t kWhole = ~uintptr_t{15};
    const uintptr_t first = reinterpret_cast<uintptr_t>(from), all = reinterpret_cast<uintptr_t>(args.document_end);
    if (first >= all) return;
    const uintptr_t begin = first & kWhole, end = min(first + bytes, all);
    const uintptr_t copied = max(begin, min((end + 15) & kWhole, all & kWhole));
    from -= first - begin;
    for (uintptr_t at = copied - begin; at < end - begin; ++at) to[at] = from[at];
    if (copied == begin) return;
    ptx::mbarrier_expect(&shared.full[ring.at], static_cast<int>(copied - begin));
    ptx::bulk_load(to, from, static_cast<int>(copied - begin), &shared.full[ring.at]);
  }

  // No more tiles.
  __device__ __forceinline__ void end() {
    acquire();
    publish(StageInfo::kEnd, 0, 0, 0, 0);
    if (args.tma && (!kFactorWarp || !args.dense)) copies_arrive();
  }

  // Whether the tiles that are split hold stored documents, whose factors the splitting warps need.
  __device__ __forceinline__ bool splits_stored() const { return C::kSplit && is_stored(args.problem.documents.dtype); }

  // The factors of a tile's columns, if it has any. `row_of` a column: in its segment or in the packed view.
  __device__ __forceinline__ void fetch_tile_factors(int rows, int tokens, int row, int inner, int outer) {
    if (rows == C::N) return fetch_tile_factors([&](int column) { return row + column; }, tokens, inner, outer);
    const int last_eight = max(rows - 8, 0);
    fetch_tile_factors([&](int column) { return row + min(column & ~7, last_eight) + (column & 7); },
                       rows >= 8 ? C::N : rows, inner, outer);
  }
  template <class RowOf>
  __device__ __forceinline__ void fetch_tile_factors(const RowOf& row_of, int columns, int inner, int outer) {
    if (!has_factors(kColumns) && !splits_stored()) return;
    const Segments& side = args.problem.documents;
    if (side.scale) fetch_factors(side.scale, shared.token_scale[ring.at], row_of, columns, inner, outer);
    if ((C::kSplit || kColumns == Columns::affine) && side.minimum)
      fetch_factors(side.minimum, shared.token_minimum[ring.at], row_of, columns, inner, outer);
  }
  template <class RowOf>
  __device__ __forceinline__ void fetch_factors(const TokenFactor& factor, float* to, const RowOf& row_of, int columns,
                                                int inner, int outer) {
    const float* from = factor.data + outer * factor.segment_stride.outer + inner * factor.segment_stride.inner;
    if (factor.block == 1 && factor.block_stride == 1) {  // no address needs more than an addition
#pragma unroll
      for (int first = 0; first < C::N; first += 32)
        if (const int column = first + lane; column < columns) ptx::copy_4(to + column, from + row_of(column));
    } else {
#pragma unroll 1
      for (int column = lane; column < columns; column += 32)
        ptx::copy_4(to + column, &Segments::factor(factor, from, row_of(column)));
    }
  }
  // What this lane copied itself arrives on its own.
  __device__ __forceinline__ void copies_arrive() {
    if (splits_stored()) ptx::copy_arrive(&shared.full[ring.at]);
    if (has_factors(kColumns)) ptx::copy_arrive(&shared.scaled[ring.at]);
  }
  __device__ __forceinline__ void fetch_row_factors(const BlockInfo& info) {
    const TokenFactor& scale = args.problem.queries.scale;
    if (scale)
#pragma unroll 1
      for (int b = 0; b < C::kBlocks; ++b) {
        const int64_t query = __shfl_sync(~0u, info.query, b);
        const int row = __shfl_sync(~0u, info.row, b);
        if (__shfl_sync(~0u, info.kept, b) >> lane & 1)
          ptx::copy_4(&shared.row_scale[buffer.at][block_row<C>(b, lane)],
                      &Segments::factor(scale, scale.data + query * scale.segment_stride.outer, row + lane));
      }
    ptx::copy_arrive(&shared.queries_full[buffer.at]);
  }

  // The rows of a query group whose blocks have to be looked up.
  __device__ __forceinline__ void look_up_queries(bool cross, int64_t group, int part) {
    const BlockInfo info = describe_block<C::kBlocks>(args, cross, group, part, lane);
    acquire_queries();
    copy_queries(info, args.problem.queries.packed());
    buffer.advance();
  }

  // Block b's rows are described by lane b. Boxes of as many rows as lie together, a lane each. Loose ones
  // are copied by the warps that place documents, which are told.
  __device__ __forceinline__ void copy_queries(const BlockInfo& info, bool packed) {
    if constexpr (C::kLoose) {
      if (lane < C::kBlocks) shared.blocks[buffer.at][lane] = info;
      ptx::mbarrier_arrive(&shared.queries_named[buffer.at]);
      return;
    }
    constexpr int kParts = kBlockTokens / C::kQueryBoxRows, kBoxes = C::kBlocks * C::kQueryAtoms * kParts;
    const unsigned present = __ballot_sync(~0u, lane < C::kBlocks && info.query >= 0 && info.kept);
    const int query = packed ? 0 : static_cast<int>(info.query);
    uint64_t* barrier = &shared.queries_full[buffer.at];
    const int loaded = atoms(args.problem.queries), features = atom_features(args.problem.queries);
    if (lane < C::kBlocks) shared.blocks[buffer.at][lane] = info;
    if (lane == 0)
      ptx::mbarrier_arrive_expect(barrier, __popc(present) * kBlockTokens * loaded * C::kQueryAtomBytes);
    else
      ptx::mbarrier_arrive(barrier);
    __syncwarp();  // no byte may arrive before its count
#pragma unroll
    for (int first = 0; first < kBoxes; first += 32) {
      const int box = first + lane, part = box % kParts, atom = box / kParts % C::kQueryAtoms;
      const int block = box / (kParts * C::kQueryAtoms), token = part * C::kQueryBoxRows;
      const int from = __shfl_sync(~0u, info.row, block % 32) + token, outer = __shfl_sync(~0u, query, block % 32);
      if (box < kBoxes && atom < loaded && (present >> block & 1)) {
        const int row = block_row<C>(block, token);
        ptx::tma_load(query_buffer() + row / 64 * 64 * C::kQueryRowBytes +
                          (atom * C::kOperandRows + row % 64) * C::kQueryAtomBytes,
                      &maps.queries, barrier, atom * features, from, 0, outer);
      }
    }
    if constexpr (kStored<T> || C::kSplit) fetch_row_factors(info);
  }
};

}  // namespace cuda
}  // namespace maxsim
