// The Hopper forward for fp32 rows of more than 128 features, each a pair of fp16.
#include "sm90_deep_select.cuh"

namespace maxsim {
namespace cuda {
namespace {

template <class C>
void launch_split(const Sm90DeepArgs& args, const CUtensorMap& query_map, cudaStream_t stream) {
  CUtensorMap document_map{};
  if (args.tma) describe(args.problem.documents, C::N, &document_map);
  launch_deep_form<C, __half>(args, query_map, document_map, stream);
}

}  // namespace

void sm90_select_deep_split(const ForwardArgs& args, cudaStream_t stream) {
  Sm90DeepArgs deep = deep_args<Sm90DeepSplitLean>(args);
  CUtensorMap query_map{};
  deep.tma = maps(args.problem.documents) && describe(args.problem.queries, kBlockTokens, &query_map);
  blocks_per_document(args) <= 1 ? launch_split<Sm90DeepSplitLean>(deep, query_map, stream)
                                 : launch_split<Sm90DeepSplitWide>(deep, query_map, stream);
}

}  // namespace cuda
}  // namespace maxsim
