// Launches of the Hopper kernel on residual documents: included once for each type of centroids.
#pragma once

#include <algorithm>
#include <atomic>

#include "check.h"
#include "forward_args.cuh"
#include "launch.h"
#include "sm90_residual.cuh"
#include "sm90_residual_select.h"

namespace maxsim {
namespace cuda {
namespace {

template <class E, int kBits, bool kTable, int kBlocks, int kCode>
void launch_stream(const ResidualArgs& args, const StreamGrid& grid, cudaStream_t stream) {
  using C = Sm90Residual<kTable, kBlocks, kBits>;
  constexpr auto kernel = &sm90_residual<E, kBits, kTable, kBlocks, kCode>;
  static std::atomic<bool> allowed[kDevices];
  if (!allowed[current_device().index]) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, C::kBytes),
          "residual shared memory");
    allowed[current_device().index] = true;
  }
  residual_prologue<E, kBits, kTable, kBlocks>
      <<<static_cast<unsigned>(grid.prologue), kResidualThreads, 0, stream>>>(args);
  check(cudaGetLastError(), "residual_prologue");
  // Its blocks are there when the prologue's last ones end.
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid.blocks), static_cast<unsigned>(grid.groups));
  config.blockDim = dim3(kResidualThreads);
  config.dynamicSmemBytes = C::kBytes;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, args), "sm90_residual");
}

template <class E, int kBits, bool kTable, int kBlocks>
void stream_code(const ResidualArgs& args, const StreamGrid& grid, cudaStream_t stream) {
  switch (args.index.codes.bytes) {
    case 2:
      return launch_stream<E, kBits, kTable, kBlocks, 2>(args, grid, stream);
    case 4:
      return launch_stream<E, kBits, kTable, kBlocks, 4>(args, grid, stream);
    default:
      return launch_stream<E, kBits, kTable, kBlocks, 8>(args, grid, stream);
  }
}

template <class E, int kBits>
void stream_bits(const ResidualArgs& args, const StreamGrid& grid, cudaStream_t stream) {
  if constexpr (std::is_same<E, __half>::value)
    if (grid.table) return stream_code<E, kBits, true, 1>(args, grid, stream);
  if (grid.width == 1) return stream_code<E, kBits, false, 1>(args, grid, stream);
  stream_code<E, kBits, false, kStreamBlocks>(args, grid, stream);
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
