// The rate of mma.sync by itself: products of registers, with no load and no max between them.
#include "mma.cuh"

namespace ladder {
namespace {

constexpr int kSteps = 4096, kProducts = 8, kWarps = 16;

__global__ void __launch_bounds__(kWarps * 32) alone_kernel(float* sink) {
  float c[kProducts][4] = {};
  const uint32_t bits = 0x3f803f80u + threadIdx.x;  // pairs of numbers near one
  const uint32_t a[4] = {bits, bits + 1, bits + 2, bits + 3};
  for (int step = 0; step < kSteps; ++step)
#pragma unroll
    for (int i = 0; i < kProducts; ++i) mma(c[i], a, bits + i, bits - i);
  float sum = 0;
  for (int i = 0; i < kProducts; ++i) sum += c[i][0] + c[i][1] + c[i][2] + c[i][3];
  if (sum == 0) *sink = sum;  // never: what nobody reads would not be computed
}

}  // namespace

double mma_sync_alone(float* sink) {
  alone_kernel<<<sm_count(), kWarps * 32>>>(sink);
  check(cudaGetLastError(), "mma_sync_alone");
  return 2.0 * 16 * 8 * 16 * kSteps * kProducts * kWarps * sm_count();
}

}  // namespace ladder
