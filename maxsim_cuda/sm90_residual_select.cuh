// Launches of the Hopper kernel on residual documents: included once for each type of centroids.
#pragma once

#include <algorithm>
#include <atomic>

#include "check.h"
#include "forward_args.cuh"
#include "launch.h"
#include "sm90_residual.cuh"
#include "sm90_residual_select.h"
#include "sm90_residual_table.cuh"

namespace maxsim {
namespace cuda {
namespace {

template <auto* kPrologue, auto* kKernel>
void launch_stream(const ResidualArgs& args, const StreamGrid& grid, int bytes, cudaStream_t stream) {
  static std::atomic<bool> allowed[kDevices];
  if (!allowed[current_device().index]) {
    check(cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "residual shared memory");
    allowed[current_device().index] = true;
  }
  const dim3 before(static_cast<unsigned>(grid.prologue), static_cast<unsigned>(grid.table ? grid.groups : 1));
  kPrologue<<<before, kResidualThreads, 0, stream>>>(args);
  check(cudaGetLastError(), "residual_prologue");
  // Its blocks are there when the prologue's last ones end.
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid.blocks), static_cast<unsigned>(grid.groups));
  config.blockDim = dim3(kResidualThreads);
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kKernel, args), "sm90_residual");
}

template <class E, int kBits, int kCode>
void stream_code(const ResidualArgs& args, const StreamGrid& grid, cudaStream_t stream) {
  if constexpr (std::is_same<E, __half>::value)
    if (grid.table)
      return launch_stream<&residual_prologue<E, kBits, true, 1>, &sm90_residual_table<kBits, kCode>>(
          args, grid, Sm90ResidualTable::kBytes, stream);
  if (grid.width == 1)
    return launch_stream<&residual_prologue<E, kBits, false, 1>, &sm90_residual<E, kBits, 1, kCode>>(
        args, grid, Sm90Residual<1, kBits>::kBytes, stream);
  launch_stream<&residual_prologue<E, kBits, false, kStreamBlocks>, &sm90_residual<E, kBits, kStreamBlocks, kCode>>(
      args, grid, Sm90Residual<kStreamBlocks, kBits>::kBytes, stream);
}

template <class E, int kBits>
void stream_bits(const ResidualArgs& args, const StreamGrid& grid, cudaStream_t stream) {
  switch (args.index.codes.bytes) {
    case 2:
      return stream_code<E, kBits, 2>(args, grid, stream);
    case 4:
      return stream_code<E, kBits, 4>(args, grid, stream);
    default:
      return stream_code<E, kBits, 8>(args, grid, stream);
  }
}

template <class E>
void stream_select(const ResidualArgs& args, const StreamGrid& grid, cudaStream_t stream) {
  switch (args.index.nbits) {
    case 1:
      return stream_bits<E, 1>(args, grid, stream);
    case 2:
      return stream_bits<E, 2>(args, grid, stream);
    case 4:
      return stream_bits<E, 4>(args, grid, stream);
    default:
      return stream_bits<E, 8>(args, grid, stream);
  }
}

}  // namespace
}  // namespace cuda
}  // namespace maxsim
