// Tile shape and instantiation of the Hopper forward for long rows, one file for each dtype.
#pragma once

#include <cuda_runtime_api.h>

#include "../maxsim_common/problem.h"

namespace maxsim {
namespace cuda {

struct ForwardArgs;

// Both sides multiplied as they are. What no tensor map describes runs on mma.sync then, which adds the same products
// in the same order, to the same bits.
inline bool sm90_takes_deep(const Problem& problem) {
  const DType type = problem.queries.dtype;
  return problem.queries.dim > 128 && (type == DType::f16 || type == DType::bf16) && problem.documents.dtype == type &&
         !problem.normalize;
}

void sm90_select_deep_bf16(const ForwardArgs& args, cudaStream_t stream);
void sm90_select_deep_f16(const ForwardArgs& args, cudaStream_t stream);
void sm90_select_deep(const ForwardArgs& args, cudaStream_t stream);

}  // namespace cuda
}  // namespace maxsim
