// The ops that keep the best documents of each query, for CUDA tensors.
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>

#include "../maxsim_cuda/ranking.h"
#include "bind_cuda.h"
#include "bind_ranking.h"

namespace maxsim {
namespace {

using torch::headeronly::ScalarType;

void require(bool holds, const char* message) {
  if (!holds) throw std::runtime_error(message);
}

}  // namespace

Tensor rank_cuda(const MaybeTensor& keys, const Tensor& scores, int64_t first, int64_t k, bool largest) {
  require(scores.dim() == 2 && scores.scalar_type() == ScalarType::Float, "scores must be float32 [Nq, n]");
  require(!keys || (keys->dim() == 2 && keys->size(0) == scores.size(0) && keys->scalar_type() == ScalarType::Long &&
                    keys->get_device_index() == scores.get_device_index()),
          "keys must be int64 [Nq, m] on the device of scores");
  require(k >= 1 && k <= cuda::kMostRanked, "k must be from 1 to 2048");
  require(first >= 0 && first + scores.size(1) <= int64_t{1} << 32, "ids must be below 2^32");
  const Tensor own = torch::stable::contiguous(scores);
  cuda::Ranked ranked;
  Tensor known;
  if (keys) {
    known = torch::stable::contiguous(*keys);
    ranked.keys = static_cast<const int64_t*>(known.const_data_ptr());
    ranked.known = known.size(1);
  }
  ranked.scores = static_cast<const float*>(own.const_data_ptr());
  ranked.queries = own.size(0);
  ranked.documents = own.size(1);
  ranked.first = first;
  ranked.k = k;
  ranked.largest = largest;
  const int64_t shape[2] = {ranked.queries, std::min(k, ranked.known + ranked.documents)};
  const Tensor out = new_tensor(scores, shape, 2, aoti_torch_dtype_int64());
  if (shape[0] * shape[1] == 0) return out;
  const Launch launch(scores);
  const int64_t bytes = std::max<int64_t>(1, cuda::rank_workspace(ranked));
  const Tensor workspace = new_tensor(scores, &bytes, 1, aoti_torch_dtype_uint8());
  cuda::rank(ranked, static_cast<int64_t*>(out.mutable_data_ptr()), workspace.mutable_data_ptr(), launch.stream);
  return out;
}

std::tuple<Tensor, Tensor> unrank_cuda(const Tensor& keys, int64_t k, bool largest) {
  require(keys.dim() == 3 && keys.scalar_type() == ScalarType::Long, "keys must be int64 [lists, Nq, m]");
  require(k >= 0, "k must not be negative");
  const Tensor own = torch::stable::contiguous(keys);
  const cuda::KeyLists lists{static_cast<const int64_t*>(own.const_data_ptr()), own.size(0), own.size(1), own.size(2),
                             largest};
  const int64_t shape[2] = {lists.queries, std::min(k, lists.lists * lists.length)};
  const Tensor scores = new_tensor(keys, shape, 2, aoti_torch_dtype_float32());
  const Tensor ids = new_tensor(keys, shape, 2, aoti_torch_dtype_int64());
  const Launch launch(keys);
  if (shape[0] * shape[1] > 0)
    cuda::unrank(lists, shape[1], static_cast<float*>(scores.mutable_data_ptr()),
                 static_cast<int64_t*>(ids.mutable_data_ptr()), launch.stream);
  return {scores, ids};
}

}  // namespace maxsim
