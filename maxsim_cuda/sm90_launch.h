// What the launcher of the Hopper forward offers, free of device code.
#pragma once

#include "launch.h"

namespace maxsim {
namespace cuda {

// Both sides fp16 or both bf16, d up to two swizzle atoms: decided by dtype and d alone, so that a pair takes the same
// path in every layout.
bool sm90_takes(const Problem& problem);
int64_t sm90_workspace(const Problem& problem);
void sm90_launch(const Problem& problem, float* scores, int32_t* argmax, void* workspace, cudaStream_t stream);

}  // namespace cuda
}  // namespace maxsim
