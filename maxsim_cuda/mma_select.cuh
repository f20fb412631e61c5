// The choice of a tile shape for mma.sync: included once for each kind of operand.
#pragma once

#include <algorithm>
#include <atomic>

#include "check.h"
#include "launch.h"
#include "mma_forward.cuh"
#include "mma_select.h"

namespace maxsim {
namespace cuda {
namespace {

// Stages of the ring, three or two, so that as many blocks share an SM as their registers allow: their waits hide
// each other. None where not even one block fits.
template <class C>
int stages_that_fit() {
  const Device& device = current_device();
  for (int blocks = C::kPerSm; blocks >= 1; --blocks)
    for (int stages = C::kStages; stages >= 2; --stages) {
      const int bytes = C::shared_bytes(stages) + static_cast<int>(sizeof(MmaShared<C>));
      if (bytes <= device.shared_bytes && blocks * (bytes + 1024) <= device.sm_shared_bytes) return stages;
    }
  return 0;
}

template <class C, class T, bool kArgmax>
void launch(const ForwardArgs& args, cudaStream_t stream) {
  const auto kernel = mma_forward<C, T, kArgmax>;
  const int stages = stages_that_fit<C>(), bytes = C::shared_bytes(stages);
  static std::atomic<int> known[kDevices];  // blocks an SM holds, which belongs to a device as attributes do
  int per_sm = known[current_device().index];
  if (!per_sm) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
          "shared memory of mma_forward");
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_sm, kernel, C::kThreads, bytes), "mma_forward");
    known[current_device().index] = per_sm = std::max(1, per_sm);
  }
  const bool cross = args.problem.pairing == Pairing::cross;
  const int64_t units = args.count * (cross ? ceil_div(args.block_count, C::kBlocks) : 1);
  kernel<<<static_cast<unsigned>(std::min<int64_t>(units, int64_t{current_device().sms} * per_sm)), C::kThreads, bytes,
           stream>>>(args, stages);
  check(cudaGetLastError(), "mma_forward");
}

// The first of the tile shapes that fits.
template <class T, class C, class... Narrower>
void launch_form(const ForwardArgs& args, cudaStream_t stream) {
  if constexpr (sizeof...(Narrower) > 0)
    if (!stages_that_fit<C>()) return launch_form<T, Narrower...>(args, stream);
  args.argmax ? launch<C, T, true>(args, stream) : launch<C, T, false>(args, stream);
}

bool streams(const ForwardArgs& args) {
  return args.problem.queries.dim > 2 * kChunk || args.problem.pairing == Pairing::list;
}

// Operands that are multiplied as they are.
template <class T>
void select_plain(const ForwardArgs& args, cudaStream_t stream) {
  const int64_t blocks = blocks_per_document(args);
  if (streams(args)) {
    if (blocks <= MmaLean<true>::kBlocks) return launch_form<T, MmaLean<true>>(args, stream);
    return launch_form<T, MmaWideStream, MmaLean<true>>(args, stream);
  }
  if (blocks <= MmaLean<false>::kBlocks) return launch_form<T, MmaLean<false>>(args, stream);
  if (blocks <= MmaMiddle::kBlocks) return launch_form<T, MmaMiddle>(args, stream);
  launch_form<T, MmaWide, MmaMiddle>(args, stream);
}

}  // namespace
}  // namespace cuda
}  // namespace maxsim
