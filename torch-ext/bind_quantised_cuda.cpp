// The op on quantised documents, for CUDA tensors.
#include "bind_cuda.h"
#include "bind_quantised.h"

namespace maxsim {

std::tuple<Tensor, Tensor> quantised_forward_cuda(MAXSIM_QUANTISED_PARAMETERS) {
  const BoundProblem bound = bind_quantised(MAXSIM_QUANTISED_ARGUMENTS);
  Tensor scores = new_scores(bound, queries), argmax = new_argmax_or_nothing(bound, queries);
  run_forward_cuda(bound, path, false, queries, scores, argmax_width < 0 ? nullptr : &argmax);
  return {scores, argmax};
}

}  // namespace maxsim
