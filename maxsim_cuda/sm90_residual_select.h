// The Hopper kernel on residual documents: what it takes, and the scratch memory that it needs.
#pragma once

#include <cuda_runtime_api.h>

#include <cmath>

#include "../maxsim_common/residuals.h"
#include "launch.h"

namespace maxsim {
namespace cuda {

struct ResidualArgs;

// Blocks of query rows that share what is decompressed, groups of them, and blocks of threads for each group.
struct StreamGrid {
  int width = 0;
  int64_t groups = 0, blocks = 0, prologue = 0;
  bool table = false;
  int64_t bytes = 0;  // of scratch memory
};

// Of no groups where another kernel has to score these documents: the tensor cores' operands are asked for already.
StreamGrid sm90_residual_grid(const Problem& problem, const Residuals& residuals, int64_t chunks);
// `args` without a plan; `workspace` of the grid's bytes.
void sm90_residual(ResidualArgs args, const StreamGrid& grid, void* workspace, cudaStream_t stream);

void sm90_residual_f16(const ResidualArgs& args, const StreamGrid& grid, cudaStream_t stream);
void sm90_residual_bf16(const ResidualArgs& args, const StreamGrid& grid, cudaStream_t stream);

}  // namespace cuda
}  // namespace maxsim
