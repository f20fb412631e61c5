// The chain rule of normalised projections, row by row.
#include "check.h"
#include "device_problem.cuh"
#include "hidden.h"
#include "launch.h"

namespace maxsim {
namespace cuda {
namespace {

// A warp takes a row of at most 32 * 4 features, four neighbours a lane.
template <class T>
__global__ void __launch_bounds__(128)
    chain_rows(int64_t rows, int dim, const T* grad, const T* projected, const float* factors, T* out) {
  const int first = threadIdx.x % 32 * 4;
  for (int64_t row = int64_t{blockIdx.x} * 4 + threadIdx.x / 32; row < rows; row += int64_t{gridDim.x} * 4) {
    alignas(8) T g[4] = {}, u[4] = {};
    if (first < dim) {
      *reinterpret_cast<uint2*>(g) = *reinterpret_cast<const uint2*>(grad + row * dim + first);
      *reinterpret_cast<uint2*>(u) = *reinterpret_cast<const uint2*>(projected + row * dim + first);
    }
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
    if (first < dim) *reinterpret_cast<uint2*>(out + row * dim + first) = *reinterpret_cast<const uint2*>(g);
  }
}

}  // namespace

void hidden_chain(DType dtype, int64_t rows, int64_t dim, const void* grad, const void* projected, const float* factors,
                  void* out, cudaStream_t stream) {
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    chain_rows<T>
        <<<grid((rows + 3) / 4, 16), 128, 0, stream>>>(rows, static_cast<int>(dim), static_cast<const T*>(grad),
                                                       static_cast<const T*>(projected), factors, static_cast<T*>(out));
  };
  dtype == DType::f16 ? run(__half()) : run(__nv_bfloat16());
  check(cudaGetLastError(), "hidden_chain");
}

}  // namespace cuda
}  // namespace maxsim
