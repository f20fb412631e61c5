// Centroids and residuals on the CPU: rows are decompressed a block at a time on their way into the panels' loop.
#include "residual.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <limits>
#include <stdexcept>
#include <string>

#include "launch.h"

namespace maxsim {
namespace cpu {
namespace {

constexpr int64_t kNone = std::numeric_limits<int64_t>::max();

class ResidualRows : public RowSource {
 public:
  ResidualRows(const Residuals& residuals, const Isa& isa) : residuals_(residuals), isa_(isa) {
    std::array<float, 256> weights{};
    const int64_t count = int64_t{1} << residuals.nbits;
    isa.widen(static_cast<const char*>(residuals.weights), 0, residuals.weight_type, 1, count, weights.data());
    for (size_t i = 0; i < table_.size(); ++i) table_[i] = weights[i % count];
  }

  void fill(const int64_t* rows, int64_t count, float* out) const override {
    const Residuals& r = residuals_;
    const int64_t size = r.dim * element_size(r.centroid_type);
    for (int64_t i = 0; i < count; ++i, out += r.dim) {
      const int64_t code = r.codes[rows[i]];
      if (code < 0 || code >= r.centroid_count) {
        std::fill(out, out + r.dim, 0.f);
        refuse(rows[i]);
        continue;
      }
      isa_.widen(static_cast<const char*>(r.centroids) + code * size, 0, r.centroid_type, 1, r.dim, out);
      isa_.add_buckets(r.bytes + rows[i] * r.row_bytes, r.nbits, table_.data(), r.dim, out);
    }
  }

  bool scaled() const override { return residuals_.normalize; }

  void scales(const int64_t* rows, int64_t count, const float* filled, float* out) const override {
    if (residuals_.inverse_norms)
      for (int64_t i = 0; i < count; ++i) out[i] = residuals_.inverse_norms[rows[i]];
    else
      isa_.inverse_norms(reinterpret_cast<const char*>(filled), residuals_.dim * 4, DType::f32, count, residuals_.dim,
                         out);
  }

  void check() const {
    const int64_t row = refused_.load();
    if (row != kNone)
      throw std::runtime_error("codes[" + std::to_string(row) + "] = " + std::to_string(residuals_.codes[row]) +
                               " is outside [0, " + std::to_string(residuals_.centroid_count) + ")");
  }

 private:
  void refuse(int64_t row) const {
    int64_t first = refused_.load();
    while (row < first && !refused_.compare_exchange_weak(first, row)) {
    }
  }

  const Residuals& residuals_;
  const Isa& isa_;
  std::array<float, 256> table_;
  mutable std::atomic<int64_t> refused_{kNone};
};

}  // namespace

void residual_forward(const Problem& problem, const Residuals& residuals, Path path, float* scores, int32_t* argmax) {
  // Sums of a centroid and a residual have more digits than bf16 pairs hold.
  const Isa& isa = choose_isa(path, problem.queries.dtype, DType::f32);
  const ResidualRows rows(residuals, isa);
  forward(problem, isa, scores, argmax, &rows);
  rows.check();
}

void approx_forward(const Problem& problem, const Approximation& a, float* scores) {
  check_values(problem);
  const int64_t width = problem.queries.dim, documents = problem.documents.count;
  const auto code_of = [&](int64_t row) {
    const int64_t code = a.codes[row];
    return code < 0 || code >= a.centroid_count ? 0 : code;
  };
  const auto scratch = [&] { return std::vector<float>(width); };
  parallel_dynamic(problem.pairs, problem.pairs < 16, scratch, [&](int64_t pair, std::vector<float>& best) {
    const int64_t query = pair / documents, document = pair % documents;
    const int64_t begin = problem.documents.begin(document), end = begin + problem.documents.length(document);
    const float* table = a.centroid_scores + query * a.centroid_count * width;
    if (a.probed) {
      const uint8_t* probed = a.probed + query * a.centroid_count;
      int64_t t = begin;
      while (t < end && !probed[code_of(t)]) ++t;
      if (t == end) {
        scores[pair] = -std::numeric_limits<float>::infinity();
        return;
      }
    }
    std::fill(best.begin(), best.end(), -std::numeric_limits<float>::infinity());
    for (int64_t t = begin; t < end; ++t) {
      const float* row = table + code_of(t) * width;
      for (int64_t i = 0; i < width; ++i) best[i] = row[i] > best[i] || row[i] != row[i] ? row[i] : best[i];
    }
    double sum = 0;
    for (float value : best) sum += value;
    scores[pair] = begin < end ? static_cast<float>(sum) : 0.f;
  });
}

}  // namespace cpu
}  // namespace maxsim
