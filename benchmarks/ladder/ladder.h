// The problem that every rung solves and what the rungs share on the host: scores of each query with each document,
// 32 query tokens, d = 128, bf16, padded.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace ladder {

constexpr int kDim = 128;
constexpr int kQueryTokens = 32;

struct Problem {
  const __nv_bfloat16* queries;    // [query_count, 32, 128]
  const __nv_bfloat16* documents;  // [document_count, document_tokens, 128]
  float* scores;                   // [query_count, document_count]
  int query_count, document_count, document_tokens;
};

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  exit(1);
}

inline int sm_count() {
  int device = 0, count = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "multiprocessors");
  return count;
}

// A grid of (groups of queries) x (ranges of documents) that fills the chip once. A block keeps its queries and walks
// through the documents blockIdx.y, blockIdx.y + gridDim.y and so on.
inline dim3 fill_chip(int groups, int documents, int blocks_per_sm) {
  const int slots = sm_count() * blocks_per_sm;
  const int ranges = slots / groups > 1 ? slots / groups : 1;
  return dim3(groups, ranges < documents ? ranges : documents);
}

// Launches `kernel` with `shared` bytes, filling the chip with as many blocks as fit an SM.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const Problem& problem, int queries_a_block, int threads, int shared,
            Arguments... arguments) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared), "shared memory");
  int blocks_per_sm = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks_per_sm, kernel, threads, shared), "occupancy");
  const int groups = (problem.query_count + queries_a_block - 1) / queries_a_block;
  kernel<<<fill_chip(groups, problem.document_count, blocks_per_sm), threads, shared>>>(problem, arguments...);
  check(cudaGetLastError(), "launch");
}

// One function a rung, each in the file of its name; a launch is asynchronous on the default stream.
void naive(const Problem& problem);
void mma_sync(const Problem& problem);
void wgmma(const Problem& problem);
void tma_ring(const Problem& problem);
void ping_pong(const Problem& problem);
void query_reuse(const Problem& problem);

// Floating-point operations of the instruction alone, on registers, which nothing can exceed; asynchronous as well.
double mma_sync_alone(float* sink);

}  // namespace ladder
