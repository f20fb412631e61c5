// How a backward pass is shared out: slices of segments, each with one owner, and the pairs that add to them.
#pragma once

#include <algorithm>
#include <vector>

#include "launch.h"

namespace maxsim {
namespace cpu {

// Rows of one segment that a task owns: the fp32 slice stays in L2 at d = 128.
constexpr int64_t kSliceRows = 512;

// The pairs each segment of one side takes part in, in pair order.
struct PairsOf {
  std::vector<int64_t> first;  // list pairing only: CSR
  std::vector<int64_t> pairs;

  PairsOf(const Problem& problem, const IndexView& ids, int64_t count) {
    if (problem.pairing != Pairing::list) return;
    first.assign(count + 1, 0);
    for (int64_t p = 0; p < problem.pairs; ++p) ++first[ids[p] + 1];
    for (int64_t s = 0; s < count; ++s) first[s + 1] += first[s];
    pairs.resize(problem.pairs);
    std::vector<int64_t> next(first.begin(), first.end() - 1);
    for (int64_t p = 0; p < problem.pairs; ++p) pairs[next[ids[p]]++] = p;
  }
};

struct Pair {
  int64_t number, query, document;
};

// Calls visit(pair) for every pair of the segment, in pair order.
template <class Visit>
void for_each_pair(const Problem& problem, const PairsOf& of, bool query_side, int64_t s, const Visit& visit) {
  const int64_t documents = problem.documents.count, inner = problem.documents.inner;
  switch (problem.pairing) {
    case Pairing::cross:
      if (query_side)
        for (int64_t d = 0; d < documents; ++d) visit(Pair{s * documents + d, s, d});
      else
        for (int64_t q = 0; q < problem.queries.count; ++q) visit(Pair{q * documents + s, q, s});
      return;
    case Pairing::slab:
      if (query_side)
        for (int64_t k = 0; k < inner; ++k) visit(Pair{s * inner + k, s, s * inner + k});
      else
        visit(Pair{s, s / inner, s});
      return;
    case Pairing::list:
      for (int64_t i = of.first[s]; i < of.first[s + 1]; ++i) {
        const int64_t p = of.pairs[i];
        visit(Pair{p, problem.query_ids[p], problem.document_ids[p]});
      }
  }
}

// 1 / norm of every token of a side, by segment; empty unless normalising.
struct Norms {
  std::vector<int64_t> first;
  std::vector<float> inverse;

  Norms(const Problem& problem, const Segments& side, const Isa& isa) {
    if (!problem.normalize) return;
    first.resize(side.count + 1, 0);
    for (int64_t s = 0; s < side.count; ++s) first[s + 1] = first[s] + side.length(s);
    inverse.resize(first.back());
    parallel_dynamic(
        side.count, false, [&] { return std::vector<float>(side.dim); },
        [&](int64_t s, std::vector<float>& wide) {
          const int64_t begin = side.begin(s);
          for (int64_t t = 0; t < first[s + 1] - first[s]; ++t) {
            widen_row(isa, side, row_pointer(side, begin, t), wide.data());
            isa.inverse_norms(reinterpret_cast<const char*>(wide.data()), 0, DType::f32, 1, side.dim,
                              inverse.data() + first[s] + t);
          }
        });
  }
  float of(int64_t segment, int64_t token) const { return inverse.empty() ? 1.f : inverse[first[segment] + token]; }
};

// Chain rule through u = x / max(|x|, eps), in place: inverse * (g - u <u, g>); below eps only the scale is left.
// `wide` is room for a row.
inline void through_norm(const Isa& isa, const Segments& side, int64_t segment, int64_t token, float inverse,
                         float* gradient, float* wide) {
  float projection = 0.f;
  widen_row(isa, side, row_pointer(side, side.begin(segment), token), wide);
  if (inverse < 1.f / kNormEps) projection = isa.dot(wide, gradient, side.dim) * inverse * inverse;
  for (int64_t k = 0; k < side.dim; ++k) gradient[k] = inverse * (gradient[k] - wide[k] * projection);
}

// One row of a contiguous gradient, [*, dim] in token order of `side`.
inline char* gradient_row(void* gradient, const Segments& side, int64_t segment, int64_t token) {
  const int64_t first_row = side.packed() ? side.offsets[segment] : segment * side.extent;
  return static_cast<char*>(gradient) + (first_row + token) * side.dim * element_size(side.dtype);
}

// Calls body(segment, from, to, scratch) on slices that cover every segment, enough of them for all threads.
template <class Scratch, class Body>
void for_each_slice(const Segments& side, const Body& body) {
  struct Slice {
    int64_t segment, from, to;
  };
  std::vector<Slice> slices;
  const int64_t threads = thread_count();
  for (int64_t s = 0; s < side.count; ++s) {
    const int64_t length = side.length(s);
    const int64_t even = side.count >= 2 * threads ? length : (length + 2 * threads - 1) / (2 * threads);
    const int64_t step = std::max<int64_t>(1, std::min(kSliceRows, even));
    for (int64_t from = 0; from < length; from += step) slices.push_back({s, from, std::min(length, from + step)});
  }
  parallel_dynamic(
      static_cast<int64_t>(slices.size()), false, [] { return Scratch{}; },
      [&](int64_t i, Scratch& scratch) { body(slices[i].segment, slices[i].from, slices[i].to, scratch); });
}

}  // namespace cpu
}  // namespace maxsim
