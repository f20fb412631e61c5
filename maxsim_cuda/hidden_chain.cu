// The chain rule of normalised projections, row by row, and the sum of all rows on the way.
#include "check.h"
#include "device_problem.cuh"
#include "hidden.h"
#include "launch.h"

namespace maxsim {
namespace cuda {
namespace {

constexpr int kThreads = 512, kWarps = kThreads / 32, kFeatures = 128;  // at most: four neighbours a lane
constexpr int kSumThreads = 1024, kSumGroups = kSumThreads / kFeatures;

unsigned chain_blocks(int64_t rows) { return grid((rows + kWarps - 1) / kWarps, 2048 / kThreads); }

// A warp takes a row. `projected` null leaves rows as they are; `partials` [blocks, dim] may be null.
template <class T>
__global__ void __launch_bounds__(kThreads)
    chain_rows(int64_t rows, int dim, T* grad, const T* projected, const float* factors, float* partials) {
  __shared__ float sums[kWarps][kFeatures];
  const int first = threadIdx.x % 32 * 4, warp = threadIdx.x / 32;
  float total[4] = {};
  for (int64_t row = int64_t{blockIdx.x} * kWarps + warp; row < rows; row += int64_t{gridDim.x} * kWarps) {
    alignas(8) T g[4] = {}, u[4] = {};
    if (first < dim) *reinterpret_cast<uint2*>(g) = *reinterpret_cast<const uint2*>(grad + row * dim + first);
    if (projected) {
      if (first < dim) *reinterpret_cast<uint2*>(u) = *reinterpret_cast<const uint2*>(projected + row * dim + first);
      float dot = 0.f;
#pragma unroll
      for (int i = 0; i < 4; ++i) dot = fmaf(static_cast<float>(g[i]), static_cast<float>(u[i]), dot);
#pragma unroll
      for (int step = 1; step <= 16; step *= 2) dot += __shfl_xor_sync(~0u, dot, step);
      const float inverse = factors[row];
      if (!(inverse < 1.f / kNormEps)) dot = 0.f;  // too short to be divided by its norm: only the scale is left
#pragma unroll
      for (int i = 0; i < 4; ++i)
        g[i] = static_cast<T>(inverse * fmaf(-dot, static_cast<float>(u[i]), static_cast<float>(g[i])));
      if (first < dim) *reinterpret_cast<uint2*>(grad + row * dim + first) = *reinterpret_cast<const uint2*>(g);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) total[i] += static_cast<float>(g[i]);
  }
  if (!partials) return;
#pragma unroll
  for (int i = 0; i < 4; ++i) sums[warp][first + i] = total[i];
  __syncthreads();
  if (static_cast<int>(threadIdx.x) >= dim) return;
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) sum += sums[i][threadIdx.x];
  partials[int64_t{blockIdx.x} * dim + threadIdx.x] = sum;
}

__global__ void __launch_bounds__(kSumThreads) sum_partials(int blocks, int dim, const float* partials, float* out) {
  __shared__ float sums[kSumGroups][kFeatures];
  const int feature = threadIdx.x % kFeatures, group = threadIdx.x / kFeatures;
  float sum = 0.f;
  if (feature < dim)
#pragma unroll 8
    for (int block = group; block < blocks; block += kSumGroups) sum += partials[block * dim + feature];
  sums[group][feature] = sum;
  __syncthreads();
  if (static_cast<int>(threadIdx.x) >= dim) return;
#pragma unroll
  for (int i = 1; i < kSumGroups; ++i) sum += sums[i][threadIdx.x];
  out[threadIdx.x] = sum;
}

}  // namespace

int64_t hidden_chain_workspace(int64_t rows, int64_t dim) {
  return int64_t{chain_blocks(rows)} * dim * static_cast<int64_t>(sizeof(float));
}

void hidden_chain(DType dtype, int64_t rows, int64_t dim, void* grad, const void* projected, const float* factors,
                  float* sum, void* workspace, cudaStream_t stream) {
  const unsigned blocks = chain_blocks(rows);
  float* partials = sum ? static_cast<float*>(workspace) : nullptr;
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    chain_rows<T><<<blocks, kThreads, 0, stream>>>(rows, static_cast<int>(dim), static_cast<T*>(grad),
                                                   static_cast<const T*>(projected), factors, partials);
  };
  dtype == DType::f16 ? run(__half()) : run(__nv_bfloat16());
  if (sum) sum_partials<<<1, kSumThreads, 0, stream>>>(static_cast<int>(blocks), static_cast<int>(dim), partials, sum);
  check(cudaGetLastError(), "hidden_chain");
}

}  // namespace cuda
}  // namespace maxsim
