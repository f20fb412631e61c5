// What the launcher of the tiled forwards offers, free of device code.
#pragma once

#include "launch.h"

namespace maxsim {
namespace cuda {

int64_t tiled_workspace(const Problem& problem, Path path);
void tiled_forward(const Problem& problem, Path path, bool allow_tf32, float* scores, int32_t* argmax, void* workspace,
                   cudaStream_t stream);

}  // namespace cuda
}  // namespace maxsim
