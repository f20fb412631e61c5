// The CUDA backend's entries for residual documents. They only enqueue work on `stream`.
#pragma once

#include <cuda_runtime_api.h>

#include "../maxsim_common/residuals.h"
#include "launch.h"

namespace maxsim {
namespace cuda {

// Scratch memory a call needs, in bytes; 256-byte aligned.
int64_t residual_workspace(const Problem& problem, const Residuals& residuals, Path path);
void residual_forward(const Problem& problem, const Residuals& residuals, Path path, float* scores, int32_t* argmax,
                      void* workspace, cudaStream_t stream);

// Approximate scores: cpu/residual.h says what of.
void approx_forward(const Problem& problem, const Approximation& approximation, float* scores, cudaStream_t stream);

}  // namespace cuda
}  // namespace maxsim
