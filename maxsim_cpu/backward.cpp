// Backward on CPU: every gradient row has one owner that sums its contributions in pair order, so the result is
// bitwise the same for any number of threads, and no fp32 gradient buffer exists beyond a slice per thread.
#include <algorithm>
#include <atomic>
#include <stdexcept>

#include "launch.h"

namespace maxsim {
namespace cpu {
namespace {

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

struct Scratch {
  std::vector<float> sums;
  std::vector<float> wide;
};

struct Gradient {
  const Problem& problem;
  const Isa& isa;
  const Segments& own;    // the side whose gradient this is
  const Segments& other;  // the side it sums rows of
  const Norms& own_norms;
  const Norms& other_norms;
  bool query_side;
  const float* grad_scores;
  const int32_t* argmax;
  char* out;  // [*, dim] contiguous, in token order of `own`

  void add(float* sum, int64_t segment, int64_t token, float grad, Scratch& scratch) const {
    const char* row = row_pointer(other, other.begin(segment), token);
    const float factor = grad * other_norms.of(segment, token);
    if (other.feature_stride == 1) {
      isa.accumulate(sum, row, other.dtype, factor, own.dim);
    } else {
      widen_row(isa, other, row, scratch.wide.data());
      isa.accumulate(sum, reinterpret_cast<const char*>(scratch.wide.data()), DType::f32, factor, own.dim);
    }
  }

  // Chain rule through x / max(|x|, eps): inverse * (g - u <u, g>) with u = x * inverse; below eps only the scale is
  // left.
  void through_norm(float* sum, int64_t segment, int64_t token, Scratch& scratch) const {
    const float inverse = own_norms.of(segment, token);
    float projection = 0.f;
    widen_row(isa, own, row_pointer(own, own.begin(segment), token), scratch.wide.data());
    if (inverse < 1.f / kNormEps) projection = isa.dot(scratch.wide.data(), sum, own.dim) * inverse * inverse;
    for (int64_t k = 0; k < own.dim; ++k) sum[k] = inverse * (sum[k] - scratch.wide[k] * projection);
  }

  void slice(int64_t segment, int64_t from, int64_t to, const PairsOf& pairs, Scratch& scratch) const {
    scratch.sums.assign((to - from) * own.dim, 0.f);
    scratch.wide.resize(own.dim);
    std::vector<char> touched(to - from, 0);
    for_each_pair(problem, pairs, query_side, segment, [&](const Pair& pair) {
      const float grad = grad_scores[pair.number];
      const int32_t* winners = argmax + pair.number * problem.argmax_width;
      const int64_t first = query_side ? from : 0, last = query_side ? to : problem.queries.length(pair.query);
      for (int64_t t = first; t < last; ++t) {
        const int64_t winner = winners[t];
        const int64_t mine = query_side ? t : winner, theirs = query_side ? winner : t;
        if (winner < 0 || mine < from || mine >= to) continue;
        touched[mine - from] = 1;
        add(scratch.sums.data() + (mine - from) * own.dim, query_side ? pair.document : pair.query, theirs, grad,
            scratch);
      }
    });
    const int64_t first_row = own.packed() ? own.offsets[segment] : segment * own.extent;
    for (int64_t t = from; t < to; ++t) {
      if (!touched[t - from]) continue;
      float* sum = scratch.sums.data() + (t - from) * own.dim;
      if (problem.normalize) through_norm(sum, segment, t, scratch);
      isa.narrow(sum, own.dtype, out + (first_row + t) * own.dim * element_size(own.dtype), own.dim);
    }
  }

  void run() const {
    const PairsOf pairs(problem, query_side ? problem.query_ids : problem.document_ids, own.count);
    struct Slice {
      int64_t segment, from, to;
    };
    std::vector<Slice> slices;
    const int64_t threads = thread_count();
    for (int64_t s = 0; s < own.count; ++s) {
      const int64_t length = own.length(s);
      const int64_t even = own.count >= 2 * threads ? length : (length + 2 * threads - 1) / (2 * threads);
      const int64_t step = std::max<int64_t>(1, std::min(kSliceRows, even));
      for (int64_t from = 0; from < length; from += step) slices.push_back({s, from, std::min(length, from + step)});
    }
    parallel_dynamic(
        static_cast<int64_t>(slices.size()), false, [] { return Scratch{}; },
        [&](int64_t i, Scratch& scratch) { slice(slices[i].segment, slices[i].from, slices[i].to, pairs, scratch); });
  }
};

// A winner past its document's end can only come from a caller's own argmax; it must not become an address.
void check_argmax(const Problem& problem, const int32_t* argmax) {
  const PairsOf pairs(problem, problem.query_ids, problem.queries.count);
  std::atomic<int64_t> offender{-1};
  parallel_dynamic(
      problem.queries.count, false, [] { return 0; },
      [&](int64_t q, int) {
        const int64_t length = problem.queries.length(q);
        for_each_pair(problem, pairs, true, q, [&](const Pair& pair) {
          const int64_t limit = problem.documents.length(pair.document);
          for (int64_t t = 0; t < length; ++t)
            if (argmax[pair.number * problem.argmax_width + t] >= limit) offender = pair.number;
        });
      });
  if (offender >= 0)
    throw std::runtime_error("argmax of pair " + std::to_string(offender) + " points past the end of its document");
}

}  // namespace

void backward(const Problem& problem, Path path, const float* grad_scores, const int32_t* argmax, void* grad_queries,
              void* grad_documents) {
  check_values(problem);
  check_argmax_width(problem);
  if (problem.pairs == 0) return;
  check_argmax(problem, argmax);
  const Isa& isa = choose_isa(path, problem.queries.dtype, problem.documents.dtype);
  const Norms query_norms(problem, problem.queries, isa), document_norms(problem, problem.documents, isa);
  if (grad_queries)
    Gradient{problem,
             isa,
             problem.queries,
             problem.documents,
             query_norms,
             document_norms,
             true,
             grad_scores,
             argmax,
             static_cast<char*>(grad_queries)}
        .run();
  if (grad_documents)
    Gradient{problem,     isa,   problem.documents, problem.queries, document_norms,
             query_norms, false, grad_scores,       argmax,          static_cast<char*>(grad_documents)}
        .run();
}

}  // namespace cpu
}  // namespace maxsim
