// Launches of kernels that begin with wait_for_prior_kernel(): on Hopper and later their blocks are there when the
// kernel before them ends.
#pragma once

#include <type_traits>

#include "check.h"
#include "launch.h"

namespace maxsim {
namespace cuda {

template <class... Params, class... Args>
void launch_after(const char* name, void (*kernel)(Params...), dim3 blocks, int threads, size_t bytes,
                  cudaStream_t stream, const Args&... args) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = current_device().major >= 9;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<std::remove_cv_t<Params>>(args)...), name);
}

}  // namespace cuda
}  // namespace maxsim
