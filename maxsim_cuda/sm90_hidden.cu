// Launches the projection on Hopper: tensor maps, and an instantiation for each dtype, width and destination.
#include "sm90_hidden.cuh"

#include <algorithm>
#include <atomic>

#include "check.h"
#include "hidden.h"
#include "launch.h"
#include "tensor_map.cuh"

namespace maxsim {
namespace cuda {
namespace {

static_assert(kHiddenQueryRows == Sm90HiddenConfig<__half, 128, Projected::scored>::kQueryRows, "as promised");

CUtensorMap matrix(const void* data, DType dtype, int64_t rows, int64_t columns, int box_rows) {
  Segments side;
  side.data = data;
  side.dtype = dtype;
  side.dim = side.token_stride = columns;
  side.count = 1;
  side.extent = rows;
  CUtensorMap map;
  if (!describe(side, box_rows, &map)) throw std::runtime_error("hidden states, weight and queries must be aligned");
  return map;
}

template <class C>
void launch(const Hidden& hidden, const HiddenArgs& args, const void* queries, cudaStream_t stream) {
  const auto kernel = sm90_hidden<C>;
  static std::atomic<bool> ready[kDevices];  // a kernel's attributes belong to a device
  if (std::atomic<bool>& done = ready[current_device().index]; !done) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, C::kSharedBytes),
          "shared memory of sm90_hidden");
    done = true;
  }
  const CUtensorMap hidden_map = matrix(hidden.tokens, hidden.dtype, args.rows, hidden.inputs, C::kUnitRows);
  const CUtensorMap weight_map = matrix(hidden.weight, hidden.dtype, hidden.dim, hidden.inputs, C::N);
  CUtensorMap query_map{};
  if (C::kScored) query_map = matrix(queries, hidden.dtype, args.query_rows, hidden.dim, 32);
  const int64_t units = (args.rows - 1) / C::kUnitRows + 1;
  kernel<<<grid(units, 1), C::kThreads, C::kSharedBytes, stream>>>(args, hidden_map, weight_map, query_map);
  check(cudaGetLastError(), "sm90_hidden");
}

template <class T, Projected kProjected>
void select_dim(const Hidden& hidden, const HiddenArgs& args, const void* queries, cudaStream_t stream) {
  hidden.dim <= 64 ? launch<Sm90HiddenConfig<T, 64, kProjected>>(hidden, args, queries, stream)
                   : launch<Sm90HiddenConfig<T, 128, kProjected>>(hidden, args, queries, stream);
}

template <Projected kProjected>
void select(const Hidden& hidden, const HiddenArgs& args, const void* queries, cudaStream_t stream) {
  hidden.dtype == DType::f16 ? select_dim<__half, kProjected>(hidden, args, queries, stream)
                             : select_dim<__nv_bfloat16, kProjected>(hidden, args, queries, stream);
}

HiddenArgs arguments(const Hidden& hidden) {
  HiddenArgs args{};
  args.rows = static_cast<int32_t>(hidden.documents * hidden.length);
  args.length = static_cast<int32_t>(hidden.length);
  args.inputs = static_cast<int32_t>(hidden.inputs);
  args.dim = static_cast<int32_t>(hidden.dim);
  args.bias = hidden.bias;
  args.bias_dtype = hidden.bias_dtype;
  args.normalize = hidden.normalize;
  return args;
}

template <bool kArgmax>
void score(const Hidden& hidden, const HiddenArgs& args, const HiddenQueries& queries, float* scores, int32_t* argmax,
           cudaStream_t stream) {
  select<kArgmax ? Projected::scored_with_winners : Projected::scored>(hidden, args, queries.tokens, stream);
  const int64_t pairs = queries.count * hidden.documents;
  hidden_scores<kArgmax><<<grid((pairs + 3) / 4, 16), 128, 0, stream>>>(
      static_cast<const typename MaximumKey<kArgmax>::Type*>(args.maxima), queries.count, hidden.documents,
      static_cast<int32_t>(queries.length), scores, argmax);
  check(cudaGetLastError(), "hidden_scores");
}

}  // namespace

bool hidden_takes(const Hidden& hidden) {
  return current_device().major == 9 && hidden.dim % 8 == 0 && hidden.dim >= 8 && hidden.dim <= 128 &&
         hidden.inputs % 8 == 0 && hidden.inputs >= 8 && hidden.inputs < (1 << 24) && hidden.dtype != DType::f32 &&
         hidden.documents * hidden.length < INT32_MAX - 64;
}

int64_t hidden_workspace(const Hidden& hidden, const HiddenQueries& queries, bool with_argmax) {
  return hidden.documents * queries.count * queries.length * (with_argmax ? 8 : 4);
}

void hidden_forward(const Hidden& hidden, const HiddenQueries& queries, const HiddenMask& mask, float* scores,
                    int32_t* argmax, void* workspace, cudaStream_t stream) {
  HiddenArgs args = arguments(hidden);
  args.mask = mask.data;
  args.mask_document_stride = mask.document_stride;
  args.mask_token_stride = mask.token_stride;
  args.query_rows = static_cast<int32_t>(queries.count * queries.length);
  args.maxima = workspace;
  check(cudaMemsetAsync(workspace, 0, hidden_workspace(hidden, queries, argmax), stream), "cudaMemsetAsync");
  argmax ? score<true>(hidden, args, queries, scores, argmax, stream)
         : score<false>(hidden, args, queries, scores, argmax, stream);
}

void hidden_project(const Hidden& hidden, void* projected, float* factors, cudaStream_t stream) {
  HiddenArgs args = arguments(hidden);
  args.projected = projected;
  args.factors = factors;
  select<Projected::written>(hidden, args, nullptr, stream);
}

}  // namespace cuda
}  // namespace maxsim
