// The forward on mma.sync for everything else, each operand a pair of fp16; and which operands a problem takes.
#include "mma_select.cuh"

namespace maxsim {
namespace cuda {

int mma_arch() {
  static const int arch = [] {
    cudaFuncAttributes attributes;
    check(cudaFuncGetAttributes(&attributes, mma_forward<MmaSplit<false, 2>, __half, false>), "mma_forward");
    return attributes.ptxVersion;
  }();
  return arch;
}

void mma_select_split(const ForwardArgs& args, cudaStream_t stream) {
  const bool lean = blocks_per_document(args) <= 1;
  if (streams(args)) {
    if (lean) return launch_form<__half, MmaSplit<true, 2>>(args, stream);
    return launch_form<__half, MmaSplit<true, 4>, MmaSplit<true, 2>>(args, stream);
  }
  if (lean) return launch_form<__half, MmaSplit<false, 2>>(args, stream);
  launch_form<__half, MmaSplit<false, 4>, MmaSplit<false, 2>>(args, stream);
}

bool mma_splits(const Problem& problem) {
  const DType query = problem.queries.dtype;
  return query != problem.documents.dtype || query == DType::f32 || is_stored(query) ||
         (query == DType::bf16 && mma_arch() < 80);
}

bool mma_is_padded(const Problem& problem, int64_t chunks) {
  const Segments &queries = problem.queries, &documents = problem.documents;
  const auto padded = [](const Segments& side) {
    return !side.packed() && Pieces(side).aligned && side.count <= INT32_MAX && side.extent <= INT32_MAX / 2;
  };
  if (mma_splits(problem) || problem.pairing == Pairing::list || problem.argmax_width != kNoArgmax ||
      queries.dim > 4 * kStepFeatures || queries.extent < 1 || !padded(queries) || !padded(documents) ||
      documents.extent < (queries.dim <= 2 * kStepFeatures ? MmaDenseConfig<2>::N : MmaDenseConfig<4>::N))
    return false;
  return problem.pairing == Pairing::cross
             ? queries.count * chunks <= UINT32_MAX / std::max<int64_t>(1, documents.count)
             : chunks <= kMostChunksAlone;
}

bool mma_sums_together(const Problem& problem, int64_t chunks) {
  const bool together = problem.pairing != Pairing::cross || chunks == 2 || chunks == 4 || chunks == 8;
  return together && mma_is_padded(problem, chunks);
}

void mma_select(const ForwardArgs& args, cudaStream_t stream) {
  if (mma_splits(args.problem)) return mma_select_split(args, stream);
  args.problem.queries.dtype == DType::f16 ? mma_select_f16(args, stream) : mma_select_bf16(args, stream);
}

}  // namespace cuda
}  // namespace maxsim
