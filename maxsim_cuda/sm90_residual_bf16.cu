// The Hopper kernel on residual documents for bf16 centroids.
#include "sm90_residual_select.cuh"

namespace maxsim {
namespace cuda {

void sm90_residual_bf16(const ResidualArgs& args, const StreamGrid& grid, cudaStream_t stream) {
  stream_select<__nv_bfloat16>(args, grid, stream);
}

}  // namespace cuda
}  // namespace maxsim
