// The forward on mma.sync for bf16 operands.
#include "mma_select.cuh"

namespace maxsim {
namespace cuda {

void mma_select_bf16(const ForwardArgs& args, cudaStream_t stream) { select_plain<__nv_bfloat16>(args, stream); }

}  // namespace cuda
}  // namespace maxsim
