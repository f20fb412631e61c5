// Rung 1: tensor cores through mma.sync, operands from shared memory through ldmatrix, loads and products in turns.
#include "mma.cuh"

namespace ladder {
namespace {

constexpr int kTile = 64;       // document tokens in shared memory at a time, 16 a warp
constexpr int kRow = kDim + 8;  // 16 bytes of padding: the eight rows of an ldmatrix fall into different banks
constexpr int kThreads = 128;

__device__ void load_rows(__nv_bfloat16 (*to)[kRow], const __nv_bfloat16* from, int rows) {
  for (int i = threadIdx.x; i < rows * (kDim / 8); i += kThreads)
    *reinterpret_cast<uint4*>(&to[i / 16][i % 16 * 8]) = reinterpret_cast<const uint4*>(from)[i];
}

// One query a block: its 32 tokens are two m16 tiles, whose operands stay in registers for all documents.
__global__ void __launch_bounds__(kThreads) mma_sync_kernel(Problem p) {
  __shared__ __nv_bfloat16 tile[kTile][kRow];
  __shared__ float best_of[4][kQueryTokens];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  load_rows(tile, p.queries + blockIdx.x * kQueryTokens * kDim, kQueryTokens);
  __syncthreads();
  uint32_t query[2][kDim / 16][4];
  for (int m = 0; m < 2; ++m)
    for (int k = 0; k < kDim / 16; ++k) ldmatrix(query[m][k], &tile[m * 16 + lane % 16][k * 16 + lane / 16 * 8]);

  for (int document = blockIdx.y; document < p.document_count; document += gridDim.y) {
    const __nv_bfloat16* d = p.documents + static_cast<int64_t>(document) * p.document_tokens * kDim;
    float best[2][2] = {{-INFINITY, -INFINITY}, {-INFINITY, -INFINITY}};
    for (int first = 0; first < p.document_tokens; first += kTile) {
      __syncthreads();
      const int rows = min(kTile, p.document_tokens - first);
      load_rows(tile, d + first * kDim, rows);
      __syncthreads();
      float c[2][2][4] = {};  // m16 tile, n8 tile, accumulator
#pragma unroll
      for (int k = 0; k < kDim / 16; ++k) {
        uint32_t b[4];  // both halves of k for tokens 0 - 7, then for 8 - 15
        ldmatrix(b, &tile[warp * 16 + lane / 16 * 8 + lane % 8][k * 16 + lane / 8 % 2 * 8]);
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int n = 0; n < 2; ++n) mma(c[m][n], query[m][k], b[2 * n], b[2 * n + 1]);
      }
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          if (warp * 16 + n * 8 + lane % 4 * 2 + e < rows)
#pragma unroll
            for (int m = 0; m < 2; ++m)
#pragma unroll
              for (int half = 0; half < 2; ++half) best[m][half] = fmaxf(best[m][half], c[m][n][half * 2 + e]);
    }
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float row = quad_max(best[m][half]);
        if (lane % 4 == 0) best_of[warp][m * 16 + half * 8 + lane / 4] = row;
      }
    __syncthreads();
    if (warp == 0) {
      float row = best_of[0][lane];
      for (int other = 1; other < 4; ++other) row = fmaxf(row, best_of[other][lane]);
      for (int step = 16; step; step /= 2) row += __shfl_xor_sync(~0u, row, step);
      if (lane == 0) p.scores[static_cast<int64_t>(blockIdx.x) * p.document_count + document] = row;
    }
  }
}

}  // namespace

void mma_sync(const Problem& problem) { launch(mma_sync_kernel, problem, 1, kThreads, 0); }

}  // namespace ladder
