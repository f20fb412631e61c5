// The kernels on residual documents for bf16 centroids.
#include "residual_select.cuh"

namespace maxsim {
namespace cuda {

void residual_select_bf16(const ResidualArgs& args, cudaStream_t stream) { select<__nv_bfloat16>(args, stream); }

}  // namespace cuda
}  // namespace maxsim
