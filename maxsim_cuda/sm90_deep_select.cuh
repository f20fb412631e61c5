// Tensor maps and the choice of a tile shape for long rows on Hopper: included once for each dtype.
#pragma once

#include <atomic>

#include "launch.h"
#include "mma_select.h"
#include "sm90_deep_forward.cuh"
#include "sm90_deep_select.h"
#include "tensor_map.cuh"

namespace maxsim {
namespace cuda {
namespace {

template <class C, class T, bool kArgmax>
void launch_deep(const Sm90DeepArgs& args, const CUtensorMap& query_map, const CUtensorMap& document_map,
                 cudaStream_t stream) {
  const auto kernel = sm90_deep_forward<C, T, kArgmax>;
  static std::atomic<bool> ready[kDevices];  // a kernel's attributes belong to a device
  if (std::atomic<bool>& done = ready[current_device().index]; !done) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, C::kSharedBytes),
          "shared memory of sm90_deep_forward");
    done = true;
  }
  const bool cross = args.problem.pairing == Pairing::cross;
  const int64_t units = args.count * (cross ? ceil_div(args.block_count, C::kBlocks) : 1);
  // As few blocks as share the work as evenly: none is left with a last unit of its own.
  const int64_t share = std::max<int64_t>(1, ceil_div(units, current_device().sms));
  kernel<<<static_cast<unsigned>(ceil_div(units, share)), C::kThreads, C::kSharedBytes, stream>>>(args, query_map,
                                                                                                  document_map);
  check(cudaGetLastError(), "sm90_deep_forward");
}

template <class C, class T>
void launch_deep_form(const Sm90DeepArgs& args, const CUtensorMap& query_map, const CUtensorMap& document_map,
                      cudaStream_t stream) {
  args.argmax ? launch_deep<C, T, true>(args, query_map, document_map, stream)
              : launch_deep<C, T, false>(args, query_map, document_map, stream);
}

template <class C, class T>
void launch_deep_shape(const Sm90DeepArgs& args, const CUtensorMap& query_map, cudaStream_t stream) {
  CUtensorMap document_map{};
  if (!C::kLoads && !describe(args.problem.documents, C::N, &document_map))
    throw std::runtime_error("documents of sm90_deep_forward have no tensor map");
  launch_deep_form<C, T>(args, query_map, document_map, stream);
}

Sm90DeepArgs deep_args(const ForwardArgs& args) {
  Sm90DeepArgs deep{args};
  deep.steps = static_cast<int32_t>(ceil_div(args.problem.queries.dim, kStageFeatures));
  deep.query_end = end_of(args.problem.queries);
  deep.document_end = end_of(args.problem.documents);
  return deep;
}

// Whether tensor maps describe both sides. That of queries has boxes which all shapes share.
bool maps_deep(const Problem& problem, CUtensorMap* query_map) {
  return maps(problem.documents) && describe(problem.queries, kBlockTokens, query_map);
}

template <class Lean, class Wide, class T>
void select_prepared(const Sm90DeepArgs& args, const CUtensorMap& query_map, cudaStream_t stream) {
  blocks_per_document(args) <= 1 ? launch_deep_shape<Lean, T>(args, query_map, stream)
                                 : launch_deep_shape<Wide, T>(args, query_map, stream);
}

// What a document costs in tiles of two halves of n columns: the start of a half counts as eight columns, and half a
// tile takes four fifths of a whole one's time.
inline int64_t deep_cost(int64_t length, int64_t n) {
  const int64_t halves = ceil_div(std::max<int64_t>(length, 1), n);
  return (halves / 2 * 10 + halves % 2 * 8) * (n + 8);
}

// Whether rows begin at odd multiples of two bytes. mma.sync copies others by words of four, which is as fast.
bool begins_between_words(const Problem& problem) {
  const auto follow = [](const Segments& side) { return side.feature_stride == 1; };
  return follow(problem.queries) && follow(problem.documents) &&
         std::min(row_alignment(problem.queries), row_alignment(problem.documents)) < 4;
}

template <class T>
void select_deep(const ForwardArgs& args, cudaStream_t stream) {
  CUtensorMap query_map{};
  const Sm90DeepArgs deep = deep_args(args);
  if (!maps_deep(args.problem, &query_map)) {
    if (!begins_between_words(args.problem)) return mma_select(args, stream);
    return select_prepared<Sm90DeepWholeLean<true>, Sm90DeepWholeWide<true>, T>(deep, query_map, stream);
  }
  if (args.problem.normalize)
    return select_prepared<Sm90DeepWholeLean<false>, Sm90DeepWholeWide<false>, T>(deep, query_map, stream);
  const Segments& documents = args.problem.documents;
  const int64_t length =
      documents.packed() ? ceil_div(documents.extent, std::max<int64_t>(documents.count, 1)) : documents.extent;
  const int64_t narrow = deep_cost(length, 104), middle = deep_cost(length, 128), wide = deep_cost(length, 152);
  if (narrow < std::min(middle, wide)) return launch_deep_shape<Sm90DeepConfig<104>, T>(deep, query_map, stream);
  if (middle < wide) return launch_deep_shape<Sm90DeepConfig<128>, T>(deep, query_map, stream);
  launch_deep_shape<Sm90DeepConfig<152>, T>(deep, query_map, stream);
}

}  // namespace
}  // namespace cuda
}  // namespace maxsim
