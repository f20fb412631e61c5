// Tensor maps and the choice of a tile shape: included once for each dtype.
#pragma once

#include <cudaTypedefs.h>

#include <algorithm>

#include "check.h"
#include "launch.h"
#include "sm90_forward.cuh"
#include "sm90_select.h"

namespace maxsim {
namespace cuda {
namespace {

PFN_cuTensorMapEncodeTiled_v12000 encoder() {
  static const auto found = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult result;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &result),
          "cuTensorMapEncodeTiled");
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(entry);
  }();
  return found;
}

// A [dim, rows, inner, outer] view of one side. False where alignment or strides do not allow a tensor map.
bool describe(const Segments& side, int box_rows, CUtensorMap* map) {
  if (side.feature_stride != 1 || reinterpret_cast<uintptr_t>(side.data) % 16) return false;
  const int64_t outer = side.packed() ? 1 : side.count / side.inner;
  const cuuint64_t sizes[4] = {
      static_cast<cuuint64_t>(side.dim), static_cast<cuuint64_t>(std::max<int64_t>(side.extent, 1)),
      static_cast<cuuint64_t>(side.packed() ? 1 : side.inner), static_cast<cuuint64_t>(std::max<int64_t>(outer, 1))};
  cuuint64_t strides[3] = {static_cast<cuuint64_t>(side.token_stride) * 2,
                           static_cast<cuuint64_t>(side.segment_stride.inner) * 2,
                           static_cast<cuuint64_t>(side.segment_stride.outer) * 2};
  for (int i = 0; i < 3; ++i) {
    if (sizes[i + 1] == 1) strides[i] = 16;  // never stepped along
    if (strides[i] % 16 || strides[i] >> 40) return false;
  }
  const cuuint32_t box[4] = {kAtom, static_cast<cuuint32_t>(box_rows), 1, 1}, step[4] = {1, 1, 1, 1};
  const CUtensorMapDataType type =
      side.dtype == DType::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  return encoder()(map, type, 4, const_cast<void*>(side.data), sizes, strides, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
                   CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                   CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

template <class C, class T, bool kArgmax, bool kNormalize>
void launch(const ForwardArgs& args, cudaStream_t stream) {
  const auto kernel = sm90_forward<C, T, kArgmax, kNormalize>;
  static const bool ready = [&] {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, C::kSharedBytes),
          "shared memory of sm90_forward");
    return true;
  }();
  (void)ready;
  CUtensorMap query_map{}, document_map{}, tail_map{};
  Sm90Args mapped{args};
  mapped.tma = describe(args.problem.queries, 16, &query_map) &&
               describe(args.problem.documents, C::N, &document_map) && describe(args.problem.documents, 8, &tail_map);
  const bool cross = args.problem.pairing == Pairing::cross;
  const int64_t units = args.count * (cross ? ceil_div(args.block_count, C::kBlocks) : 1);
  kernel<<<static_cast<unsigned>(std::min<int64_t>(units, int64_t{current_device().sms} * C::kPerSm)), C::kThreads, C::kSharedBytes,
           stream>>>(mapped, query_map, document_map, tail_map);
  check(cudaGetLastError(), "sm90_forward");
}

// Columns that tiles of N spend on a document, with the cost of a tile's start counted as eight more.
int64_t tile_cost(int64_t length, int64_t n) { return ceil_div(std::max<int64_t>(length, 1), n) * (n + 8); }

template <int kAtoms, class T, bool kArgmax, bool kNormalize>
void launch_shape(const ForwardArgs& args, cudaStream_t stream) {
  const Segments& queries = args.problem.queries;
  const Segments& documents = args.problem.documents;
  const bool cross = args.problem.pairing == Pairing::cross;
  // Rows that meet one document: all blocks of a cross product, else those of an average query.
  const int64_t average =
      queries.packed() ? ceil_div(queries.extent, std::max<int64_t>(queries.count, 1)) : queries.extent;
  const int64_t blocks = cross ? args.block_count : ceil_div(average, kBlockTokens);
  if (blocks <= 2) return launch<Sm90Lean<kAtoms>, T, kArgmax, kNormalize>(args, stream);
  if (blocks <= 4) return launch<Sm90Middle<kAtoms>, T, kArgmax, kNormalize>(args, stream);
  const int64_t length =
      documents.packed() ? ceil_div(documents.extent, std::max<int64_t>(documents.count, 1)) : documents.extent;
  // Winners and factors take the registers that the widest tile would need.
  if constexpr (!kArgmax && !kNormalize)
    if (tile_cost(length, 152) < std::min(tile_cost(length, 104), tile_cost(length, 128)))
      return launch<Sm90Wide<kAtoms, 152>, T, kArgmax, kNormalize>(args, stream);
  if (tile_cost(length, 128) <= tile_cost(length, 104))
    return launch<Sm90Wide<kAtoms, 128>, T, kArgmax, kNormalize>(args, stream);
  launch<Sm90Wide<kAtoms, 104>, T, kArgmax, kNormalize>(args, stream);
}

template <int kAtoms, class T>
void launch_form(const ForwardArgs& args, cudaStream_t stream) {
  if (args.argmax)
    args.problem.normalize ? launch_shape<kAtoms, T, true, true>(args, stream)
                           : launch_shape<kAtoms, T, true, false>(args, stream);
  else
    args.problem.normalize ? launch_shape<kAtoms, T, false, true>(args, stream)
                           : launch_shape<kAtoms, T, false, false>(args, stream);
}

template <class T>
void select_dim(const ForwardArgs& args, cudaStream_t stream) {
  args.problem.queries.dim <= kAtom ? launch_form<1, T>(args, stream) : launch_form<2, T>(args, stream);
}

}  // namespace
}  // namespace cuda
}  // namespace maxsim
