// The ops, as the dispatcher calls them. Arguments and layouts: docs/ops.md.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

#include "../maxsim_common/problem.h"

namespace maxsim {

using Tensor = torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

// The ten leading arguments of every op, by the names that the schemas and the error messages use.
struct __attribute__((visibility("hidden"))) ProblemArguments {
  const Tensor& queries;
  const Tensor& documents;
  const MaybeTensor& query_offsets;
  const MaybeTensor& document_offsets;
  const MaybeTensor& query_lengths;
  const MaybeTensor& document_lengths;
  const MaybeTensor& query_mask;
  const MaybeTensor& document_mask;
  const MaybeTensor& pair_queries;
  const MaybeTensor& pair_documents;
};

// A problem over the arguments' memory, and the shape of its scores. Throws std::runtime_error on a wrong shape, dtype
// or device; the values of offsets, lengths and ids are the launcher's to check.
struct BoundProblem {
  Problem problem;
  int64_t score_dims = 0;
  int64_t score_shape[2] = {0, 0};
};
BoundProblem bind_problem(const ProblemArguments& arguments, bool normalize, double empty_score, int64_t argmax_width);

}  // namespace maxsim
