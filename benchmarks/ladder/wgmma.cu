// Rung 2: the warpgroup's product reads both operands from shared memory, 128 query rows a block; document tiles come
// by ordinary loads, in turns with the products.
#include "hopper.cuh"

namespace ladder {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads) wgmma_kernel(Problem p) {
  extern __shared__ __align__(1024) char shared[];
  char* tile = shared + kGroupBytes;
  const int query = blockIdx.x * kQueriesAGroup + threadIdx.x / 32;
  load_queries(shared, p, 1, threadIdx.x, kThreads);
  RowMax rows[2];
  rows[0].reset();
  rows[1].reset();
  for (int document = blockIdx.y; document < p.document_count; document += gridDim.y) {
    const auto* d =
        reinterpret_cast<const uint4*>(p.documents) + static_cast<int64_t>(document) * p.document_tokens * (kDim / 8);
    for (int t = 0; t < kTilesADocument; ++t) {
      __syncthreads();  // the products of the tile before have read it
      for (int i = threadIdx.x; i < kTile * 16; i += kThreads)
        *swizzled(tile, kTile, i / 16, i % 16) = d[first_token(p, t) * 16 + i];
      ptx::fence_async_proxy();
      __syncthreads();
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        Products c;
        issue(c, ptx::shared_address(shared) + r * kRowTileBytes, ptx::shared_address(tile));
        ptx::wgmma_wait<0>();
        ptx::wgmma_settled(c);
        rows[r].take(c);
      }
    }
    finish(p, rows, query, document);
  }
}

}  // namespace

void wgmma(const Problem& problem) {
  check_tokens(problem);
  launch(wgmma_kernel, problem, kQueriesAGroup, kThreads, kGroupBytes + kTileBytes);
}

}  // namespace ladder
