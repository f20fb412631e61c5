// The Hopper kernel on residual documents for f16 centroids.
#include "sm90_residual_select.cuh"

namespace maxsim {
namespace cuda {

void sm90_residual_f16(const ResidualArgs& args, const StreamGrid& grid, cudaStream_t stream) {
  stream_select<__half>(args, grid, stream);
}

}  // namespace cuda
}  // namespace maxsim
