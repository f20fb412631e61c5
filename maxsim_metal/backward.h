// Backward from the saved argmax. Every gradient row has one owner that adds its contributions in pair order, so the
// result is bitwise the same on every run and no gradient buffer exists beside the gradient itself.
#pragma once

#include <metal_stdlib>

#include "device.h"
#include "pairs.h"
#include "params.h"

namespace maxsim {
namespace metal_backend {

using namespace metal;

// What both gradients read.
struct Saved {
  device const uchar* queries;
  device const uchar* documents;
  device const uchar* query_extents;
  device const uchar* document_extents;
  device const uchar* query_ids;
  device const uchar* document_ids;
  device const float* grad_scores;
  device const int32_t* argmax;      // [pairs, argmax_width]
  device const int64_t* sorted_ids;  // of a pair list, stable: a segment's pairs are neighbours
  device const int64_t* pair_order;  // the pair behind each sorted id
  device const float* query_norms;   // 1 / norm of every token row, when normalising
  device const float* document_norms;
};

// One query token's contribution to a gradient row: `factor` times the other side's row at element `row`.
struct Contribution {
  int64_t row;
  float factor;
  bool exists;
};

// Of pair `pair` and query token `slot`; `winner` says which document token it went to.
inline Contribution contribution_of(constant ProblemParams& problem, Saved saved, bool to_query, int64_t pair,
                                    int64_t slot, int64_t winner) {
  Contribution result = {0, 0.0f, false};
  const PairIds ids = pair_ids(problem, saved.query_ids, saved.document_ids, pair);
  const Span query = span_of(problem.queries, saved.query_extents, ids.query);
  const Span document = span_of(problem.documents, saved.document_extents, ids.document);
  if (winner < 0 || winner >= document.length || slot >= query.length) return result;
  result.exists = true;
  result.factor = saved.grad_scores[pair];
  if (to_query) {
    result.row = document.begin + winner * problem.documents.token_stride;
    if (problem.normalize) result.factor *= saved.document_norms[document.first_row + winner];
  } else {
    result.row = query.begin + slot * problem.queries.token_stride;
    if (problem.normalize) result.factor *= saved.query_norms[query.first_row + slot];
  }
  return result;
}

inline int64_t shuffle(int64_t value, ushort lane) {
  const uint low = simd_shuffle(uint(value), lane), high = simd_shuffle(uint(value >> 32), lane);
  return int64_t(ulong(high) << 32 | low);
}

constant constexpr int kPerLane = 8;  // features of a query row that a lane sums at a time

// One simdgroup owns one query token; its lanes share out the features and look up 32 pairs at once.
inline void query_gradient(constant ProblemParams& problem, Saved saved, device uchar* gradient, int64_t segment,
                           int64_t token, int lane) {
  constant SideParams& own = problem.queries;
  const Span span = span_of(own, saved.query_extents, segment);
  if (!span.valid || token >= span.length) return;
  const PairRange range = pairs_of(problem, saved.sorted_ids, true, segment);
  const int64_t begin = span.begin + token * own.token_stride;
  const float inverse = problem.normalize ? saved.query_norms[span.first_row + token] : 1.0f;
  float dot = 0.0f;
  for (int pass = problem.normalize ? 0 : 1; pass < 2; ++pass) {  // the norm's share needs <x, sum> of all features
    for (int64_t k0 = 0; k0 < problem.dim; k0 += 32 * kPerLane) {
      float sums[kPerLane];
      for (int i = 0; i < kPerLane; ++i) sums[i] = 0.0f;
      bool touched = false;
      for (int64_t n0 = range.from; n0 < range.to; n0 += 32) {
        Contribution mine = {0, 0.0f, false};
        if (n0 + lane < range.to) {
          const int64_t pair = nth_pair(problem, saved.pair_order, true, segment, n0 + lane);
          mine = contribution_of(problem, saved, true, pair, token, saved.argmax[pair * problem.argmax_width + token]);
        }
        const int count = int(min(int64_t(32), range.to - n0));
        for (int source = 0; source < count; ++source) {
          if (simd_shuffle(uint(mine.exists), ushort(source)) == 0) continue;
          touched = true;
          const int64_t row = shuffle(mine.row, ushort(source));
          const float factor = simd_shuffle(mine.factor, ushort(source));
          for (int i = 0; i < kPerLane; ++i) {
            const int64_t k = k0 + i * 32 + lane;
            if (k < problem.dim)
              sums[i] = fma(
                  factor,
                  load_element(saved.documents, problem.documents.element, row + k * problem.documents.feature_stride),
                  sums[i]);
          }
        }
      }
      if (!touched) return;  // exactly zero, whatever the row itself holds
      for (int i = 0; i < kPerLane; ++i) {
        const int64_t k = k0 + i * 32 + lane;
        if (k >= problem.dim) continue;
        const float x =
            problem.normalize ? load_element(saved.queries, own.element, begin + k * own.feature_stride) : 0.0f;
        if (pass == 0)
          dot = fma(x, sums[i], dot);
        else
          store_element(gradient, own.element, (span.first_row + token) * problem.dim + k,
                        through_norm(sums[i], x, inverse, dot));
      }
    }
    if (pass == 0) dot = simd_sum(dot);
  }
}

// Threadgroup memory of the documents' gradient.
struct Slice {
  threadgroup float* sums;  // [tokens][features], a column to each thread
  threadgroup int64_t* rows;
  threadgroup float* factors;
  threadgroup int32_t* tokens;
  threadgroup float* dots;      // [tokens][simdgroups]
  threadgroup int32_t* counts;  // [simdgroups]
};

constant constexpr int kSumBytes = kGradientTokens * kGradientFeatures * 4;

inline Slice slice_in(threadgroup uchar* memory) {
  Slice slice;
  slice.sums = (threadgroup float*)memory;
  slice.rows = (threadgroup int64_t*)(memory + kSumBytes);
  slice.factors = (threadgroup float*)(memory + kSumBytes + kThreads * 8);
  slice.tokens = (threadgroup int32_t*)(memory + kSumBytes + kThreads * 12);
  slice.dots = (threadgroup float*)(memory + kSumBytes + kThreads * 16);
  slice.counts = (threadgroup int32_t*)(memory + kSumBytes + kThreads * 16 + kGradientTokens * kSimdgroups * 4);
  return slice;
}

static_assert(kGradientFeatures == kThreads, "a thread owns a feature");
static_assert(kGradientTokens <= 32, "which tokens were won is a word of bits");
static_assert(kSumBytes + kThreads * 16 + kGradientTokens * kSimdgroups * 4 + kSimdgroups * 4 <= kBackwardMemoryBytes,
              "the host asks for enough threadgroup memory");

// Adds to the slice's sums whatever query tokens won one of its tokens, for one feature of each thread.
// Returns which tokens were won.
inline uint add_contributions(constant ProblemParams& problem, Saved saved, Slice slice, int64_t segment,
                              PairRange range, int64_t first_token, int length, int64_t k, uint index, uint lane,
                              uint simdgroup) {
  const int64_t width = problem.argmax_width, entries = (range.to - range.from) * width;
  uint won = 0;
  for (int64_t first = 0; first < entries; first += kThreads) {
    Contribution mine = {0, 0.0f, false};
    int64_t token = 0;
    if (first + index < entries) {
      const int64_t n = quotient(first + index, width), slot = first + index - n * width;
      const int64_t pair = nth_pair(problem, saved.pair_order, false, segment, range.from + n);
      const int64_t winner = saved.argmax[pair * width + slot];
      token = winner - first_token;
      if (token >= 0 && token < length) mine = contribution_of(problem, saved, false, pair, slot, winner);
    }
    // In the order of entries, without gaps.
    const uint before = simd_prefix_exclusive_sum(uint(mine.exists)), count = simd_sum(uint(mine.exists));
    if (lane == 0) slice.counts[simdgroup] = int32_t(count);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    int place = int(before), all = 0;
    for (uint s = 0; s < uint(kSimdgroups); ++s) {
      if (s < simdgroup) place += slice.counts[s];
      all += slice.counts[s];
    }
    if (mine.exists) {
      slice.rows[place] = mine.row;
      slice.factors[place] = mine.factor;
      slice.tokens[place] = int32_t(token);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (int i = 0; i < all; ++i) {
      const int32_t to = slice.tokens[i];
      won |= 1u << to;
      if (k >= problem.dim) continue;
      threadgroup float* sum = slice.sums + to * kGradientFeatures + index;
      *sum =
          fma(slice.factors[i],
              load_element(saved.queries, problem.queries.element, slice.rows[i] + k * problem.queries.feature_stride),
              *sum);
    }
  }
  return won;
}

// One threadgroup owns a slice of a document's tokens, each thread a feature of all of them.
inline void document_gradient(constant ProblemParams& problem, Saved saved, device uchar* gradient, Slice slice,
                              int64_t segment, Span span, int64_t first_token, uint index, uint lane, uint simdgroup) {
  constant SideParams& own = problem.documents;
  const PairRange range = pairs_of(problem, saved.sorted_ids, false, segment);
  const int length = int(min(int64_t(kGradientTokens), span.length - first_token));
  if (lane == 0)
    for (int t = 0; t < kGradientTokens; ++t) slice.dots[t * kSimdgroups + simdgroup] = 0.0f;
  for (int pass = problem.normalize ? 0 : 1; pass < 2; ++pass) {
    for (int64_t k0 = 0; k0 < problem.dim; k0 += kGradientFeatures) {
      const int64_t k = k0 + index;
      for (int t = 0; t < kGradientTokens; ++t) slice.sums[t * kGradientFeatures + index] = 0.0f;
      const uint won =
          add_contributions(problem, saved, slice, segment, range, first_token, length, k, index, lane, simdgroup);
      for (int t = 0; t < length; ++t) {
        if ((won >> t & 1) == 0) continue;  // exactly zero, whatever the row itself holds
        const float sum = slice.sums[t * kGradientFeatures + index];
        const int64_t row = span.begin + (first_token + t) * own.token_stride;
        const float x = problem.normalize && k < problem.dim
                            ? load_element(saved.documents, own.element, row + k * own.feature_stride)
                            : 0.0f;
        if (pass == 0) {
          const float part = simd_sum(x * sum);
          if (lane == 0) slice.dots[t * kSimdgroups + simdgroup] += part;
        } else if (k < problem.dim) {
          const int64_t own_row = span.first_row + first_token + t;
          float dot = 0.0f;
          for (int s = 0; s < kSimdgroups; ++s) dot += slice.dots[t * kSimdgroups + s];
          store_element(gradient, own.element, own_row * problem.dim + k,
                        through_norm(sum, x, problem.normalize ? saved.document_norms[own_row] : 1.0f, dot));
        }
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);  // all parts of the dots are there
  }
}

}  // namespace metal_backend
}  // namespace maxsim
