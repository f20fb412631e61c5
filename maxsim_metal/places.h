// Which elements of a simdgroup matrix a lane holds.
#pragma once

#include <metal_simdgroup_matrix>
#include <metal_stdlib>

#include "device.h"

namespace maxsim {
namespace metal_backend {

using namespace metal;

// Which row and column of an 8 x 8 matrix each of this lane's two elements is. Apple does not document it, so it is
// read off a matrix that says it.
struct Places {
  int row[2];
  int column[2];
};

inline Places learn_places(threadgroup uchar* memory, uint index) {
  threadgroup float* numbers = (threadgroup float*)memory;
  if (index < 64) numbers[index] = float(index);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  simdgroup_matrix<float, 8, 8> matrix;
  simdgroup_load(matrix, numbers, 8);
  Places places;
  for (int e = 0; e < 2; ++e) {
    const int number = int(matrix.thread_elements()[e]);
    places.row[e] = number / 8;
    places.column[e] = number % 8;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return places;
}

}  // namespace metal_backend
}  // namespace maxsim
