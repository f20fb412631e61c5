// Forward of the soft maximum on CPU: tau * log of a sum of exponentials, which is built up while rows stream past.
#include <cmath>
#include <limits>

#include "forward_work.h"
#include "soft.h"

namespace maxsim {
namespace cpu {
namespace {

struct SoftReduction {
  using Second = float;  // the sum
  const Problem& problem;
  const Isa& isa;
  const PackedQueries& queries;
  const std::vector<float>& factor;  // of each lane
  double unit;                       // of the logarithm to base 2, in scores
  float* scores;
  float* soft_max;

  bool keeps_second() const { return true; }

  void begin(float* best, float* total, int64_t lanes) const {
    std::fill(best, best + lanes, std::numeric_limits<float>::lowest());
    std::fill(total, total + lanes, 0.f);
  }

  void score(PanelTask& task, int64_t first_panel, float* best, float* total) const {
    task.best = best;
    isa.soft_score(SoftTask{task, factor.data() + first_panel * queries.lanes, total});
  }

  void finish(int64_t query, int64_t pair, int64_t first_kept, const float* best, const float* total) const {
    const int64_t from = queries.first_lane[query], to = queries.last_lane[query];
    float* out = soft_max ? soft_max + pair * problem.argmax_width : nullptr;
    if (out) std::fill(out, out + problem.argmax_width, 0.f);
    double sum = 0;
    for (int64_t l = from; l < to; ++l) {
      const double value = unit * (best[l - from] + std::log2(static_cast<double>(total[l - from])));
      sum += value;
      if (out && first_kept >= 0) out[queries.token[l]] = static_cast<float>(value);
    }
    scores[pair] = first_kept < 0 ? problem.empty_score : static_cast<float>(sum);
  }
};

}  // namespace

void soft_forward(const Problem& problem, Path path, double tau, float* scores, float* soft_max) {
  check_values(problem);
  if (problem.argmax_width != kNoArgmax) check_argmax_width(problem);
  if (problem.pairs == 0) return;
  const Isa& isa = choose_isa(path, problem.queries.dtype, problem.documents.dtype);
  const PackedQueries queries = pack_queries(problem, isa);
  std::vector<float> factor(queries.panel_count * queries.lanes, static_cast<float>(1 / soft_unit(tau)));
  for (size_t l = 0; l < queries.factors.size(); ++l) factor[l] *= queries.factors[l];
  run_forward(problem, isa, queries, nullptr,
              SoftReduction{problem, isa, queries, factor, soft_unit(tau), scores, soft_max});
}

}  // namespace cpu
}  // namespace maxsim
