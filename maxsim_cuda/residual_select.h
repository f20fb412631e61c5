// Instantiations of the kernels on residual documents, one file for each type of centroids.
#pragma once

#include <cuda_runtime_api.h>

namespace maxsim {
namespace cuda {

struct ResidualArgs;

void residual_select_f16(const ResidualArgs& args, cudaStream_t stream);
void residual_select_bf16(const ResidualArgs& args, cudaStream_t stream);

}  // namespace cuda
}  // namespace maxsim
