// Rung 0: one thread for each query token, plain multiply-adds, everything read from global memory.
#include "ladder.h"

namespace ladder {
namespace {

constexpr int kWarps = 4;

// A lane is a query token; each warp takes every fourth token of the document.
__global__ void __launch_bounds__(kWarps * 32) naive_kernel(Problem p) {
  __shared__ float best_of[kWarps][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int query = blockIdx.x, document = blockIdx.y;
  const __nv_bfloat16* q = p.queries + (query * kQueryTokens + lane) * kDim;
  float best = -INFINITY;
  for (int token = warp; token < p.document_tokens; token += kWarps) {
    const __nv_bfloat16* d = p.documents + (static_cast<int64_t>(document) * p.document_tokens + token) * kDim;
    float dot = 0;
    for (int k = 0; k < kDim; ++k) dot += __bfloat162float(q[k]) * __bfloat162float(d[k]);
    best = fmaxf(best, dot);
  }
  best_of[warp][lane] = best;
  __syncthreads();
  if (warp != 0) return;
  for (int other = 1; other < kWarps; ++other) best = fmaxf(best, best_of[other][lane]);
  for (int step = 16; step; step /= 2) best += __shfl_xor_sync(~0u, best, step);
  if (lane == 0) p.scores[static_cast<int64_t>(query) * p.document_count + document] = best;
}

}  // namespace

void naive(const Problem& problem) {
  naive_kernel<<<dim3(problem.query_count, problem.document_count), kWarps * 32>>>(problem);
  check(cudaGetLastError(), "naive");
}

}  // namespace ladder
