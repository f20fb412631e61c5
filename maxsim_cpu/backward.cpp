// Backward on CPU: every gradient row has one owner that sums its contributions in pair order, so the result is
// bitwise the same for any number of threads, and no fp32 gradient buffer exists beyond a slice per thread.
#include <atomic>
#include <stdexcept>
#include <string>

#include "backward_work.h"

namespace maxsim {
namespace cpu {
namespace {

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
  void* out;

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
    for (int64_t t = from; t < to; ++t) {
      if (!touched[t - from]) continue;
      float* sum = scratch.sums.data() + (t - from) * own.dim;
      if (problem.normalize) through_norm(isa, own, segment, t, own_norms.of(segment, t), sum, scratch.wide.data());
      isa.narrow(sum, own.dtype, gradient_row(out, own, segment, t), own.dim);
    }
  }

  void run() const {
    const PairsOf pairs(problem, query_side ? problem.query_ids : problem.document_ids, own.count);
    for_each_slice<Scratch>(own, [&](int64_t segment, int64_t from, int64_t to, Scratch& scratch) {
      slice(segment, from, to, pairs, scratch);
    });
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
    Gradient{problem, isa,         problem.queries, problem.documents, query_norms, document_norms,
             true,    grad_scores, argmax,          grad_queries}
        .run();
  if (grad_documents)
    Gradient{problem,     isa,   problem.documents, problem.queries, document_norms,
             query_norms, false, grad_scores,       argmax,          grad_documents}
        .run();
}

}  // namespace cpu
}  // namespace maxsim
