// The Hopper forward for fp32 and mixed operands, each a pair of fp16.
#include "sm90_select.cuh"

namespace maxsim {
namespace cuda {
namespace {

template <int kAtoms, bool kArgmax>
void launch_split(const ForwardArgs& args, cudaStream_t stream) {
  const auto with = [&](auto shape) { launch<decltype(shape), __half, kArgmax, Columns::units>(args, stream); };
  const bool mapped = maps(args.problem.queries) && maps(args.problem.documents);
  if (blocks_per_document(args) <= 2)
    return mapped ? with(Sm90SplitLean<kAtoms>{}) : with(Sm90SplitLean<kAtoms, true>{});
  if (!mapped) return with(Sm90SplitWide<kAtoms, 64, true>{});
  if (wastes_less<96, 64>(average_length(args.problem.documents))) return with(Sm90SplitWide<kAtoms, 96>{});
  with(Sm90SplitWide<kAtoms, 64>{});
}

template <int kAtoms>
void select_form(const ForwardArgs& args, cudaStream_t stream) {
  args.argmax ? launch_split<kAtoms, true>(args, stream) : launch_split<kAtoms, false>(args, stream);
}

}  // namespace

void sm90_select_split(const ForwardArgs& args, cudaStream_t stream) {
  args.problem.queries.dim <= kAtom<__half> ? select_form<2>(args, stream) : select_form<4>(args, stream);
}

}  // namespace cuda
}  // namespace maxsim
