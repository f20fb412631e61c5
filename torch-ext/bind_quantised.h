// The op on documents stored in eight bits a feature or one, as each device's binding takes its arguments.
#pragma once

#include "torch_binding.h"

namespace maxsim {

#define MAXSIM_QUANTISED_PARAMETERS                                                                            \
  MAXSIM_PROBLEM_PARAMETERS, const MaybeTensor &query_scale, const MaybeTensor &document_scale,                \
      const MaybeTensor &document_minimum, int64_t query_block, int64_t document_block, int64_t document_bits, \
      double empty_score, int64_t path, int64_t argmax_width
#define MAXSIM_QUANTISED_ARGUMENTS                                                                       \
  {MAXSIM_PROBLEM_ARGUMENTS, document_bits}, query_scale, document_scale, document_minimum, query_block, \
      document_block, empty_score, argmax_width

// The problem, with the factors of its tokens. A negative `argmax_width` asks for no argmax. Throws as bind_problem.
BoundProblem bind_quantised(const ProblemArguments& arguments, const MaybeTensor& query_scale,
                            const MaybeTensor& document_scale, const MaybeTensor& document_minimum, int64_t query_block,
                            int64_t document_block, double empty_score, int64_t argmax_width);

// The op on CUDA tensors; those of other devices are registered where they are defined.
std::tuple<Tensor, Tensor> quantised_forward_cuda(MAXSIM_QUANTISED_PARAMETERS);

// The argmax of a bound problem, [0] where it asks for none.
Tensor new_argmax_or_nothing(const BoundProblem& bound, const Tensor& like);

}  // namespace maxsim
