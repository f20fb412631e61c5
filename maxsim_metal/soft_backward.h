// Backward of the soft maximum: similarities again, each document token's share of what its query tokens have added,
// and the other side's rows once more, weighted. A threadgroup owns 32 rows of one side and walks their pairs in
// order, so every gradient has one owner and the same bits on every run.
#pragma once

#include <metal_simdgroup_matrix>
#include <metal_stdlib>

#include "device.h"
#include "pairs.h"
#include "params.h"
#include "places.h"

namespace maxsim {
namespace metal_backend {

using namespace metal;

struct SoftSaved {
  device const uchar* queries;
  device const uchar* documents;
  device const uchar* query_extents;
  device const uchar* document_extents;
  device const uchar* query_mask;
  device const uchar* document_mask;
  device const uchar* query_ids;
  device const uchar* document_ids;
  device const float* grad_scores;
  device const float* parts;         // [pairs, argmax_width]
  device const int64_t* sorted_ids;  // of a pair list, stable: a segment's pairs are neighbours
  device const int64_t* pair_order;  // the pair behind each sorted id
  device const float* query_norms;   // 1 / norm of every token row, when normalising
  device const float* document_norms;
};

// One side of the meeting, by whether it owns the gradient. Arrays count rows of a step.
struct SoftSpace {
  threadgroup float* own;      // [rows][pitch] features of a step
  threadgroup float* other;    // [rows][pitch]
  threadgroup float* weights;  // [own rows][pitch] shares of the other side's rows
  threadgroup float* own_norm;
  threadgroup float* other_norm;
  threadgroup float* own_part;  // of query tokens, on whichever side they are
  threadgroup float* other_part;
  threadgroup float* dots;  // [own rows][columns of a matrix] parts of <x, gradient>
  threadgroup int32_t* own_kept;
  threadgroup int32_t* other_kept;
};

constant constexpr int kSoftTile = kSoftRows * kSoftPitch;

inline SoftSpace soft_space_in(threadgroup uchar* memory) {
  SoftSpace space;
  space.own = (threadgroup float*)memory;
  space.other = space.own + kSoftTile;
  space.weights = space.other + kSoftTile;
  space.own_norm = space.weights + kSoftTile;
  space.other_norm = space.own_norm + kSoftRows;
  space.own_part = space.other_norm + kSoftRows;
  space.other_part = space.own_part + kSoftRows;
  space.dots = space.other_part + kSoftRows;
  space.own_kept = (threadgroup int32_t*)(space.dots + kSoftRows * 8);
  space.other_kept = space.own_kept + kSoftRows;
  return space;
}

static_assert((3 * kSoftTile + 4 * kSoftRows + 8 * kSoftRows + 2 * kSoftRows) * 4 <= kSoftMemoryBytes,
              "the host asks for enough threadgroup memory");
static_assert(kSoftRows == 8 * kSimdgroups, "a simdgroup owns eight rows");

// A segment of one side, and where its tokens' rows, norms and masks are.
struct SoftSide {
  device const uchar* tokens;
  device const uchar* mask;
  device const float* norms;
  Span span;
};

// Features [k0, k0 + 32) of 32 rows from `first` on; zeros where there is no token, or none that is kept.
inline void stage_rows(constant SideParams& side, SoftSide from, int64_t first, int64_t k0, int64_t dim,
                       threadgroup float* tile, threadgroup const int32_t* kept, uint index) {
  for (int i = int(index); i < kSoftRows * 32; i += kThreads) {
    const int row = i / 32;
    const int64_t k = k0 + i % 32;
    float value = 0.0f;
    if (kept[row] && k < dim)
      value = load_element(from.tokens, side.element,
                           from.span.begin + (first + row) * side.token_stride + k * side.feature_stride);
    tile[row * kSoftPitch + i % 32] = value;
  }
}

// Which of 32 rows count, and the norms of those.
inline void look_at_rows(constant SideParams& side, SoftSide from, int64_t first, int normalize,
                         threadgroup int32_t* kept, threadgroup float* norms, uint index) {
  if (index >= uint(kSoftRows)) return;
  const int64_t token = first + index;
  const bool counts = token < from.span.length && token_kept(side, from.mask, from.span.mask_begin, token);
  kept[index] = counts;
  norms[index] = counts && normalize ? from.norms[from.span.first_row + token] : 1.0f;
}

// What each of a query's tokens has added to the score of `pair`, of 32 tokens from `first` on.
inline void look_at_parts(constant ProblemParams& problem, SoftSaved saved, int64_t pair, int64_t first,
                          threadgroup const int32_t* kept, threadgroup float* parts, uint index) {
  if (index >= uint(kSoftRows)) return;
  parts[index] = kept[index] ? saved.parts[pair * problem.argmax_width + first + index] : 0.0f;
}

// The weights of a step's rows, from the similarities in this simdgroup's matrices: the score's gradient times the
// share exp((s - part) / tau), times the other row's norm. Weights times similarities are this lane's part of
// <x, gradient>, which the norm's share of the gradient needs.
inline void share_out(SoftSpace space, Places places, bool of_queries, float grad, float tau, int own_row,
                      thread simdgroup_matrix<float, 8, 8> (&sums)[4], thread float (&dots)[2]) {
  for (int j = 0; j < 4; ++j)
    for (int e = 0; e < 2; ++e) {
      const int row = own_row + places.row[e], column = j * 8 + places.column[e];
      const float product = sums[j].thread_elements()[e];
      const float part = of_queries ? space.own_part[row] : space.other_part[column];
      float weight = 0.0f;
      if (space.own_kept[row] && space.other_kept[column]) {
        const float similarity = product * space.own_norm[row] * space.other_norm[column];
        const float share = precise::exp((similarity - part) / tau);
        weight = grad * (isfinite(part) ? share : NAN) * space.other_norm[column];
        dots[e] = fma(weight, product, dots[e]);
      }
      space.weights[row * kSoftPitch + column] = weight;
    }
}

// What a threadgroup's gradient is of, and the step that it is at.
struct SoftStep {
  int64_t first;  // of the 32 own tokens
  int64_t from;   // of the 32 tokens of the other side
  int64_t pair;
};

// Similarities of this simdgroup's eight own rows with a step's rows of the other side.
inline void multiply_rows(constant SideParams& own_side, SoftSide own, constant SideParams& other_side, SoftSide other,
                          SoftSpace space, SoftStep step, int64_t dim, uint index, int own_row,
                          thread simdgroup_matrix<float, 8, 8> (&sums)[4]) {
  simdgroup_matrix<float, 8, 8> a, b;
  for (int j = 0; j < 4; ++j) sums[j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  for (int64_t k = 0; k < dim; k += 32) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    stage_rows(own_side, own, step.first, k, dim, space.own, space.own_kept, index);
    stage_rows(other_side, other, step.from, k, dim, space.other, space.other_kept, index);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (int f = 0; f < 32; f += 8) {
      simdgroup_load(a, space.own + own_row * kSoftPitch + f, kSoftPitch);
      for (int j = 0; j < 4; ++j) {
        simdgroup_load(b, space.other + j * 8 * kSoftPitch + f, kSoftPitch, ulong2(0), true);
        simdgroup_multiply_accumulate(sums[j], a, b, sums[j]);
      }
    }
  }
}

// Adds the other side's rows, as the weights have them, to the sums of features from `k0` on.
inline void add_rows(constant SideParams& other_side, SoftSide other, SoftSpace space, SoftStep step, int64_t k0,
                     int64_t dim, uint index, int own_row,
                     thread simdgroup_matrix<float, 8, 8> (&gradients)[kSoftFeatures / 8]) {
  simdgroup_matrix<float, 8, 8> a, b;
  for (int piece = 0; piece < kSoftFeatures / 32; ++piece) {
    if (k0 + piece * 32 >= dim) break;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    stage_rows(other_side, other, step.from, k0 + piece * 32, dim, space.other, space.other_kept, index);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (int j = 0; j < 4; ++j) {
      simdgroup_load(a, space.weights + own_row * kSoftPitch + j * 8, kSoftPitch);
      for (int f = 0; f < 4; ++f) {
        simdgroup_load(b, space.other + j * 8 * kSoftPitch + f * 8, kSoftPitch);
        simdgroup_multiply_accumulate(gradients[piece * 4 + f], a, b, gradients[piece * 4 + f]);
      }
    }
  }
}

// Writes this simdgroup's eight rows. `dots` are this lane's parts of <x, gradient>: eight lanes hold a row, each with
// the columns of its place.
inline void store_rows(constant SideParams& side, SoftSide own, SoftSpace space, Places places, int64_t first,
                       int64_t k0, int64_t dim, bool normalize, int own_row, device uchar* gradient,
                       thread simdgroup_matrix<float, 8, 8> (&gradients)[kSoftFeatures / 8],
                       thread const float (&dots)[2]) {
  simdgroup_barrier(mem_flags::mem_threadgroup);
  for (int e = 0; e < 2; ++e) space.dots[(own_row + places.row[e]) * 8 + places.column[e]] = dots[e];
  simdgroup_barrier(mem_flags::mem_threadgroup);
  for (int e = 0; e < 2; ++e) {
    const int row = own_row + places.row[e];
    if (!space.own_kept[row]) continue;
    float dot = 0.0f;
    for (int column = 0; column < 8; ++column) dot += space.dots[row * 8 + column];
    const int64_t begin = own.span.begin + (first + row) * side.token_stride;
    for (int i = 0; i < kSoftFeatures / 8; ++i) {
      const int64_t k = k0 + i * 8 + places.column[e];
      if (k >= dim) break;
      const float x = normalize ? load_element(own.tokens, side.element, begin + k * side.feature_stride) : 0.0f;
      store_element(gradient, side.element, (own.span.first_row + first + row) * dim + k,
                    through_norm(gradients[i].thread_elements()[e], x, space.own_norm[row], dot));
    }
  }
}

// One threadgroup's 32 rows of segment `segment` of the own side, from token `first` on.
template <bool kOfQueries>
inline void soft_gradient(constant BackwardParams& params, SoftSaved saved, device uchar* gradient, SoftSpace space,
                          Places places, int64_t segment, Span own_span, int64_t first, uint index, uint simdgroup) {
  constant ProblemParams& problem = params.problem;
  constant SideParams& own_side = kOfQueries ? problem.queries : problem.documents;
  constant SideParams& other_side = kOfQueries ? problem.documents : problem.queries;
  const SoftSide own = {kOfQueries ? saved.queries : saved.documents,
                        kOfQueries ? saved.query_mask : saved.document_mask,
                        kOfQueries ? saved.query_norms : saved.document_norms, own_span};
  SoftSide other = {kOfQueries ? saved.documents : saved.queries, kOfQueries ? saved.document_mask : saved.query_mask,
                    kOfQueries ? saved.document_norms : saved.query_norms, own_span};
  const PairRange range = pairs_of(problem, saved.sorted_ids, kOfQueries, segment);
  const int own_row = int(simdgroup) * 8;

  threadgroup_barrier(mem_flags::mem_threadgroup);
  look_at_rows(own_side, own, first, problem.normalize, space.own_kept, space.own_norm, index);
  for (int64_t k0 = 0; k0 < problem.dim; k0 += kSoftFeatures) {
    simdgroup_matrix<float, 8, 8> gradients[kSoftFeatures / 8];
    for (int i = 0; i < kSoftFeatures / 8; ++i) gradients[i] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    float dots[2] = {0.0f, 0.0f};
    bool touched = false;
    for (int64_t n = range.from; n < range.to; ++n) {
      SoftStep step = {first, 0, nth_pair(problem, saved.pair_order, kOfQueries, segment, n)};
      const PairIds ids = pair_ids(problem, saved.query_ids, saved.document_ids, step.pair);
      other.span = kOfQueries ? span_of(problem.documents, saved.document_extents, ids.document)
                              : span_of(problem.queries, saved.query_extents, ids.query);
      // A query longer than its slots has no score, and no gradient.
      if (!kOfQueries && other.span.length > problem.argmax_width) continue;
      for (; step.from < other.span.length; step.from += kSoftRows) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
        look_at_rows(other_side, other, step.from, problem.normalize, space.other_kept, space.other_norm, index);
        if (kOfQueries)
          look_at_parts(problem, saved, step.pair, first, space.own_kept, space.own_part, index);
        else
          look_at_parts(problem, saved, step.pair, step.from, space.other_kept, space.other_part, index);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        const bool some = simd_any(space.other_kept[index % 32] != 0);
        if (!some) continue;
        touched = true;
        simdgroup_matrix<float, 8, 8> sums[4];
        multiply_rows(own_side, own, other_side, other, space, step, problem.dim, index, own_row, sums);
        share_out(space, places, kOfQueries, saved.grad_scores[step.pair], params.tau, own_row, sums, dots);
        add_rows(other_side, other, space, step, k0, problem.dim, index, own_row, gradients);
      }
    }
    if (!touched) return;  // exactly zero, whatever the rows themselves hold
    store_rows(own_side, own, space, places, first, k0, problem.dim, problem.normalize, own_row, gradient, gradients,
               dots);
  }
}

}  // namespace metal_backend
}  // namespace maxsim
