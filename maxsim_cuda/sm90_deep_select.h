// Tile shape and instantiation of the Hopper forward for long rows, one file for each dtype.
#pragma once

#include <cuda_runtime_api.h>

#include "../maxsim_common/problem.h"

namespace maxsim {
namespace cuda {

struct ForwardArgs;

// Whatever is not stored. Some of what no tensor map describes of 16-bit features runs on mma.sync then, which adds the
// same products and squares in the same order, to the same bits.
inline bool sm90_takes_deep(const Problem& problem) {
  return problem.queries.dim > 128 && !is_stored(problem.queries.dtype) && !is_stored(problem.documents.dtype);
}

void sm90_select_deep_bf16(const ForwardArgs& args, cudaStream_t stream);
void sm90_select_deep_split(const ForwardArgs& args, cudaStream_t stream);
void sm90_select_deep_f16(const ForwardArgs& args, cudaStream_t stream);
void sm90_select_deep(const ForwardArgs& args, cudaStream_t stream);

}  // namespace cuda
}  // namespace maxsim
