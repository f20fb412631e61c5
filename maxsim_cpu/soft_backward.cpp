// Backward of the soft maximum on CPU: probabilities are computed again from the forward's logarithms, never stored.
// Every gradient row has one owner, whose tokens lie on the lanes while the other side's rows stream past.
#include <cmath>
#include <limits>

#include "backward_work.h"
#include "panels.h"
#include "soft.h"

namespace maxsim {
namespace cpu {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Scratch {
  std::vector<int64_t> tokens;   // on the lanes
  std::vector<uint32_t> panels;  // fp32 words
  std::vector<float> inverse;    // 1 / norm of each lane
  std::vector<float> factor;     // what makes a logarithm of each lane's similarity
  std::vector<float> gradient;   // [panels][dim][lanes]
  std::vector<float> lane_log, lane_weight, row_log, row_weight;
  std::vector<float> row, wide;
  RowScratch rows;
};

struct SoftGradient {
  const Problem& problem;
  const Isa& isa;
  double unit;
  const Segments& own;
  const Segments& other;
  bool query_side;
  const float* grad_scores;
  const float* soft_max;
  void* out;

  // A probability is 2^(x - log) and counts `weight` times. A query token whose soft maximum is not finite has none.
  void set_logarithm(float soft, float grad, float& log, float& weight) const {
    const bool finite = std::isfinite(soft);
    log = finite ? static_cast<float>(soft / unit) : 0.f;
    weight = finite ? grad : kNaN;
  }

  void pack(int64_t segment, int64_t from, int64_t to, Scratch& s) const {
    const int64_t begin = own.begin(segment), mask = own.mask_begin(segment);
    s.tokens.clear();
    for (int64_t t = from; t < to; ++t)
      if (kept(own, mask, t)) s.tokens.push_back(t);
    const int64_t lanes = (static_cast<int64_t>(s.tokens.size()) + isa.lanes - 1) / isa.lanes * isa.lanes;
    s.panels.assign(lanes * own.dim, 0);
    s.gradient.assign(lanes * own.dim, 0.f);
    s.inverse.assign(lanes, 1.f);
    s.factor.assign(lanes, 0.f);
    s.lane_log.assign(lanes, 0.f);
    s.lane_weight.assign(lanes, 1.f);
    s.row.resize(own.dim);
    s.wide.resize(own.dim);
    for (size_t l = 0; l < s.tokens.size(); ++l) {
      widen_row(isa, own, row_pointer(own, begin, s.tokens[l]), s.row.data());
      if (problem.normalize)
        isa.inverse_norms(reinterpret_cast<const char*>(s.row.data()), 0, DType::f32, 1, own.dim, &s.inverse[l]);
      s.factor[l] = static_cast<float>(s.inverse[l] / unit);
      float* column = reinterpret_cast<float*>(s.panels.data()) + l / isa.lanes * own.dim * isa.lanes + l % isa.lanes;
      for (int64_t k = 0; k < own.dim; ++k) column[k * isa.lanes] = s.row[k];
    }
  }

  void add_pair(const Pair& pair, const RowBlocks& blocks, Scratch& s) const {
    const float grad = grad_scores[pair.number];
    const float* soft = soft_max + pair.number * problem.argmax_width;
    if (query_side)
      for (size_t l = 0; l < s.tokens.size(); ++l)
        set_logarithm(soft[s.tokens[l]], grad, s.lane_log[l], s.lane_weight[l]);
    blocks.for_each(query_side ? pair.document : pair.query, s.rows, [&](PanelTask& task) {
      s.row_log.assign(task.row_count, 0.f);
      s.row_weight.assign(task.row_count, 1.f);
      for (int64_t r = 0; r < task.row_count; ++r) {
        if (!query_side)
          set_logarithm(soft[task.index ? task.index[r] : task.first_index + r], grad, s.row_log[r], s.row_weight[r]);
        if (task.scale) s.row_weight[r] *= task.scale[r];
      }
      task.panels = s.panels.data();
      task.panel_count = static_cast<int64_t>(s.factor.size()) / isa.lanes;
      isa.soft_gradient({task, s.factor.data(), s.lane_log.data(), s.lane_weight.data(), s.row_log.data(),
                         s.row_weight.data(), s.gradient.data()});
    });
  }

  void slice(int64_t segment, int64_t from, int64_t to, const PairsOf& pairs, Scratch& s) const {
    pack(segment, from, to, s);
    if (s.tokens.empty()) return;
    const RowBlocks blocks{other, isa, problem.normalize, false, nullptr};
    for_each_pair(problem, pairs, query_side, segment, [&](const Pair& pair) { add_pair(pair, blocks, s); });
    for (size_t l = 0; l < s.tokens.size(); ++l) {
      const float* column = s.gradient.data() + l / isa.lanes * own.dim * isa.lanes + l % isa.lanes;
      for (int64_t k = 0; k < own.dim; ++k) s.row[k] = column[k * isa.lanes];
      if (problem.normalize) through_norm(isa, own, segment, s.tokens[l], s.inverse[l], s.row.data(), s.wide.data());
      isa.narrow(s.row.data(), own.dtype, gradient_row(out, own, segment, s.tokens[l]), own.dim);
    }
  }

  void run() const {
    const PairsOf pairs(problem, query_side ? problem.query_ids : problem.document_ids, own.count);
    for_each_slice<Scratch>(own, [&](int64_t segment, int64_t from, int64_t to, Scratch& scratch) {
      slice(segment, from, to, pairs, scratch);
    });
  }
};

}  // namespace

void soft_backward(const Problem& problem, Path path, double tau, const float* grad_scores, const float* soft_max,
                   void* grad_queries, void* grad_documents) {
  check_values(problem);
  check_argmax_width(problem);
  if (problem.pairs == 0) return;
  const Isa& isa = choose_isa(path, problem.queries.dtype, problem.documents.dtype);
  const double unit = soft_unit(tau);
  if (grad_queries)
    SoftGradient{problem, isa, unit, problem.queries, problem.documents, true, grad_scores, soft_max, grad_queries}
        .run();
  if (grad_documents)
    SoftGradient{problem, isa, unit, problem.documents, problem.queries, false, grad_scores, soft_max, grad_documents}
        .run();
}

}  // namespace cpu
}  // namespace maxsim
