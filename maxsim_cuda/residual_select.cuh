// Launches of the kernels on residual documents: included once for each type of centroids, to compile side by side.
#pragma once

#include <algorithm>
#include <atomic>

#include "check.h"
#include "forward_args.cuh"
#include "launch.h"
#include "launch_after.cuh"
#include "residual_batch.cuh"
#include "residual_select.h"

namespace maxsim {
namespace cuda {
namespace {

// Blocks that the whole GPU holds of a kernel, asked once for each device.
template <class Kernel>
int resident_blocks(Kernel* kernel, int bytes, std::atomic<int> (&known)[kDevices]) {
  const Device& device = current_device();
  int per_sm = known[device.index];
  if (!per_sm) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "residual shared memory");
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_sm, kernel, kResidualThreads, bytes), "residual kernel");
    known[device.index] = per_sm = std::max(1, per_sm);
  }
  return per_sm * device.sms;
}

// Whether documents are shared by all warps of a block, or each has its own: whichever leaves fewer steps one after
// another. To begin a document and to end it takes as long as a few of them.
template <class C>
int residual_team(const Problem& problem, int64_t items, int64_t warps) {
  constexpr int64_t kAround = 4;
  const Segments& documents = problem.documents;
  const int64_t tokens =
      documents.packed() ? ceil_div(documents.extent, std::max<int64_t>(1, documents.count)) : documents.extent;
  const auto steps = [&](int64_t team) {
    return ceil_div(items * team, warps) * (kAround + ceil_div(tokens, 16 * C::kTiles * team));
  };
  return steps(1) <= steps(kResidualWarps) ? 1 : kResidualWarps;
}

template <class C, auto* kKernel>
void launch(ResidualArgs args, int64_t items, int64_t groups, cudaStream_t stream) {
  static std::atomic<int> known[kDevices];
  constexpr int bytes = residual_shared_bytes<C>();
  const int64_t blocks = std::max<int64_t>(1, resident_blocks(kKernel, bytes, known) / groups);
  args.team = residual_team<C>(args.problem, items, blocks * kResidualWarps);
  const int64_t wanted = ceil_div(items, kResidualWarps / args.team);
  const dim3 grid(static_cast<unsigned>(std::min(wanted, blocks)), static_cast<unsigned>(groups));
  launch_after("residual kernel", kKernel, grid, kResidualThreads, bytes, stream, args);
}

constexpr int64_t kMaxGroups = 65535;

template <class E, int kBits>
void select_bits(const ResidualArgs& args, cudaStream_t stream) {
  const Problem& problem = args.problem;
  const int64_t queries = problem.queries.count, per_group = ResidualBatch::kBlocks / std::max(1, args.chunks);
  constexpr int batch_bytes = residual_shared_bytes<ResidualBatch>() + static_cast<int>(sizeof(BatchShared));
  const bool several = queries * args.chunks > 1 && per_group > 0 && ceil_div(queries, per_group) <= kMaxGroups &&
                       batch_bytes <= current_device().shared_bytes;  // not on Turing
  const bool batch = several && problem.pairing == Pairing::cross && !args.argmax;
  const bool whole = args.aligned && args.index.dim == kMaxResidualDim && !problem.documents.mask;
  const int64_t documents = problem.documents.count, groups = per_group ? ceil_div(queries, per_group) : 0;
  if (!whole)
    return batch ? launch<ResidualBatch, &residual_batch<E, kBits, false>>(args, documents, groups, stream)
                 : launch<ResidualSingle, &residual_single<E, kBits, true, false>>(args, problem.pairs, 1, stream);
  if (batch) return launch<ResidualBatch, &residual_batch<E, kBits, true>>(args, documents, groups, stream);
  if (args.argmax)
    return launch<ResidualSingle, &residual_single<E, kBits, true, true>>(args, problem.pairs, 1, stream);
  launch<ResidualSingle, &residual_single<E, kBits, false, true>>(args, problem.pairs, 1, stream);
}

template <class E>
void select(const ResidualArgs& args, cudaStream_t stream) {
  switch (args.index.nbits) {
    case 1:
      return select_bits<E, 1>(args, stream);
    case 2:
      return select_bits<E, 2>(args, stream);
    case 4:
      return select_bits<E, 4>(args, stream);
    default:
      return select_bits<E, 8>(args, stream);
  }
}

}  // namespace
}  // namespace cuda
}  // namespace maxsim
