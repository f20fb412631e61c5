// The ops on MPS tensors: a problem and its tensors become a plan with a Metal buffer for each role.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <optional>
#include <stdexcept>
#include <string>

#include "bind_metal.h"

namespace maxsim {
namespace {

using metal_backend::RoleBuffer;
using torch::headeronly::ScalarType;

int64_t element_bytes(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Bool:
    case ScalarType::Byte:
    case ScalarType::Char:
    case ScalarType::Float8_e4m3fn:
    case ScalarType::Float8_e5m2:
      return 1;
    case ScalarType::Half:
    case ScalarType::BFloat16:
    case ScalarType::Short:
    case ScalarType::UInt16:
      return 2;
    case ScalarType::Int:
    case ScalarType::Float:
      return 4;
    case ScalarType::Long:
      return 8;
    default:
      throw std::runtime_error("a tensor of a type that no op takes");
  }
}

RoleBuffer buffer_of(const Tensor& t) {
  if (t.numel() == 0) return {};  // has no Metal buffer
  int64_t offset = 0, last = 0;
  if (aoti_torch_get_storage_offset(t.get(), &offset)) throw std::runtime_error("a tensor without storage");
  for (int64_t i = 0; i < t.dim(); ++i) last += (t.size(i) - 1) * t.stride(i);
  const int64_t bytes = element_bytes(t);
  const char* start = static_cast<const char*>(t.const_data_ptr()) - offset * bytes;
  return {const_cast<char*>(start), offset * bytes, (last + 1) * bytes};
}

void run_forward(const BoundProblem& bound, MAXSIM_PROBLEM_PARAMETERS, const Tensor& scores, const Tensor* argmax) {
  MetalBuffers buffers;
  buffers.set_problem({MAXSIM_PROBLEM_ARGUMENTS});
  buffers.set(Role::scores, scores);
  if (argmax) buffers.set(Role::argmax, *argmax);
  buffers.run(metal_backend::plan_forward(bound.problem, buffers.token_offsets()), queries);
}

}  // namespace

void require_path(int64_t path) {
  if (path != 0 && path != kMetalPath)
    throw std::runtime_error("path " + std::to_string(path) + " does not run on MPS");
}

void MetalBuffers::set(Role role, const Tensor& t) { buffers_[static_cast<size_t>(role)] = buffer_of(t); }

void MetalBuffers::set_problem(const ProblemArguments& a) {
  set(Role::queries, a.queries);
  set(Role::documents, a.documents);
  set(Role::query_extents, a.query_offsets ? a.query_offsets : a.query_lengths);
  set(Role::document_extents, a.document_offsets ? a.document_offsets : a.document_lengths);
  set(Role::query_mask, a.query_mask);
  set(Role::document_mask, a.document_mask);
  set(Role::query_ids, a.pair_queries);
  set(Role::document_ids, a.pair_documents);
}

void MetalBuffers::set_sorted(const Tensor& ids, Role values, Role order) {
  const Tensor wide = torch::stable::to(ids, ScalarType::Long);
  std::array<StableIValue, 4> stack{torch::stable::detail::from(wide),
                                    torch::stable::detail::from(std::optional<bool>(true)),
                                    torch::stable::detail::from(int64_t{0}), torch::stable::detail::from(false)};
  if (torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION))
    throw std::runtime_error("sorting the pair ids failed");
  sorted_.push_back(torch::stable::detail::to<Tensor>(stack[0]));
  set(values, sorted_.back());
  sorted_.push_back(torch::stable::detail::to<Tensor>(stack[1]));
  set(order, sorted_.back());
}

void MetalBuffers::set_sorted_pairs(const ProblemArguments& a, bool by_query, bool by_document) {
  if (!a.pair_queries) return;
  if (by_query) set_sorted(*a.pair_queries, Role::sorted_query_ids, Role::query_order);
  if (by_document) set_sorted(*a.pair_documents, Role::sorted_document_ids, Role::document_order);
}

metal_backend::TokenOffsets MetalBuffers::token_offsets() const {
  const auto offset = [&](Role role) { return buffers_[static_cast<size_t>(role)].offset; };
  return {offset(Role::queries), offset(Role::documents)};
}

void MetalBuffers::run(const metal_backend::Plan& plan, const Tensor& on) {
  if (plan.dispatches.empty()) return;
  Tensor workspace;
  if (plan.workspace_bytes) {
    workspace = new_tensor(on, &plan.workspace_bytes, 1, aoti_torch_dtype_uint8());
    set(Role::workspace, workspace);
  }
  metal_backend::encode(plan, buffers_);
}

Tensor forward_mps(MAXSIM_PROBLEM_PARAMETERS, bool normalize, double empty_score, int64_t path, bool /*allow_tf32*/,
                   int64_t /*longest_query*/) {
  require_path(path);
  const BoundProblem bound = bind_problem({MAXSIM_PROBLEM_ARGUMENTS}, normalize, empty_score, kNoArgmax);
  Tensor scores = new_scores(bound, queries);
  run_forward(bound, MAXSIM_PROBLEM_ARGUMENTS, scores, nullptr);
  return scores;
}

std::tuple<Tensor, Tensor> forward_argmax_mps(MAXSIM_PROBLEM_PARAMETERS, bool normalize, double empty_score,
                                              int64_t path, bool /*allow_tf32*/, int64_t argmax_width,
                                              int64_t /*backward_mode*/) {
  require_path(path);
  const BoundProblem bound = bind_problem({MAXSIM_PROBLEM_ARGUMENTS}, normalize, empty_score, argmax_width);
  Tensor scores = new_scores(bound, queries), argmax = new_argmax(bound, queries);
  run_forward(bound, MAXSIM_PROBLEM_ARGUMENTS, scores, &argmax);
  return {scores, argmax};
}

std::tuple<Tensor, Tensor> backward_mps(const Tensor& grad_scores, const Tensor& argmax, MAXSIM_PROBLEM_PARAMETERS,
                                        bool normalize, bool need_queries, bool need_documents,
                                        int64_t /*backward_mode*/, int64_t path) {
  require_path(path);
  const int64_t width = argmax.dim() ? argmax.size(argmax.dim() - 1) : 0;
  const BoundProblem bound = bind_problem({MAXSIM_PROBLEM_ARGUMENTS}, normalize, 0.0, width);
  const BackwardTensors t = bind_backward(bound, grad_scores, argmax, queries, documents, need_queries, need_documents);
  MetalBuffers buffers;
  buffers.set_problem({MAXSIM_PROBLEM_ARGUMENTS});
  buffers.set(Role::grad_scores, t.grad_scores);
  buffers.set(Role::argmax, t.argmax);
  if (need_queries) buffers.set(Role::grad_queries, t.grad_queries);
  if (need_documents) buffers.set(Role::grad_documents, t.grad_documents);
  buffers.set_sorted_pairs({MAXSIM_PROBLEM_ARGUMENTS}, need_queries, need_documents);
  buffers.run(metal_backend::plan_backward(bound.problem, need_queries, need_documents), queries);
  return {t.grad_queries, t.grad_documents};
}

int64_t available_paths_mps() { return int64_t{1} << kMetalPath; }

int64_t default_path_mps(const Tensor& like) {
  dtype_of(like, "like");
  return kMetalPath;
}

}  // namespace maxsim
