// The choice of a tile shape for mma.sync: included once for each kind of operand.
#pragma once

#include <algorithm>
#include <map>
#include <mutex>
#include <utility>

#include "check.h"
#include "launch.h"
#include "mma_dense.cuh"
#include "mma_padded.cuh"
#include "mma_forward.cuh"
#include "mma_rows.cuh"
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

// Blocks of a kernel that an SM holds. Asked of the driver once, for each device, as attributes belong to one: a kernel
// always has the same shared memory there.
template <class Kernel>
int blocks_an_sm(Kernel kernel, int threads, int bytes) {
  static std::mutex guard;
  static std::map<std::pair<const void*, int>, int> known;
  const std::lock_guard<std::mutex> lock(guard);
  int& blocks = known[{reinterpret_cast<const void*>(kernel), current_device().index}];
  if (!blocks) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
          "shared memory of a kernel");
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, bytes), "blocks of a kernel");
    blocks = std::max(1, blocks);
  }
  return blocks;
}

template <class C, class T, bool kArgmax>
void launch(const ForwardArgs& args, cudaStream_t stream) {
  const auto kernel = mma_forward<C, T, kArgmax>;
  const int stages = stages_that_fit<C>(), bytes = C::shared_bytes(stages);
  const int per_sm = blocks_an_sm(kernel, C::kThreads, bytes);
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

// Tokens of a tile, a multiple of kColumns: as many as leave room for kPerSm blocks, so that what a tile costs by
// itself is shared by many. Fewer blocks where not even the narrowest fits as often.
template <class C>
int width_that_fits() {
  const Device& device = current_device();
  for (int width = C::N;; width -= C::kColumns) {
    const int bytes = C::shared_bytes(width) + static_cast<int>(sizeof(MmaRowsShared<C>));
    if (width == C::kColumns || (bytes <= device.shared_bytes && C::kPerSm * (bytes + 1024) <= device.sm_shared_bytes))
      return width;
  }
}

template <class C, class T, bool kArgmax>
void launch_rows(const ForwardArgs& args, cudaStream_t stream) {
  const auto kernel = mma_rows_forward<C, T, kArgmax>;
  const int width = width_that_fits<C>(), bytes = C::shared_bytes(width);
  const bool cross = args.problem.pairing == Pairing::cross;
  const int64_t units = args.count * (cross ? ceil_div(args.block_count, C::kWarps) : 1);
  const int64_t places = int64_t{current_device().sms} * blocks_an_sm(kernel, C::kThreads, bytes);
  kernel<<<static_cast<unsigned>(std::min(units, places)), C::kThreads, bytes, stream>>>(args, width);
  check(cudaGetLastError(), "mma_rows_forward");
}

template <class C, class T>
void launch_rows_form(const ForwardArgs& args, cudaStream_t stream) {
  args.argmax ? launch_rows<C, T, true>(args, stream) : launch_rows<C, T, false>(args, stream);
}

// Warps of a block, of which kPerSm or fewer share an SM: as have most rings in all.
template <class C>
int warps_that_fit() {
  const Device& device = current_device();
  constexpr int kBeside = static_cast<int>(sizeof(MmaDenseShared<C>));
  int best = 1, most = 0;
  for (int blocks = C::kPerSm; blocks >= 1; --blocks) {
    const int room = std::min(device.shared_bytes, device.sm_shared_bytes / blocks - 1024) - kBeside;
    const int warps = std::min(C::kMostWarps, room / C::kRingBytes);
    if (blocks * warps > most) most = blocks * warps, best = warps;
  }
  return best;
}

template <class C, class T>
void launch_dense(const ForwardArgs& args, cudaStream_t stream) {
  const auto kernel = mma_dense_forward<C, T>;
  const int warps = warps_that_fit<C>(), bytes = warps * C::kRingBytes;
  MmaDenseArgs dense{PaddedSides(args.problem)};
  dense.scores = args.scores;
  dense.units = static_cast<uint32_t>(args.problem.documents.count);
  const bool cross = args.problem.pairing == Pairing::cross;
  dense.of_a_query = static_cast<uint32_t>(cross ? args.problem.documents.count : args.problem.documents.inner);
  const int64_t blocks =
      std::min<int64_t>(dense.units, int64_t{current_device().sms} * blocks_an_sm(kernel, warps * 32, bytes));
  dense.share = static_cast<uint32_t>(dense.units / blocks);
  dense.pass_through = is_short_stream(args.problem.documents);
  kernel<<<static_cast<unsigned>(blocks), warps * 32, bytes, stream>>>(dense);
  check(cudaGetLastError(), "mma_dense_forward");
}

// A ring of as wide tiles as leave room for kPerSm blocks, of three tiles if these are not too narrow for it.
struct PaddedRing {
  int width, stages, bytes;
};
template <class C, PaddedForm kForm>
PaddedRing padded_ring() {
  constexpr int kNarrow = 96;
  const Device& device = current_device();
  for (int stages = C::kStages;; --stages)
    for (int width = C::kMostColumns; width >= C::kTogether; width -= C::kTogether) {
      const int bytes = stages * width * C::kPitch, all = bytes + static_cast<int>(sizeof(MmaPaddedShared<C, kForm>));
      const bool fits = all <= device.shared_bytes && C::kPerSm * (all + 1024) <= device.sm_shared_bytes;
      if (stages == C::kAhead ? fits || width == C::kTogether : fits && width >= kNarrow) return {width, stages, bytes};
    }
}

template <class C>
int64_t padded_units(const ForwardArgs& args) {
  return args.count * (args.problem.pairing == Pairing::cross ? ceil_div(args.block_count, C::kBlocks) : 1);
}

template <class C, class T, PaddedForm kForm>
void launch_padded(const ForwardArgs& args, cudaStream_t stream) {
  static_assert(C::kColumns <= MmaDenseConfig<C::kSteps>::N, "mma_is_padded asks for documents of as many tokens");
  const auto kernel = mma_padded_forward<C, T, kForm>;
  MmaPaddedArgs padded{PaddedSides(args.problem)};
  const PaddedRing ring = padded_ring<C, kForm>();
  const int64_t tiles = ceil_div(padded.tokens, ring.width);  // of a document, and alike
  padded.width = static_cast<int32_t>(ceil_div(ceil_div(padded.tokens, tiles), C::kTogether) * C::kTogether);
  padded.stages = ring.stages;
  padded.forward = args;
  padded.cross = args.problem.pairing == Pairing::cross;
  padded.blocks = static_cast<uint32_t>(args.block_count);
  padded.of_a_group = static_cast<uint32_t>(padded.cross ? args.count : args.problem.documents.inner);
  padded.units = static_cast<uint32_t>(padded_units<C>(args));
  padded.documents += args.first * padded.document_stride;
  const int64_t places = int64_t{current_device().sms} * blocks_an_sm(kernel, C::kThreads, ring.bytes);
  const int64_t blocks = std::min<int64_t>(padded.units, places);
  padded.share = static_cast<uint32_t>(padded.units / blocks);
  kernel<<<static_cast<unsigned>(blocks), C::kThreads, ring.bytes, stream>>>(padded);
  check(cudaGetLastError(), "mma_padded_forward");
}

// As many rows as there are, where that leaves each SM something to do and the sums of a query in one thread block.
template <class T, int kSteps, PaddedForm kForm>
void select_padded(const ForwardArgs& args, cudaStream_t stream) {
  using Two = MmaPaddedConfig<4, kSteps>;
  using Four = MmaPaddedConfig<2, kSteps>;
  using Eight = MmaPaddedConfig<1, kSteps>;
  static_assert(Eight::kBlocks == kMostChunksAlone, "a query with documents of its own is in one thread block");
  const int64_t blocks = blocks_per_document(args), together = args.partials ? 1 : args.chunks;
  const int64_t sms = current_device().sms;
  if (together > 4 || (blocks > 4 && padded_units<Eight>(args) >= sms))
    return launch_padded<Eight, T, kForm>(args, stream);
  if (together > 2 || (blocks > 2 && padded_units<Four>(args) >= sms))
    return launch_padded<Four, T, kForm>(args, stream);
  launch_padded<Two, T, kForm>(args, stream);
}

template <class T, int kSteps>
void select_rows(const ForwardArgs& args, cudaStream_t stream) {
  const int64_t blocks = blocks_per_document(args);
  const bool whole = args.problem.queries.whole() && args.problem.documents.whole(), normalize = args.problem.normalize;
  if (mma_is_padded(args.problem, args.chunks)) {
    if (blocks > 1 && normalize) return select_padded<T, kSteps, PaddedForm::normed>(args, stream);
    // Under one block, half of the rows are idle. Of long rows, what is padding and not read makes up for it.
    const bool ragged = kSteps > 2 && !args.problem.documents.whole();
    if (!whole && !normalize && (blocks > 1 || ragged))
      return select_padded<T, kSteps, PaddedForm::marked>(args, stream);
    if (blocks > 1) return select_padded<T, kSteps, PaddedForm::plain>(args, stream);
    if (whole && !normalize) return launch_dense<MmaDenseConfig<kSteps>, T>(args, stream);
  }
  if (blocks <= 1) return launch_rows_form<MmaRowsLean<kSteps>, T>(args, stream);
  launch_rows_form<MmaRowsWide<kSteps>, T>(args, stream);
}

// Operands that are multiplied as they are.
template <class T>
void select_plain(const ForwardArgs& args, cudaStream_t stream) {
  const int64_t dim = args.problem.queries.dim;
  if (dim <= 2 * kStepFeatures) return select_rows<T, 2>(args, stream);
  if (dim <= 4 * kStepFeatures) return select_rows<T, 4>(args, stream);
  if (blocks_per_document(args) <= MmaLeanStream::kBlocks) return launch_form<T, MmaLeanStream>(args, stream);
  launch_form<T, MmaWideStream, MmaLeanStream>(args, stream);
}

}  // namespace
}  // namespace cuda
}  // namespace maxsim
