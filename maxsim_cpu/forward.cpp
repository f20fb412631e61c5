// Forward on CPU: the max of every query token is kept in registers, its sum is taken in token order.
#include <limits>

#include "forward_work.h"

namespace maxsim {
namespace cpu {
namespace {

struct MaxReduction {
  using Second = int32_t;  // the winner
  const Problem& problem;
  const Isa& isa;
  const PackedQueries& queries;
  float* scores;
  int32_t* argmax;

  bool keeps_second() const { return argmax != nullptr; }

  void begin(float* best, int32_t* winner, int64_t lanes) const {
    std::fill(best, best + lanes, -std::numeric_limits<float>::infinity());
    if (winner) std::fill(winner, winner + lanes, -1);
  }

  void score(PanelTask& task, int64_t /*first_panel*/, float* best, int32_t* winner) const {
    task.best = best;
    task.winner = winner;
    isa.score(task);
  }

  // Sum over one query's lanes, in token order and in double, so that the order of work never shows in a score.
  void finish(int64_t query, int64_t pair, int64_t first_kept, const float* best, const int32_t* winner) const {
    const int64_t from = queries.first_lane[query], to = queries.last_lane[query];
    double sum = 0;
    for (int64_t l = from; l < to; ++l)
      sum += queries.factors.empty() ? best[l - from] : static_cast<double>(best[l - from]) * queries.factors[l];
    scores[pair] = first_kept < 0 ? problem.empty_score : static_cast<float>(sum);
    if (!argmax) return;
    int32_t* out = argmax + pair * problem.argmax_width;
    std::fill(out, out + problem.argmax_width, -1);
    if (first_kept < 0) return;
    for (int64_t l = from; l < to; ++l)  // nothing beats -inf: then every kept token ties and the first one wins
      out[queries.token[l]] = winner[l - from] < 0 ? static_cast<int32_t>(first_kept) : winner[l - from];
  }
};

}  // namespace

void forward(const Problem& problem, Path path, float* scores, int32_t* argmax) {
  // A value and its minimum together need more bits than bf16 has.
  const DType documents = problem.documents.minimum ? DType::f32 : problem.documents.dtype;
  forward(problem, choose_isa(path, problem.queries.dtype, documents), scores, argmax, nullptr);
}

void forward(const Problem& problem, const Isa& isa, float* scores, int32_t* argmax, const RowSource* source) {
  check_values(problem);
  if (problem.argmax_width != kNoArgmax) check_argmax_width(problem);
  if (problem.pairs == 0) return;
  const PackedQueries queries = pack_queries(problem, isa);
  run_forward(problem, isa, queries, source, MaxReduction{problem, isa, queries, scores, argmax});
}

}  // namespace cpu
}  // namespace maxsim
