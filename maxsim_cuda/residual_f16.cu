// The kernels on residual documents for fp16 centroids.
#include "residual_select.cuh"

namespace maxsim {
namespace cuda {

void residual_select_f16(const ResidualArgs& args, cudaStream_t stream) { select<__half>(args, stream); }

}  // namespace cuda
}  // namespace maxsim
