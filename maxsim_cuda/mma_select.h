// Tile shape and instantiation of the forward on mma.sync, one file for each kind of operand so that they compile side
// by side.
#pragma once

#include <cuda_runtime_api.h>

#include "../maxsim_common/problem.h"

namespace maxsim {
namespace cuda {

struct ForwardArgs;

// The architecture that this GPU's code was compiled for, 75 or above: PTX may run on a newer GPU than it is meant for.
int mma_arch();

// Whether operands are split in pairs of fp16, on any path with tensor cores; else they are multiplied as they are.
bool mma_splits(const Problem& problem);

// Of queries of `chunks` blocks each: whether the kernels of padded sides take them, and whether one thread block of
// theirs meets all blocks of a query, so that their sums need no memory.
bool mma_is_padded(const Problem& problem, int64_t chunks);
bool mma_sums_together(const Problem& problem, int64_t chunks);

void mma_select_bf16(const ForwardArgs& args, cudaStream_t stream);
void mma_select_f16(const ForwardArgs& args, cudaStream_t stream);
void mma_select_split(const ForwardArgs& args, cudaStream_t stream);
void mma_select(const ForwardArgs& args, cudaStream_t stream);

}  // namespace cuda
}  // namespace maxsim
