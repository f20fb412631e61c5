// Launches the backward: norms where it normalises, then one kernel for each gradient that is needed.
#include <algorithm>

#include "backward_documents.cuh"
#include "backward_queries.cuh"
#include "check.h"
#include "forward_args.cuh"
#include "launch.h"

namespace maxsim {
namespace cuda {
namespace {

int64_t token_rows(const Segments& side) { return side.packed() ? side.extent : side.count * side.extent; }

template <typename Rows>
void launch_queries(const BackwardArgs& args, cudaStream_t stream) {
  const Problem& problem = args.problem;
  const int64_t tokens = problem.queries.count * problem.argmax_width;
  const int64_t winners = problem.pairs / std::max<int64_t>(1, problem.queries.count);  // of a token
  // Half warps that an SM keeps busy: a token is shared until there are as many, or until a share is one look-up.
  const int64_t busy = int64_t{current_device().sms} * 64;
  int parts = 1;
  while (parts < QueryGradient::kGroups && tokens * parts < busy && winners > parts * kRowLanes) parts *= 2;
  const int64_t blocks = ceil_div(tokens, QueryGradient::kGroups / parts);
  backward_queries<Rows><<<grid(blocks, 1 << 12), QueryGradient::kThreads, 0, stream>>>(args, parts);
}

// Slices of a document. All blocks of a wave take about as long as one does, which is reckoned in hits: so much to
// start, to look through the candidates, and for the hits and rows of a slice.
template <typename T, typename Rows>
int64_t slices_of(int64_t count, int64_t rows, int64_t hits, bool zeroed) {
  const Device& device = current_device();
  const int fitting_blocks = device.sm_shared_bytes / static_cast<int>(sizeof(DocumentShared<T, Rows>) + 1024);
  const int64_t resident = int64_t{device.sms} * std::max(1, std::min(T::kBlocks, fitting_blocks));
  const int64_t least = std::max(ceil_div(rows, T::kTokens), ceil_div(hits, T::kCapacity * 2 / 3));
  const int64_t rows_as_hits = zeroed ? rows / 8 : rows;
  int64_t best = least, best_cost = INT64_MAX;
  const int64_t least_waves = ceil_div(count * least, resident);
  for (int64_t waves = least_waves; waves < least_waves + 4; ++waves) {
    const int64_t slices = std::min(std::max(least, waves * resident / count), std::max(least, ceil_div(rows, 16)));
    const int64_t cost = waves * (32 * T::kWarps + hits / 16 + (hits + rows_as_hits) / slices);
    if (cost >= best_cost) continue;
    best_cost = cost;
    best = slices;
  }
  return best;
}

template <typename T, typename Rows>
void launch_slices(const BackwardArgs& args, int64_t hits, bool zeroed, cudaStream_t stream) {
  const Segments& documents = args.problem.documents;
  // What a document has on average is all that is known of packed ones; blocks go on to further slices.
  const int64_t rows =
      std::max<int64_t>(1, documents.packed() ? ceil_div(documents.extent, documents.count) : documents.extent);
  const int64_t slices = slices_of<T, Rows>(documents.count, rows, hits, zeroed), slice = ceil_div(rows, slices);
  constexpr int kBytes = sizeof(DocumentShared<T, Rows>);
  static bool prepared[kDevices];
  bool& ready = prepared[current_device().index];
  if (!ready)
    check(cudaFuncSetAttribute(backward_documents<T, Rows>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
          "shared memory of backward_documents");
  ready = true;
  // Beside the queries' gradient, if that is on its way: neither fills the GPU for long.
  cudaLaunchAttribute beside{};
  beside.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  beside.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(std::min<int64_t>(documents.count, 1 << 20)),
                        static_cast<unsigned>(std::min<int64_t>(slices, 1 << 12)));
  config.blockDim = T::kThreads;
  config.dynamicSmemBytes = kBytes;
  config.stream = stream;
  config.attrs = &beside;
  config.numAttrs = args.grad_queries && current_device().major >= 9;
  check(cudaLaunchKernelEx(&config, backward_documents<T, Rows>, args, static_cast<int>(slice), zeroed),
        "backward_documents");
}

// Query tokens that a document meets: on average and, of the one that meets the most, a bound.
struct Meetings {
  int64_t average, most;
  bool few() const { return most <= FewHits::kCapacity; }
};
Meetings meetings(const Problem& problem) {
  const int64_t pairs = problem.pairing == Pairing::cross ? problem.queries.count
                        : problem.pairing == Pairing::slab
                            ? 1
                            : ceil_div(problem.pairs, std::max<int64_t>(1, problem.documents.count));
  return {pairs * problem.argmax_width,
          (problem.pairing == Pairing::list ? problem.pairs : pairs) * problem.argmax_width};
}

template <typename Rows>
void launch_documents(const BackwardArgs& args, const Meetings& met, bool zeroed, cudaStream_t stream) {
  if (met.few()) return launch_slices<FewHits, Rows>(args, met.average, zeroed, stream);
  launch_slices<ManyHits, Rows>(args, met.average, zeroed, stream);
}

// `side` is the one that is read: the other's gradient is summed.
template <typename Call>
void with_rows(const Segments& side, Call call) {
  if (!vector_rows(side)) return call(AnyRows());
  switch (side.dtype) {
    case DType::f32:
      return call(VectorRows<float>());
    case DType::f16:
      return call(VectorRows<__half>());
    default:
      return call(VectorRows<__nv_bfloat16>());
  }
}

}  // namespace

int64_t backward_workspace(const Problem& problem) {
  return problem.normalize ? (token_rows(problem.queries) + token_rows(problem.documents)) * sizeof(float) : 0;
}

void backward(const Problem& problem, const SortedPairs& sorted, const float* grad_scores, const int32_t* argmax,
              void* grad_queries, void* grad_documents, void* workspace, cudaStream_t stream) {
  BackwardArgs args{problem,
                    {sorted.query_ids, sorted.query_order},
                    {sorted.document_ids, sorted.document_order},
                    grad_scores,
                    argmax,
                    nullptr,
                    nullptr,
                    grad_queries,
                    grad_documents};
  if (problem.normalize) {
    float* norms = static_cast<float*>(workspace);
    args.query_norms = norms;
    args.document_norms = norms + token_rows(problem.queries);
    row_norms<<<grid(ceil_div(token_rows(problem.queries), 4), 16), 128, 0, stream>>>(problem.queries, norms);
    row_norms<<<grid(ceil_div(token_rows(problem.documents), 4), 16), 128, 0, stream>>>(
        problem.documents, norms + token_rows(problem.queries));
  }
  const Meetings met = meetings(problem);
  if (grad_documents && met.most >> 32)
    throw std::runtime_error("one document may meet no more than 2^32 query tokens in a backward");
  const Segments& documents = problem.documents;
  const bool zeroed = documents.packed() || met.few();  // the caller clears packed ones
  if (grad_documents && met.few() && !documents.packed())
    check(cudaMemsetAsync(grad_documents, 0, token_rows(documents) * documents.dim * element_size(documents.dtype),
                          stream),
          "zeroing the documents' gradient");
  if (grad_queries) with_rows(problem.documents, [&](auto rows) { launch_queries<decltype(rows)>(args, stream); });
  if (grad_documents)
    with_rows(problem.queries, [&](auto rows) { launch_documents<decltype(rows)>(args, met, zeroed, stream); });
  check(cudaGetLastError(), "backward");
}

}  // namespace cuda
}  // namespace maxsim
