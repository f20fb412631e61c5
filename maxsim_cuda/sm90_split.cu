// The Hopper forward for fp32 and mixed operands, each a pair of fp16.
#include "sm90_select.cuh"

namespace maxsim {
namespace cuda {
namespace {

template <int kAtoms, bool kArgmax>
void launch_split(const ForwardArgs& args, cudaStream_t stream) {
  if (blocks_per_document(args) <= 2)
    return launch<Sm90SplitLean<kAtoms>, __half, kArgmax, Columns::units>(args, stream);
  if (wastes_less<96, 64>(average_length(args.problem.documents)))
    return launch<Sm90SplitWide<kAtoms, 96>, __half, kArgmax, Columns::units>(args, stream);
  launch<Sm90SplitWide<kAtoms, 64>, __half, kArgmax, Columns::units>(args, stream);
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
