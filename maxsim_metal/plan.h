// What a call launches: kernels by name, their constants, the order of their buffers, grids and threadgroup memory.
// Portable C++ without Metal, so that the whole of it runs wherever the kernels are emulated.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "../maxsim_common/problem.h"
#include "../maxsim_common/residuals.h"
#include "params.h"

namespace maxsim {
namespace metal_backend {

// The tensors of a call, by what they are to it.
enum class Role : int32_t {
  queries,
  documents,
  query_extents,
  document_extents,
  query_mask,
  document_mask,
  query_ids,
  document_ids,
  scores,
  argmax,
  grad_scores,
  sorted_query_ids,
  query_order,
  sorted_document_ids,
  document_order,
  grad_queries,
  grad_documents,
  workspace,
  codes,
  centroids,
  bucket_weights,
  query_scales,
  document_scales,
  document_minima,
  parts,  // of the soft maximum
  centroid_scores,
  probed,
  count
};

struct Binding {
  Buffer index;
  Role role;
  int64_t offset = 0;  // bytes into the role's tensor
};

struct Dispatch {
  std::string kernel;
  std::variant<ForwardParams, NormParams, BackwardParams, ApproxParams> params;  // bound at kParams
  std::vector<Binding> bindings;
  uint32_t grid[2] = {1, 1};  // threadgroups of kThreads threads
  int32_t threadgroup_bytes = 0;
};

struct Plan {
  std::vector<Dispatch> dispatches;  // in order: each sees what the one before has written
  int64_t workspace_bytes = 0;
};

// Byte offsets at which the token tensors start in their Metal buffers, which decide whether vectors can be read.
struct TokenOffsets {
  int64_t queries = 0;
  int64_t documents = 0;
};

Plan plan_forward(const Problem& problem, const TokenOffsets& offsets);

// Documents of centroids and residuals, whose `problem.documents` has counts but no features.
Plan plan_residual(const Problem& problem, const TokenOffsets& offsets, const Residuals& residuals);

// The similarities of a problem's queries, one feature for each query token, with every centroid are looked up.
Plan plan_approx(const Problem& problem, const Approximation& approximation);

// Gradients are contiguous and zeroed; pair lists need the stable sort of both their ids.
Plan plan_backward(const Problem& problem, bool need_queries, bool need_documents);

// A problem's argmax width counts the parts of its scores here; kNoArgmax asks for none.
Plan plan_soft_forward(const Problem& problem, const TokenOffsets& offsets, double tau);
Plan plan_soft_backward(const Problem& problem, double tau, bool need_queries, bool need_documents);

}  // namespace metal_backend
}  // namespace maxsim
