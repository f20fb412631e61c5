// What the wgmma rungs share: where query and document rows lie in shared memory, a product, its max, a score.
#pragma once

#include "ladder.h"
#include "mma.cuh"
#include "ptx/wgmma.cuh"

namespace ladder {

namespace ptx = maxsim::ptx;

// Document tokens a product meets. A document is always three tiles here: 312 columns for 300 tokens, and registers for
// two products of each thread.
constexpr int kTile = 104;
constexpr int kTilesADocument = 3;
constexpr int kTileBytes = kTile * kDim * 2;
// Query rows a warpgroup holds: two m64 tiles. Warp w has rows 16w to 16w + 15 of both, which are the first and the
// last 16 tokens of one query, so that a warp sums a score by itself.
constexpr int kQueriesAGroup = 4;
constexpr int kRowTileBytes = 64 * kDim * 2;
constexpr int kGroupBytes = 2 * kRowTileBytes;

using Products = float[kTile / 2];

// A row of 64 features in a 128-byte swizzled atom; a tile is two atoms of `rows` rows.
__device__ __forceinline__ uint4* swizzled(char* tile, int rows, int row, int chunk) {
  return reinterpret_cast<uint4*>(tile + chunk / 8 * rows * 128 + row * 128 + (chunk % 8 ^ row % 8) * 16);
}

// The queries of a block of `groups` warpgroups; rows of queries that do not exist are zeros.
__device__ __forceinline__ void load_queries(char* to, const Problem& p, int groups, int thread, int threads) {
  const auto* from = reinterpret_cast<const uint4*>(p.queries);
  for (int i = thread; i < groups * 128 * 16; i += threads) {
    const int chunk = i % 16, row = i / 16 % 64, tile = i / 16 / 64;
    const int query = (blockIdx.x * groups + tile / 2) * kQueriesAGroup + row / 16;
    const int token = tile % 2 * 16 + row % 16;
    *swizzled(to + tile * kRowTileBytes, 64, row, chunk) =
        query < p.query_count ? from[(query * kQueryTokens + token) * 16 + chunk] : uint4{};
  }
}

// The last tile starts early enough to be full: meeting a token twice does not change a max.
__device__ __forceinline__ int first_token(const Problem& p, int tile) {
  return min(tile * kTile, p.document_tokens - kTile);
}
inline void check_tokens(const Problem& p) {
  if (p.document_tokens > (kTilesADocument - 1) * kTile && p.document_tokens <= kTilesADocument * kTile) return;
  fprintf(stderr, "documents of %d tokens are not %d tiles of %d\n", p.document_tokens, kTilesADocument, kTile);
  exit(1);
}

// Starts 64 query rows x 104 document tokens x 128 features.
__device__ __forceinline__ void issue(Products& c, uint32_t queries, uint32_t documents) {
  const uint32_t a = ptx::wgmma_operand(queries), b = ptx::wgmma_operand(documents);
  ptx::wgmma_fence();
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k)
    ptx::Wgmma<__nv_bfloat16, kTile>::run(c, ptx::wgmma_descriptor(a, k / 4 * 64 * 128 + k % 4 * 32),
                                          ptx::wgmma_descriptor(b, k / 4 * kTile * 128 + k % 4 * 32), k > 0);
  ptx::wgmma_commit();
}

// The two rows of one tile that a thread holds.
struct RowMax {
  float best[2];
  __device__ __forceinline__ void reset() { best[0] = best[1] = -INFINITY; }
  __device__ __forceinline__ void take(const Products& c) {
    float odd[2] = {-INFINITY, -INFINITY};  // a second chain hides the latency of max
#pragma unroll
    for (int j = 0; j < kTile / 2; j += 4) {
      best[0] = fmaxf(best[0], c[j]);
      odd[0] = fmaxf(odd[0], c[j + 1]);
      best[1] = fmaxf(best[1], c[j + 2]);
      odd[1] = fmaxf(odd[1], c[j + 3]);
    }
    best[0] = fmaxf(best[0], odd[0]);
    best[1] = fmaxf(best[1], odd[1]);
  }
};

// The warp's query is done with `document`: writes the score and forgets the maxima.
__device__ __forceinline__ void finish(const Problem& p, RowMax (&rows)[2], int query, int document) {
  float sum = 0;
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
    sum += quad_max(rows[tile].best[0]) + quad_max(rows[tile].best[1]);
    rows[tile].reset();
  }
#pragma unroll
  for (int step = 4; step < 32; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
  if (threadIdx.x % 32 == 0 && query < p.query_count)
    p.scores[static_cast<int64_t>(query) * p.document_count + document] = sum;
}

}  // namespace ladder
