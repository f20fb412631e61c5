// The ops on CUDA tensors: on the tensors' device and torch's current stream, scratch from torch's allocator.
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <optional>
#include <stdexcept>

#include "../maxsim_cuda/launch.h"
#include "bind_cuda.h"

namespace maxsim {
namespace {

using torch::headeronly::ScalarType;

// Stable order of a pair list's ids, so that a segment's pairs are neighbours in pair order.
struct SortedIds {
  Tensor values, order;
};

SortedIds sort_ids(const Tensor& ids) {
  const Tensor wide = torch::stable::to(ids, ScalarType::Long);
  std::array<StableIValue, 4> stack{torch::stable::detail::from(wide),
                                    torch::stable::detail::from(std::optional<bool>(true)),
                                    torch::stable::detail::from(int64_t{0}), torch::stable::detail::from(false)};
  if (torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION))
    throw std::runtime_error("sorting the pair ids failed");
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

}  // namespace

void run_forward_cuda(const BoundProblem& bound, int64_t path, bool allow_tf32, const Tensor& on, Tensor& scores,
                      Tensor* argmax) {
  const Launch launch(on);
  const auto cuda_path = static_cast<cuda::Path>(path);
  const int64_t bytes = cuda::forward_workspace(bound.problem, cuda_path);
  Tensor workspace;
  if (bytes) workspace = new_tensor(on, &bytes, 1, aoti_torch_dtype_uint8());
  cuda::forward(bound.problem, cuda_path, allow_tf32, static_cast<float*>(scores.mutable_data_ptr()),
                argmax ? static_cast<int32_t*>(argmax->mutable_data_ptr()) : nullptr,
                bytes ? workspace.mutable_data_ptr() : nullptr, launch.stream);
}

Tensor forward_cuda(MAXSIM_PROBLEM_PARAMETERS, bool normalize, double empty_score, int64_t path, bool allow_tf32,
                    int64_t longest_query) {
  BoundProblem bound = bind_problem({MAXSIM_PROBLEM_ARGUMENTS}, normalize, empty_score, kNoArgmax);
  if (longest_query >= 0) bound.problem.longest_query = longest_query;
  Tensor scores = new_scores(bound, queries);
  run_forward_cuda(bound, path, allow_tf32, queries, scores, nullptr);
  return scores;
}

std::tuple<Tensor, Tensor> forward_argmax_cuda(MAXSIM_PROBLEM_PARAMETERS, bool normalize, double empty_score,
                                               int64_t path, bool allow_tf32, int64_t argmax_width,
                                               int64_t /*backward_mode*/) {
  const BoundProblem bound = bind_problem({MAXSIM_PROBLEM_ARGUMENTS}, normalize, empty_score, argmax_width);
  Tensor scores = new_scores(bound, queries), argmax = new_argmax(bound, queries);
  run_forward_cuda(bound, path, allow_tf32, queries, scores, &argmax);
  return {scores, argmax};
}

std::tuple<Tensor, Tensor> backward_cuda(const Tensor& grad_scores, const Tensor& argmax, MAXSIM_PROBLEM_PARAMETERS,
                                         bool normalize, bool need_queries, bool need_documents,
                                         int64_t /*backward_mode*/, int64_t /*path*/) {
  const int64_t width = argmax.dim() ? argmax.size(argmax.dim() - 1) : 0;
  const BoundProblem bound = bind_problem({MAXSIM_PROBLEM_ARGUMENTS}, normalize, 0.0, width);
  const BackwardTensors t =
      bind_backward(bound, grad_scores, argmax, queries, documents, need_queries, need_documents, /*whole=*/true);
  if (bound.problem.pairs == 0 || width == 0) return {t.grad_queries, t.grad_documents};
  const Launch launch(queries);
  cuda::SortedPairs sorted;
  SortedIds by_query, by_document;
  if (bound.problem.pairing == Pairing::list) {
    by_query = sort_ids(*pair_queries);
    by_document = sort_ids(*pair_documents);
    const auto ids = [](const Tensor& tensor) { return static_cast<const int64_t*>(tensor.const_data_ptr()); };
    sorted = {ids(by_query.values), ids(by_query.order), ids(by_document.values), ids(by_document.order)};
  }
  const int64_t bytes = cuda::backward_workspace(bound.problem);
  Tensor workspace;
  if (bytes) workspace = new_tensor(queries, &bytes, 1, aoti_torch_dtype_uint8());
  cuda::backward(bound.problem, sorted, static_cast<const float*>(t.grad_scores.const_data_ptr()),
                 static_cast<const int32_t*>(t.argmax.const_data_ptr()),
                 need_queries ? t.grad_queries.mutable_data_ptr() : nullptr,
                 need_documents ? t.grad_documents.mutable_data_ptr() : nullptr,
                 bytes ? workspace.mutable_data_ptr() : nullptr, launch.stream);
  return {t.grad_queries, t.grad_documents};
}

int64_t available_paths_cuda() {
  int devices = 0;  // a CUDA build of torch also runs where there is no GPU
  return cudaGetDeviceCount(&devices) == cudaSuccess && devices ? cuda::available_paths() : 0;
}

int64_t default_path_cuda(const Tensor& like) {
  const Launch launch(like);
  Problem problem;
  problem.queries.dtype = problem.documents.dtype = dtype_of(like, "like");
  problem.queries.dim = problem.documents.dim = like.size(like.dim() - 1);
  return static_cast<int64_t>(cuda::choose_path(cuda::Path::choose, problem));
}

}  // namespace maxsim
