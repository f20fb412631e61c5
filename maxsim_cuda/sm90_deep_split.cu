// The Hopper forward for fp32 and mixed rows of more than 128 features, each a pair of fp16.
#include "sm90_deep_select.cuh"

namespace maxsim {
namespace cuda {
namespace {

template <bool kLoads>
void select_split(const ForwardArgs& args, const CUtensorMap& query_map, cudaStream_t stream) {
  select_prepared<Sm90DeepSplitLean<kLoads>, Sm90DeepSplitWide<kLoads>, __half>(deep_args(args), query_map, stream);
}

}  // namespace

void sm90_select_deep_split(const ForwardArgs& args, cudaStream_t stream) {
  CUtensorMap query_map{};
  maps_deep(args.problem, &query_map) ? select_split<false>(args, query_map, stream)
                                      : select_split<true>(args, query_map, stream);
}

}  // namespace cuda
}  // namespace maxsim
