// The forward on mma.sync for fp16 operands.
#include "mma_select.cuh"

namespace maxsim {
namespace cuda {

void mma_select_f16(const ForwardArgs& args, cudaStream_t stream) { select_plain<__half>(args, stream); }

}  // namespace cuda
}  // namespace maxsim
