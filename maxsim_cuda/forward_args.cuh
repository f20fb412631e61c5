// What every tiled forward is told: the problem, where its results go, and the scratch memory of this launch.
#pragma once

#include "device_problem.cuh"

namespace maxsim {
namespace cuda {

constexpr int kBlockTokens = 32;  // query tokens a block: the unit that is stacked into rows and summed

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct ForwardArgs {
  Problem problem;
  float* scores;
  int32_t* argmax;
  double* partials;     // sums of blocks: [documents][block_count] (cross) or [pairs][chunks] of this launch; or null
  int32_t* arrivals;    // blocks done, of each pair of this launch; zero at launch
  const int2* blocks;   // (query, chunk) of each block of packed queries; blocks[-1].x counts them. Null when padded,
                        // or where as many are reserved for each.
  int64_t block_count;  // at most
  int32_t chunks;       // blocks a query can have
  int64_t first;        // first document (cross) or pair (else) of this launch
  int64_t count;        // how many
  int32_t pieces;       // thread blocks, side by side, that share each unit's document
  bool follows_table;   // `blocks` is written by the kernel before this one, and may not be there when it starts
  bool allow_tf32;      // fp32 operands may lose all but 11 bits of mantissa
};

__device__ __forceinline__ int64_t block_count(const ForwardArgs& args) {
  return args.blocks ? args.blocks[-1].x : args.block_count;
}

// Query blocks that meet one document: all of a cross product, else those of one query. Of a list that the device
// makes, as many as if all queries were of average length.
inline int64_t blocks_per_document(const ForwardArgs& args) {
  const Segments& queries = args.problem.queries;
  const bool cross = args.problem.pairing == Pairing::cross;
  if (cross && !args.blocks) return args.block_count;
  const int64_t length = queries.packed() && queries.count ? ceil_div(queries.extent, queries.count) : queries.extent;
  return ceil_div(length, kBlockTokens) * (cross ? queries.count : 1);
}

// The tokens of one piece of a document: whole tiles of kColumns. Where there are no more, `from` is not below `to`.
struct Piece {
  int from, to;
};
template <int kColumns>
__device__ __forceinline__ Piece piece_of(const ForwardArgs& args, int length) {
  if (args.pieces == 1) return {0, length};
  const int tiles = (length + kColumns - 1) / kColumns, share = (tiles + args.pieces - 1) / args.pieces * kColumns;
  const int from = static_cast<int>(blockIdx.x % args.pieces) * share;
  return {from, min(length, from + share)};
}

// What a loader says about a stage of the ring. `bits` are the kept columns of a tile that is not full.
struct alignas(16) StageInfo {
  // kFull: every column counts. kRelease: the last tile that these queries meet.
  // kNarrow: only the first columns, kNarrowColumns, are there. kEights: documents share the tile, and each begins and
  // ends at a multiple of eight columns.
  static constexpr int kNewQueries = 1, kLast = 2, kFull = 4, kEnd = 8, kInvalid = 16, kAnyToken = 32, kRelease = 64,
                       kNarrow = 128, kEights = 256;
  int32_t flags;
  int32_t first_token;
  int64_t target;  // cross: the document; else the pair
  uint32_t bits[5];
  // Where the last eight tokens of the tile begin, counted from its first; or how many of the documents that share it
  // end in it.
  int32_t last_eight;
  int32_t skipped;  // bytes that were copied before the tile's, to begin at a multiple of 16
};

// A block of query rows.
struct BlockInfo {
  int64_t query = -1;  // -1: no query here
  int64_t slot = 0;    // of this block's sum in `partials`, before the document or pair is added
  int64_t begin = 0;   // element offset of its first row
  int32_t row = 0;     // its first row, in its query or in the packed view
  int32_t chunk = 0;
  int32_t chunks = 0;  // blocks this query has
  uint32_t kept = 0;   // rows that count
  bool valid = true;
};

}  // namespace cuda
}  // namespace maxsim
