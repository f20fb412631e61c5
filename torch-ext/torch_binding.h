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
  // 0: both sides are floats. Else either may be stored in eight bits a feature, documents in as many as this says.
  int64_t document_bits = 0;
};

// A problem over the arguments' memory, and the shape of its scores. Throws std::runtime_error on a wrong shape, dtype
// or device; the values of offsets, lengths and ids are the launcher's to check.
struct BoundProblem {
  Problem problem;
  int64_t score_dims = 0;
  int64_t score_shape[2] = {0, 0};
};
BoundProblem bind_problem(const ProblemArguments& arguments, bool normalize, double empty_score, int64_t argmax_width);

// Throws where a tensor is neither float16, bfloat16 nor float32, nor, if `stored`, one of the eight-bit types.
DType dtype_of(const Tensor& t, const char* name, bool stored = false);

// An uninitialised contiguous tensor on the device of `like`.
Tensor new_tensor(const Tensor& like, const int64_t* shape, int64_t dims, int32_t dtype);

// fp32 scores and int32 argmax of a bound problem, uninitialised, on the device of `like`.
Tensor new_scores(const BoundProblem& bound, const Tensor& like);
Tensor new_argmax(const BoundProblem& bound, const Tensor& like);

// What `backward` reads and writes: contiguous inputs that match the problem, gradients where needed, else [0].
// Gradients are zeroed; unless the backend writes `whole` padded sides itself: then only packed ones, whose rows need
// not belong to a segment, and those of a problem with nothing to sum.
struct __attribute__((visibility("hidden"))) BackwardTensors {
  Tensor grad_scores, argmax, grad_queries, grad_documents;
};
BackwardTensors bind_backward(const BoundProblem& bound, const Tensor& grad_scores, const Tensor& argmax,
                              const Tensor& queries, const Tensor& documents, bool need_queries, bool need_documents,
                              bool whole = false);

#define MAXSIM_PROBLEM_PARAMETERS                                                                                 \
  const Tensor &queries, const Tensor &documents, const MaybeTensor &query_offsets,                               \
      const MaybeTensor &document_offsets, const MaybeTensor &query_lengths, const MaybeTensor &document_lengths, \
      const MaybeTensor &query_mask, const MaybeTensor &document_mask, const MaybeTensor &pair_queries,           \
      const MaybeTensor &pair_documents
#define MAXSIM_PROBLEM_ARGUMENTS                                                                                   \
  queries, documents, query_offsets, document_offsets, query_lengths, document_lengths, query_mask, document_mask, \
      pair_queries, pair_documents

// The ops of one backend. `path` 0 chooses; `backward_mode` is the gradient's, carried by the forward for autograd. No
// packed query is longer than `longest_query`, unless that is below zero.
#define MAXSIM_DECLARE_OPS(device)                                                                                  \
  Tensor forward_##device(MAXSIM_PROBLEM_PARAMETERS, bool normalize, double empty_score, int64_t path,              \
                          bool allow_tf32, int64_t longest_query);                                                  \
  std::tuple<Tensor, Tensor> forward_argmax_##device(MAXSIM_PROBLEM_PARAMETERS, bool normalize, double empty_score, \
                                                     int64_t path, bool allow_tf32, int64_t argmax_width,           \
                                                     int64_t backward_mode);                                        \
  std::tuple<Tensor, Tensor> backward_##device(const Tensor& grad_scores, const Tensor& argmax,                     \
                                               MAXSIM_PROBLEM_PARAMETERS, bool normalize, bool need_queries,        \
                                               bool need_documents, int64_t backward_mode, int64_t path);           \
  int64_t default_path_##device(const Tensor& like);                                                                \
  int64_t available_paths_##device();

MAXSIM_DECLARE_OPS(cpu)
MAXSIM_DECLARE_OPS(cuda)
MAXSIM_DECLARE_OPS(mps)

#undef MAXSIM_DECLARE_OPS

}  // namespace maxsim
