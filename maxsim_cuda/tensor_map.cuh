// One side of a problem as the copy engine sees it.
#pragma once

#include <cudaTypedefs.h>

#include <algorithm>

#include "check.h"
#include "sm90_config.cuh"

namespace maxsim {
namespace cuda {
namespace {

// Behind the last of a side's rows, whose features follow one another.
const char* end_of(const Segments& side) {
  const SegmentStride stride = side.packed() ? SegmentStride{} : side.segment_stride;
  const int64_t outer = side.packed() ? 1 : side.count / side.inner;
  const int64_t last = (outer - 1) * stride.outer + (side.inner - 1) * stride.inner;
  return static_cast<const char*>(side.data) +
         (last + (side.extent - 1) * side.token_stride + row_elements(side)) * element_size(side.dtype);
}

// The bytes, up to eight, that where a row begins is a multiple of.
int row_alignment(const Segments& side) {
  const int64_t elements = side.token_stride | side.segment_stride.outer | side.segment_stride.inner | 8;
  const int64_t bytes = reinterpret_cast<intptr_t>(side.data) | elements * element_size(side.dtype);
  return static_cast<int>(std::min<int64_t>(bytes & -bytes, 8));
}

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

CUtensorMapDataType map_type(DType type) {
  if (is_stored(type)) return CU_TENSOR_MAP_DATA_TYPE_UINT8;
  return type == DType::f32   ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32
         : type == DType::f16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                              : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
}

// Whether alignment and strides allow a tensor map of so many sizes and of the bytes from one to the next. Strides that
// are never stepped along become ones that do.
template <int kRank>
bool maps(const Segments& side, const cuuint64_t (&sizes)[kRank], cuuint64_t (&strides)[kRank - 1]) {
  if (side.feature_stride != 1 || reinterpret_cast<uintptr_t>(side.data) % 16) return false;
  for (int i = 0; i < kRank - 1; ++i) {
    if (sizes[i + 1] == 1) strides[i] = 16;
    if (strides[i] % 16 || strides[i] >> 40 || sizes[i + 1] >> 32) return false;
  }
  return true;
}

// False where they do not allow it. L2 fetches a line at a time: two at once cost a long stream 5 % of its speed.
template <int kRank>
bool encode(const Segments& side, CUtensorMap* map, const cuuint64_t (&sizes)[kRank], cuuint64_t (&strides)[kRank - 1],
            const cuuint32_t (&box)[kRank], CUtensorMapSwizzle swizzle) {
  if (!maps(side, sizes, strides)) return false;
  cuuint32_t step[kRank];
  std::fill_n(step, kRank, 1);
  return encoder()(map, map_type(side.dtype), kRank, const_cast<void*>(side.data), sizes, strides, box, step,
                   CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                   CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

// A [dim, rows, inner, outer] view of one side.
struct SideView {
  cuuint64_t sizes[4], strides[3];

  explicit SideView(const Segments& side)
      : sizes{static_cast<cuuint64_t>(row_elements(side)), static_cast<cuuint64_t>(std::max<int64_t>(side.extent, 1)),
              static_cast<cuuint64_t>(side.packed() ? 1 : side.inner),
              static_cast<cuuint64_t>(side.packed() ? 1 : std::max<int64_t>(side.count / side.inner, 1))} {
    const cuuint64_t size = element_size(side.dtype);
    strides[0] = static_cast<cuuint64_t>(side.token_stride) * size;
    strides[1] = static_cast<cuuint64_t>(side.segment_stride.inner) * size;
    strides[2] = static_cast<cuuint64_t>(side.segment_stride.outer) * size;
  }
};

bool maps(const Segments& side) {
  SideView view(side);
  return maps(side, view.sizes, view.strides);
}

// In boxes of so many rows and bytes of each.
bool describe(const Segments& side, int box_rows, CUtensorMap* map, int box_bytes = 128) {
  SideView view(side);
  const cuuint32_t box[4] = {static_cast<cuuint32_t>(box_bytes / element_size(side.dtype)),
                             static_cast<cuuint32_t>(box_rows), 1, 1};
  return encode(side, map, view.sizes, view.strides, box,
                box_bytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B);
}

// A view of padded rows of two 128-byte atoms in boxes of all that a tile is: eight rows' first atoms, their second
// ones, and so on with the next eight rows. So a row's lines are asked for within a short time of one another, by one
// instruction. Its dimensions overlap: a row is one of eight from any row on, and another one of eights; the first ends
// where the last eight of a tile reach a document's end, or that of all packed rows.
bool describe_whole(const Segments& side, int tile_rows, CUtensorMap* map) {
  const cuuint64_t size = element_size(side.dtype), segments = side.packed() ? 1 : side.count;
  const cuuint64_t outer = segments / side.inner;
  if (side.dim * size != 256 || side.extent < tile_rows) return false;
  if (outer > 1 && side.inner > 1 && side.segment_stride.outer != side.inner * side.segment_stride.inner) return false;
  const int64_t segment = side.inner > 1 ? side.segment_stride.inner : side.segment_stride.outer;
  const cuuint64_t row = static_cast<cuuint64_t>(side.token_stride) * size;
  const cuuint64_t sizes[5] = {128 / size, static_cast<cuuint64_t>(side.extent - tile_rows + 8), 2,
                               static_cast<cuuint64_t>(tile_rows / 8), segments};
  cuuint64_t strides[4] = {row, 128, 8 * row, static_cast<cuuint64_t>(segment) * size};
  const cuuint32_t box[5] = {static_cast<cuuint32_t>(sizes[0]), 8, 2, static_cast<cuuint32_t>(tile_rows / 8), 1};
  return encode(side, map, sizes, strides, box, CU_TENSOR_MAP_SWIZZLE_128B);
}

}  // namespace
}  // namespace cuda
}  // namespace maxsim
